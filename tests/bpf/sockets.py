"""The programs of sockets at work for this process, and a namespace to talk in.

All addresses are on the namespace's loopback device, so that a socket may be connected to any of
them. Whom it got is asked of the kernel (sock_diag), not of the programs' own map.
"""

from __future__ import annotations

import errno
import itertools
import os
import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Final

import numpy as np

from pyciliumlib.flow.metrics import Metrics
from pyciliumlib.kernel import Object, attach_cgroup, probe
from pyciliumlib.loadbalancer import Balancer, LoadBalancerConfig, LocalNode, Service
from pyciliumlib.loadbalancer.program.loading import Sizes
from pyciliumlib.loadbalancer.program.socket_loading import (
    SOCKET_HOOKS,
    SocketPlace,
    load_sockets,
)
from pyciliumlib.loadbalancer.table import ServiceTable
from pyciliumlib.net import ConnectedSocket, Netlink, NetNS, SocketDiag
from pyciliumlib.types import Protocol, parse_address
from tests import cgroups

OWN: Final = {4: "192.0.2.1", 6: "2001:db8::1"}
BACKENDS: Final = {
    4: tuple(f"10.0.0.{number}" for number in range(1, 8)),
    6: tuple(f"fd00::{number}" for number in range(1, 8)),
}
#: Whether the kernel tells a namespace's cookie. Where it does not (before 5.14) the tests'
#: namespace cannot be the node's, which only the initial one is then.
TOLD: Final = probe("netns_cookie").has("netns_cookie")
#: What refused calls fail with: EPERM where a program cannot say (before 6.1).
_OWN_ERRORS: Final = probe("helper_set_retval").has("helper_set_retval")
UNREACHABLE: Final = errno.EHOSTUNREACH if _OWN_ERRORS else errno.EPERM
IN_USE: Final = errno.EADDRINUSE if _OWN_ERRORS else errno.EPERM
#: Addresses of services. They are on the loopback device too, so that a socket that is not
#: translated is connected to one of them, and not refused by the routes.
VIP: Final = {4: "10.96.0.10", 6: "fd00:96::10"}
OTHER_VIP: Final = {4: "10.96.0.11", 6: "fd00:96::11"}
SIZES: Final = Sizes(services=64, frontends=64, backends=64, slots=8192, clients=512, sockets=4096)
SO_COOKIE: Final = 57
_serial = itertools.count()
#: How a client is: IPv4, IPv6, or an IPv6 socket that speaks IPv4.
KINDS: Final = ("IPv4", "IPv6", "v4-mapped")


def version_of(kind: str) -> int:
    return 6 if kind == "IPv6" else 4


def family_of(kind: str) -> socket.AddressFamily:
    return socket.AF_INET if kind == "IPv4" else socket.AF_INET6


def spelled(kind: str, address: str) -> str:
    """An address as that kind of client writes it."""
    return f"::ffff:{address}" if kind == "v4-mapped" else address


def at(address: str, port: int, protocol: str = "TCP") -> str:
    host = f"[{address}]" if ":" in address else address
    return f"{host}:{port}/{protocol}"


def cookie_of(made: socket.socket) -> int:
    return int.from_bytes(made.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8), "little")


class Rig:
    """The programs, their maps as a table of services, and the model beside it."""

    def __init__(self, loaded: Object, netns: NetNS, config: LoadBalancerConfig) -> None:
        self.maps, self.netns, self.config = loaded.maps, netns, config
        self.node = LocalNode("n1", OWN.values())
        self.reset()

    def reset(self) -> None:
        """No services and no sockets; counters at zero."""
        for name in ("lb_services", "lb_members", "lb_ranges", "lb_affinity", "lb_reverse_sk"):
            self.maps[name].clear()
        for name in ("lb_backends", "lb_revisions", "lb_filter", "metrics", "lb_socket_services",
                     "lb_socket_backends"):  # fmt: skip
            keys, values = self.maps[name].lookup_batch()
            self.maps[name].update_batch(keys, np.zeros_like(values))
        self.table = ServiceTable(self.maps, self.config, self.node)
        self.model = Balancer((), self.config, self.node)

    def serve(self, *services: Service) -> None:
        """Hold these services and no others."""
        self.table.apply(self.table.plan(services))
        for key in list(self.model.services):
            self.model.delete(key)  # first all of them, since a frontend may have moved
        for service in services:
            self.model.upsert(service)

    def socket(self, kind: str, protocol: str = "UDP") -> socket.socket:
        """A client's socket, in the namespace and the cgroup."""
        how = socket.SOCK_STREAM if protocol == "TCP" else socket.SOCK_DGRAM
        made = self.netns.socket(family_of(kind), how)
        made.settimeout(3)
        return made

    def connected(self, kind: str, address: str, port: int, times: int) -> Counter[str]:
        """Whom so many UDP sockets are connected to that ask for this; OSError if refused."""
        with ExitStack() as stack:
            cookies = []
            stack.enter_context(self.netns.enter())
            for _ in range(times):
                client = stack.enter_context(socket.socket(family_of(kind), socket.SOCK_DGRAM))
                client.connect((spelled(kind, address), port))
                cookies.append(cookie_of(client))
            peers = self.peers()
        return Counter(at(str(peers[c].peer[0]), peers[c].peer[1], "UDP") for c in cookies)

    def peers(self) -> dict[int, ConnectedSocket]:
        """The connected sockets of the namespace by their cookies."""
        with SocketDiag(self.netns) as diag:
            found = [*diag.connected(Protocol.UDP), *diag.connected(Protocol.TCP)]
        return {one.cookie: one for one in found}

    def refused(self) -> int:
        """How many calls were refused, for whatever reason."""
        return Metrics.read(self.maps["metrics"]).dropped

    def translated(self) -> int:
        """How many calls got a backend."""
        return Metrics.read(self.maps["metrics"]).packets()

    def asked(self) -> list[Any]:
        """What the programs remember of sockets."""
        return list(self.maps["lb_reverse_sk"].items())


@contextmanager
def namespace() -> Iterator[NetNS]:
    """A namespace whose loopback device has all addresses."""
    with ExitStack() as stack:
        netns = stack.enter_context(NetNS.create(f"pclB{os.getpid()}-s{next(_serial)}"))
        stack.callback(netns.delete)
        netlink = stack.enter_context(Netlink(netns))
        netlink.set_link("lo", up=True)
        for version in (4, 6):
            for address in (OWN[version], VIP[version], OTHER_VIP[version], *BACKENDS[version]):
                whole = parse_address(address).max_prefixlen
                netlink.add_address("lo", f"{address}/{whole}")
        yield netns


@contextmanager
def rig(netns: NetNS, config: LoadBalancerConfig | None = None, **place: Any) -> Iterator[Rig]:
    """The programs at work for this process; the namespace is the node's unless `place` differs."""
    config = config or LoadBalancerConfig(table_size=251)
    settings = SocketPlace(**{"host_netns": netns.cookie if TOLD else 0, **place})
    with ExitStack() as stack:
        loaded = stack.enter_context(load_sockets(settings, SIZES))
        group = stack.enter_context(cgroups.cgroup())
        for name, hook in SOCKET_HOOKS.items():
            stack.enter_context(attach_cgroup(loaded.programs[name], group, hook))
        stack.enter_context(cgroups.inside(group))
        yield Rig(loaded, netns, config)
