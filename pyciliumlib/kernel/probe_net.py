"""Probes that need a device: made in a network namespace of its own that nobody else sees.

A thread unshares its namespace and ends; the namespace and all in it go with the thread.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterable
from typing import Any

from pyciliumlib.kernel._binding import lib
from pyciliumlib.kernel.features import Answer, Support
from pyciliumlib.kernel.probe_bpf import RETURN_1, XDP, YES, judge, try_program
from pyciliumlib.kernel.uapi import XDP_FLAGS_DRV_MODE, XDP_FLAGS_SKB_MODE, AttachType

TC_ROOT = 0xFFFFFFFF
NO_KIND = (errno.EOPNOTSUPP, errno.ENOENT)
"""What rtnetlink says of an unknown kind of device or of packet scheduler."""


def probe_in_namespace(names: Iterable[str]) -> dict[str, Answer]:
    """The answers to `names`, all from one new namespace."""
    answers: dict[str, Answer] = {}
    crash: list[BaseException] = []
    wanted = list(names)

    def run() -> None:
        try:
            answers.update(_probe_all(wanted))
        except BaseException as error:  # handed to the caller below, not swallowed
            crash.append(error)

    thread = threading.Thread(target=run, name="pyciliumlib-probe")
    thread.start()
    thread.join()
    if crash:
        raise crash[0]
    return answers


def _probe_all(names: list[str]) -> dict[str, Answer]:
    err = lib.pcl_unshare_net()
    if err:
        return dict.fromkeys(names, judge(err, "new network namespace", no=()))
    # Imported here: it takes longer than all other probes together.
    from pyroute2 import IPRoute

    with IPRoute() as route:
        return {name: PROBES[name](route) for name in names}


def _rtnetlink(call: Callable[[], object], what: str) -> Answer:
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        call()
    except NetlinkError as error:
        return judge(-error.code, what, no=NO_KIND)
    return YES


def _device(route: Any, kind: str, **options: Any) -> Answer:
    name = f"probe-{kind}"[:15]
    answer = _rtnetlink(
        lambda: route.link("add", ifname=name, kind=kind, **options), f"{kind} device"
    )
    # no device has our name, but a kind's own first device (tunl0) may have its parameters
    return YES if answer.errno == errno.EEXIST else answer


def _qdisc(route: Any, kind: str, **options: Any) -> Answer:
    return _rtnetlink(lambda: route.tc("add", kind=kind, index=1, **options), f"{kind} qdisc")


def _xdp_link(route: Any, ifindex: int, flags: int) -> Answer:
    fd, _ = try_program(XDP, 0, RETURN_1)
    if fd < 0:
        return judge(fd, "program load")
    try:
        link = lib.pcl_link_create(fd, ifindex, AttachType.XDP, flags, 0, 0)
    finally:
        os.close(fd)
    if link >= 0:
        os.close(link)
    return judge(link, "XDP link", no=(errno.EINVAL, errno.EOPNOTSUPP))


def _xdp_veth(route: Any) -> Answer:
    made = _rtnetlink(
        lambda: route.link("add", ifname="probe-x0", kind="veth", peer={"ifname": "probe-x1"}),
        "veth device",
    )
    if made.support is not Support.YES:
        return made
    ifindex = route.link_lookup(ifname="probe-x0")[0]
    return _xdp_link(route, ifindex, XDP_FLAGS_DRV_MODE)


PROBES: dict[str, Callable[[Any], Answer]] = {
    "clsact": lambda route: _qdisc(route, "clsact"),
    "link_xdp": lambda route: _xdp_link(route, 1, XDP_FLAGS_SKB_MODE),
    "xdp_veth": _xdp_veth,
    "dev_veth": lambda route: _device(route, "veth", peer={"ifname": "probe-peer"}),
    "dev_vxlan": lambda route: _device(route, "vxlan", vxlan_collect_metadata=True),
    "dev_geneve": lambda route: _device(route, "geneve", geneve_collect_metadata=True),
    "dev_wireguard": lambda route: _device(route, "wireguard"),
    "dev_ipip": lambda route: _device(route, "ipip"),
    "qdisc_fq": lambda route: _qdisc(route, "fq", handle=0x10000, parent=TC_ROOT),
}
