"""A load balancer that stands beside the way: real traffic through a director on the same LAN.

    client ---.            .--- backend
               === LAN ===
                    |
                 director

The director has one device, so a packet comes in and leaves by it. Plain routing through the same
director is the floor, with answers that come back through it (translation) or do not (DSR).

In XDP the packets of a second have to do: on a veth pair native XDP takes its segmentation offload
from the other end, so throughput would tell of that alone. The floor has an XDP program there too,
one that lets everything pass to the kernel, which routes it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import Final

from attrs import frozen

from pyciliumlib.kernel import ObjectSpec, Program, attach_xdp
from pyciliumlib.lab import Host, Lab, Node, Outside
from pyciliumlib.loadbalancer import LoadBalancerConfig, Service
from pyciliumlib.loadbalancer.program import DSRBackend, LoadBalancer
from pyciliumlib.net import Netlink, NetNS, write_sysctls
from tests import cgroups
from tests.bench.compiled import bpf_object
from tests.bench.figure import Figure
from tests.bench.load import (
    MEASURES,
    STREAM_PORT,
    WEB_PORT,
    connections,
    datagrams,
    serve_streams,
    serving_web,
)
from tests.bench.ways import ENOUGH, Way, compared, nftables
from tests.lab.balancer_scene import fill_in_checksums

_VIP: Final = "203.0.113.10"
#: The backend's, to be asked for by way of the director.
_ROUTED: Final = "198.51.100.5"
_NFTABLES: Final = """
chain prerouting {{
  type nat hook prerouting priority dstnat;
  ip daddr {vip} dnat to {backend}
}}
chain postrouting {{
  type nat hook postrouting priority srcnat;
  ip daddr {backend} masquerade
}}
"""


def figures() -> Iterator[Figure]:
    """Translation at tc, and DSR in XDP."""
    with cgroups.cgroup() as group, cgroups.inside(group), scene() as made:
        routed = Way("plain routing through the director, both ways", _ROUTED, made.answers_too)
        ways = [
            routed,
            Way("service by nftables DNAT and masquerade at a director", _VIP, made.nftables),
            Way("service by LoadBalancer at tc, SNAT", _VIP, made.snat, ENOUGH),
        ]
        for what, unit, measure in MEASURES:
            yield from compared(made.client, ways, what, unit, measure, group)
    with cgroups.cgroup() as group, cgroups.inside(group), scene() as made, made.xdp() as program:
        ways = [
            Way("plain routing behind XDP_PASS", _ROUTED, lambda: made.passing(program)),
            Way("service by LoadBalancer in XDP, DSR by IP in IP", _VIP, made.dsr),
        ]
        yield from compared(
            made.client, ways, "UDP of 64 bytes", "packets",
            lambda client, address: datagrams(client, made.backend, address), group,
        )  # fmt: skip
        yield from compared(made.client, ways, "new connections", "1", connections, group)


@frozen
class Scene:
    """The three hosts; the backend serves at the service's address, too, as DSR wants it."""

    director: Node
    client: Outside
    backend: Outside

    def services(self) -> list[Service]:
        ports = (f"{STREAM_PORT}/TCP", f"{STREAM_PORT}/UDP", f"{WEB_PORT}/TCP")
        return [
            Service(f"service-{number}", [f"{_VIP}:{port}"], [f"{self.backend.ip4}:{port}"])
            for number, port in enumerate(ports)
        ]

    @contextmanager
    def answers_too(self) -> Iterator[None]:
        """What the backend says to the client goes through the director."""
        with Netlink(self.backend.netns) as netlink:
            netlink.add_route(self.client.ip4, via=self.director.ip4, dev="eth0")
            try:
                yield
            finally:
                netlink.delete_route(self.client.ip4, via=self.director.ip4, dev="eth0")

    def nftables(self) -> AbstractContextManager[None]:
        return nftables(self.director, _NFTABLES.format(vip=_VIP, backend=self.backend.ip4))

    @contextmanager
    def _balancer(self, mode: str, acceleration: str) -> Iterator[None]:
        config = LoadBalancerConfig("maglev", mode, "ipip", acceleration=acceleration)
        with self.director.call(lambda: LoadBalancer("eth0", config=config)) as balancer:
            balancer.upsert(*self.services())
            yield

    @contextmanager
    def snat(self) -> Iterator[None]:
        with self._balancer("snat", "disabled"):
            yield

    # ------------------------------------------------------------------ XDP

    @contextmanager
    def xdp(self) -> Iterator[Program]:
        """Let XDP at the director send: a program at the other end, and checksums in packets."""
        lan = NetNS.open(f"pcl-{self.director.lab.id}-lan")
        with ExitStack() as stack:
            stack.callback(lan.close)
            loaded = stack.enter_context(ObjectSpec.open(bpf_object("empty")).load())
            program = loaded.programs["xdp_pass"]
            port = f"lan-{self.director.name}"
            link = lan.call(lambda: attach_xdp(program, port, "native"))
            stack.callback(link.close)
            fill_in_checksums(self.client.netns, "eth0")
            yield program

    @contextmanager
    def passing(self, program: Program) -> Iterator[None]:
        with self.director.call(lambda: attach_xdp(program, "eth0", "native")):
            yield

    @contextmanager
    def dsr(self) -> Iterator[None]:
        serve = partial(DSRBackend, "eth0", [_VIP], acceleration="disabled")
        with self.backend.call(serve), self._balancer("dsr", "native"):
            yield


@contextmanager
def scene() -> Iterator[Scene]:
    """All of it, with servers."""
    with Lab() as lab, ExitStack() as servers:
        director = lab.node("director")
        # who asks for a neighbour by way of the director is not to be told of the shorter way
        write_sysctls(director.netns, {"ipv4/conf/all/send_redirects": 0,
                                       "ipv4/conf/eth0/send_redirects": 0})  # fmt: skip
        client, backend = lab.outside("client"), lab.outside("backend")
        _route(client, _VIP, director)
        _route(client, _ROUTED, director)
        _route(director, _ROUTED, backend)
        with Netlink(backend.netns) as netlink:
            for address in (_VIP, _ROUTED):
                netlink.add_address("lo", f"{address}/32")
        serve_streams(backend, _VIP, _ROUTED, str(backend.ip4))
        servers.enter_context(serving_web(backend))
        yield Scene(director, client, backend)


def _route(host: Host, address: str, via: Host) -> None:
    with Netlink(host.netns) as netlink:
        netlink.add_route(address, via=via.ip4, dev="eth0")


if __name__ == "__main__":
    for figure in figures():
        print(*figure.cells(), sep=" | ")
