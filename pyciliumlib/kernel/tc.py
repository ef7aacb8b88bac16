"""tc programs on devices: tcx where the kernel has it, clsact below, one call for both."""

from __future__ import annotations

import errno
import os
from typing import Literal, NoReturn

import attrs

from pyciliumlib.errors import (
    ExhaustedError,
    ExistsError,
    InvalidError,
    NotFoundError,
    StateError,
)
from pyciliumlib.kernel._binding import ffi, lib
from pyciliumlib.kernel.anchor import Anchor, Tail, anchor_flags
from pyciliumlib.kernel.clsact import Direction, TcFilter
from pyciliumlib.kernel.device import device_index, device_label, refuse
from pyciliumlib.kernel.link import HasFd, Link
from pyciliumlib.kernel.probe import probe
from pyciliumlib.kernel.uapi import TCX_MAX_PROGRAMS, AttachType

_TCX = {"ingress": AttachType.TCX_INGRESS, "egress": AttachType.TCX_EGRESS}


@attrs.frozen
class Attached:
    """One program of a tcx or netkit hook; `link_id` is 0 if it was attached without a link."""

    prog_id: int
    link_id: int


def attach_tc(
    program: HasFd,
    device: int | str,
    direction: Direction,
    *,
    backend: Literal["auto", "tcx", "clsact"] = "auto",
    anchor: Anchor | None = None,
    handle: int = 1,
    priority: int = 1,
    replace: bool = False,
) -> Link | TcFilter:
    """Attach a tc program to a device of this network namespace.

    With tcx `anchor` gives the order (default `Tail()`); with clsact `priority` and `handle` do,
    and `replace` takes over the filter that is there. What comes back has one interface: `info`,
    `attached`, `update`, `keep`, `detach`, `close`.
    Raises DeviceError, ExistsError, NotFoundError (the anchor is not on this hook), FeatureError
    (tcx or an anchor asked for where there is no tcx). Least kernel: 4.5; tcx: 6.6.
    """
    if direction not in _TCX:
        raise InvalidError(f'{direction!r} is no direction: use "ingress" or "egress"')
    if backend not in ("auto", "tcx", "clsact"):
        raise InvalidError(f'{backend!r} is no backend: use "auto", "tcx" or "clsact"')
    if backend == "clsact" and anchor is not None:
        raise InvalidError("clsact orders by priority: leave the anchor out, or use tcx")
    if backend == "tcx" or anchor is not None:
        probe("tcx").require("tcx", by="attach_tc with an anchor or backend='tcx'")
    if backend == "clsact" or (anchor is None and not probe("tcx").has("tcx")):
        return TcFilter.attach(
            program, device, direction, handle=handle, priority=priority, replace=replace
        )
    return _attach(program, device, _TCX[direction], anchor or Tail())


def attach_netkit(
    program: HasFd, device: int | str, *, peer: bool = False, anchor: Anchor | None = None
) -> Link:
    """Attach a tc program to a netkit pair: to its primary device, or with `peer` to the other.

    `device` is the primary one in both cases. Raises as `attach_tc`; FeatureError without netkit.
    Least kernel: 6.7.
    """
    probe("netkit").require("netkit", by="attach_netkit")
    attach_type = AttachType.NETKIT_PEER if peer else AttachType.NETKIT_PRIMARY
    return _attach(program, device, attach_type, anchor or Tail())


def attached_tc(device: int | str, direction: Direction) -> list[Attached]:
    """The tcx programs of a device in the order they run. Least kernel: 6.6."""
    if direction not in _TCX:
        raise InvalidError(f'{direction!r} is no direction: use "ingress" or "egress"')
    ifindex = device_index(device)
    probe("tcx").require("tcx", by="attached_tc")
    prog_ids = ffi.new("uint32_t[]", TCX_MAX_PROGRAMS)
    link_ids = ffi.new("uint32_t[]", TCX_MAX_PROGRAMS)
    revision = ffi.new("uint64_t *")
    count = lib.pcl_attached(
        ifindex, _TCX[direction], TCX_MAX_PROGRAMS, prog_ids, link_ids, revision
    )
    if count < 0:
        refuse(count, f"ask {device_label(ifindex)} for its tcx programs")
    return [Attached(prog_ids[i], link_ids[i]) for i in range(min(count, TCX_MAX_PROGRAMS))]


def find_tc(
    device: int | str,
    direction: Direction,
    *,
    pin: str | os.PathLike[str],
    handle: int = 1,
    priority: int = 1,
) -> Link | TcFilter | None:
    """What an earlier process attached and kept: the link at `pin`, else the clsact filter there.

    None if there is neither. Raises StateError if the pinned link sits on another device or
    direction, or its device is gone.
    """
    ifindex = device_index(device)
    try:
        link = Link.from_pin(pin)
    except NotFoundError:
        return TcFilter.find(ifindex, direction, handle=handle, priority=priority)
    info = link.info
    if (info.ifindex, info.attach_type) != (ifindex, _TCX[direction]):
        link.close()
        raise StateError(
            f"the link pinned at {pin} is a {info.kind} link on ifindex {info.ifindex}, not on "
            f"{direction} of {device_label(ifindex)}: remove the pin and attach again"
        )
    return link


def _attach(program: HasFd, device: int | str, attach_type: AttachType, anchor: Anchor) -> Link:
    ifindex = device_index(device)
    name = f"{attach_type.name} of {device_label(ifindex)}"
    flags, relative = anchor_flags(anchor)
    fd = lib.pcl_link_create(program.fd, ifindex, attach_type, flags, relative, 0)
    if fd < 0:
        _refuse(fd, f"attach to {name}", anchor)
    return Link(fd, name)


def _refuse(code: int, doing: str, anchor: Anchor) -> NoReturn:
    if code == -errno.EEXIST:
        raise ExistsError(
            f"cannot {doing}: this very program is attached there already; load it once more, or "
            "use its link's update()"
        )
    if code == -errno.ENOENT:
        raise NotFoundError(f"cannot {doing}: {anchor!r} names what is not attached to this hook")
    if code == -errno.ERANGE:
        raise ExhaustedError(
            f"cannot {doing}: {TCX_MAX_PROGRAMS} programs are there, the most that a hook takes"
        )
    refuse(code, doing, "it is no tc (sched_cls) program, or the anchor is none, or not a netkit")
