"""XDP programs on devices, by bpf_link."""

from __future__ import annotations

import errno
from typing import Literal, NoReturn

from pyciliumlib.errors import ExistsError, FeatureError, InvalidError
from pyciliumlib.kernel._binding import ffi, lib, take_messages
from pyciliumlib.kernel.device import device_index, device_label, refuse
from pyciliumlib.kernel.link import HasFd, Link, program_label
from pyciliumlib.kernel.uapi import (
    XDP_FLAGS_DRV_MODE,
    XDP_FLAGS_HW_MODE,
    XDP_FLAGS_SKB_MODE,
    AttachType,
)

XdpMode = Literal["auto", "native", "generic", "offload"]

_FLAGS = {
    "auto": 0,
    "native": XDP_FLAGS_DRV_MODE,
    "generic": XDP_FLAGS_SKB_MODE,
    "offload": XDP_FLAGS_HW_MODE,
}


def attach_xdp(program: HasFd, device: int | str, mode: XdpMode = "auto") -> Link:
    """Attach an XDP program to a device of this network namespace.

    `mode`: "native" runs in the driver, "generic" in the stack on any device, "offload" on the
    card; "auto" is native where the driver can, else generic. A device runs one XDP program.
    Raises DeviceError, ExistsError (naming the program that is there), FeatureError if the driver
    cannot do `mode`. Least kernel: 5.9.
    """
    if mode not in _FLAGS:
        raise InvalidError(f"{mode!r} is no XDP mode: use one of {', '.join(_FLAGS)}")
    ifindex = device_index(device)
    label = device_label(ifindex)
    fd = lib.pcl_link_create(program.fd, ifindex, AttachType.XDP, _FLAGS[mode], 0, 0)
    if fd < 0:
        _refuse(fd, ifindex, mode)
    return Link(fd, f"XDP of {label}")


def attached_xdp(device: int | str) -> dict[str, int]:
    """The XDP programs of a device: program ids by mode; empty if there is none."""
    ifindex = device_index(device)
    native, generic, offload = (ffi.new("uint32_t *") for _ in range(3))
    err = lib.pcl_xdp_attached(ifindex, native, generic, offload)
    take_messages(quiet=True)
    if err:
        refuse(err, f"ask {device_label(ifindex)} for its XDP programs")
    found = {"native": native[0], "generic": generic[0], "offload": offload[0]}
    return {mode: prog_id for mode, prog_id in found.items() if prog_id}


def _refuse(code: int, ifindex: int, mode: str) -> NoReturn:
    doing = f"attach XDP ({mode}) to {device_label(ifindex)}"
    if code in (-errno.EBUSY, -errno.EEXIST):
        there = [f"{program_label(i)}, {m}" for m, i in attached_xdp(ifindex).items()]
        raise ExistsError(
            f"cannot {doing}: it runs one already ({'; '.join(there) or 'which just left'}); "
            "detach that one, or use its link's update()"
        )
    if code == -errno.EOPNOTSUPP:
        raise FeatureError(
            -code,
            f"cannot {doing}: its driver has no {mode} XDP, or not with the present MTU and "
            'offloads (LRO, too few queues); use mode="generic"',
            f"xdp_{mode}",
        )
    refuse(
        code,
        doing,
        "the program is no XDP program, or the driver refuses it on this device (LRO on, the MTU "
        "too large, a program made for offload)",
    )
