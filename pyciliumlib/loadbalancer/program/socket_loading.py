"""The object of the programs at sockets: loaded for a node, over maps of its own or another's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from attrs import field, frozen

from pyciliumlib.conntrack.program import kernel_clock
from pyciliumlib.kernel import Map, Object, probe
from pyciliumlib.loadbalancer.program.loading import Sizes, sized

_OWN_ERRORS: Final = "helper_set_retval"
#: What programs that serve the same services have in common.
_SHARED: Final = (
    "lb_services",
    "lb_slots",
    "lb_backends",
    "lb_revisions",
    "lb_ranges",
    "lb_members",
    "lb_filter",
    "lb_affinity",
)


#: Program and hook, in the order in which they are attached: a socket that was translated is never
#: without those that translate back.
SOCKET_HOOKS: Final = {
    "socket_release": "sock_release",
    "socket_peer4": "getpeername4",
    "socket_peer6": "getpeername6",
    "socket_recvmsg4": "recvmsg4",
    "socket_recvmsg6": "recvmsg6",
    "socket_sendmsg4": "sendmsg4",
    "socket_sendmsg6": "sendmsg6",
    "socket_connect4": "connect4",
    "socket_connect6": "connect6",
    "socket_bind4": "post_bind4",
    "socket_bind6": "post_bind6",
}


@frozen
class SocketPlace:
    """What the programs must know of where they are.

    `host_netns` is the cookie of the node's namespace, 0 the initial one. With `host_only` no other
    namespace's sockets are translated. `own_errors` is whether the kernel lets a program say why
    it refuses.
    """

    host_netns: int
    host_only: bool = False
    own_errors: bool = field(factory=lambda: probe(_OWN_ERRORS).has(_OWN_ERRORS))


def load_sockets(
    place: SocketPlace,
    sizes: Sizes,
    shared: Mapping[str, Map] | None = None,
    pins: Path | None = None,
) -> Object:
    """The programs of sockets; with `shared`, over these maps of another balancer.

    With `pins` the other maps are those that are pinned there, or will be.
    """
    spec = sized("socket", sizes)
    reuse = {} if shared is None else {name: shared[name] for name in _SHARED}
    for name, map_ in reuse.items():
        spec.resize(name, map_.max_entries)
    for name, numbered in (
        ("lb_socket_services", "lb_revisions"),
        ("lb_socket_backends", "lb_backends"),
    ):
        spec.resize(name, spec.maps[numbered].max_entries)
    spec.config.update(
        {
            "jiffies_per_second": kernel_clock().hz,
            "filter_cells": spec.maps["lb_filter"].max_entries,
            "host_only": place.host_only,
            "host_netns": place.host_netns,
            "set_retval": place.own_errors,
        }
    )
    return spec.load(reuse=reuse, pins=pins)
