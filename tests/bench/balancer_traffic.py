"""Real TCP to a service, by each way there is to balance it, beside plain routing.

    client --- node --- backend

Three namespaces, and in the node's what a user may have today: nftables' DNAT, or HAProxy. Plain
routing is the floor: the client asks for the backend itself. What a way needs is there for its
turns alone; only HAProxy waits, at an address of its own.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Final

from attrs import frozen

from pyciliumlib.datapath import Datapath
from pyciliumlib.lab import Lab, Node, Pod
from pyciliumlib.loadbalancer import LoadBalancerConfig, Service
from pyciliumlib.loadbalancer.program import DSRBackend, LoadBalancer, SocketBalancer
from tests import cgroups
from tests.bench.figure import Figure
from tests.bench.load import (
    MEASURES,
    STREAM_PORT,
    WEB_PORT,
    serve_streams,
    serving_web,
    wait_for_listener,
)
from tests.bench.ways import ENOUGH, Way, compared, nftables

_VIP: Final = "10.96.0.10"
_HAPROXY: Final = "10.96.0.11"
#: Of the node's device at the client, which has none of its own: outer headers come from it.
_DIRECTOR: Final = "10.96.0.12"
_SERVED: Final = (STREAM_PORT, WEB_PORT)

_NFTABLES: Final = """
chain prerouting {{
  type nat hook prerouting priority dstnat;
  ip daddr {vip} dnat to {backend}
}}
"""
_HAPROXY_CONFIG: Final = """
global
  nbthread 2
  maxconn 4000
defaults
  mode tcp
  timeout connect 5s
  timeout client 60s
  timeout server 60s
"""


def figures() -> Iterator[Figure]:
    """Throughput, new connections, and requests on connections that stay."""
    with (
        cgroups.cgroup() as group,
        cgroups.inside(group),
        Lab() as lab,
        ExitStack() as servers,
    ):
        folder = Path(servers.enter_context(tempfile.TemporaryDirectory()))
        node = lab.node()
        scene = Scene(node, node.pod("client"), node.pod("backend"), group)
        serve_streams(scene.backend)
        servers.enter_context(serving_web(scene.backend))
        scene.start_haproxy(folder)
        node.netlink.add_address(scene.client.host_ifname, f"{_DIRECTOR}/32")
        for what, unit, measure in MEASURES:
            yield from compared(scene.client, scene.ways(), what, unit, measure, group)


@frozen
class Scene:
    """A client, what is between, and a backend; all of them in the cgroup."""

    node: Node
    client: Pod
    backend: Pod
    cgroup: Path

    def ways(self) -> list[Way]:
        """Plain routing first."""
        return [
            Way("plain routing", str(self.backend.ip4), nullcontext),
            Way("service by nftables DNAT", _VIP, self.nftables),
            Way("service by HAProxy", _HAPROXY, nullcontext),
            Way("service by SocketBalancer", _VIP, self.sockets, ENOUGH),
            Way("service by Datapath.services", _VIP, self.datapath, ENOUGH),
            Way(
                "service by LoadBalancer at tc, DSR by option",
                _VIP,
                partial(self.dsr, "opt"),
                ENOUGH,
            ),
            Way(
                "service by LoadBalancer at tc, DSR by IP in IP",
                _VIP,
                partial(self.dsr, "ipip"),
                ENOUGH,
            ),
        ]

    def services(self) -> list[Service]:
        return [
            Service(f"port-{port}", [f"{_VIP}:{port}"], [f"{self.backend.ip4}:{port}"])
            for port in _SERVED
        ]

    def nftables(self) -> AbstractContextManager[None]:
        return nftables(self.node, _NFTABLES.format(vip=_VIP, backend=self.backend.ip4))

    def start_haproxy(self, folder: Path) -> None:
        """Two threads; without clients they sleep."""
        sections = [
            f"listen port-{port}\n  bind {_HAPROXY}:{port}\n"
            f"  server one {self.backend.ip4}:{port}\n"
            for port in _SERVED
        ]
        config = folder / "haproxy.cfg"
        config.write_text(_HAPROXY_CONFIG + "".join(sections))
        self.node.netlink.add_address("lo", f"{_HAPROXY}/32")
        self.node.popen(["haproxy", "-db", "-f", config])
        for port in _SERVED:
            wait_for_listener(self.node, port)

    @contextmanager
    def sockets(self) -> Iterator[None]:
        with SocketBalancer(self.cgroup) as balancer:
            balancer.upsert(*self.services())
            yield

    @contextmanager
    def datapath(self) -> Iterator[None]:
        """Both pods are endpoints, under no policy."""
        with Datapath(self.node) as datapath:
            for pod in (self.client, self.backend):
                datapath.add_endpoint(pod.name, labels={"app": pod.name}, pod=pod)
            datapath.services.upsert(*self.services())
            yield

    @contextmanager
    def dsr(self, dispatch: str) -> Iterator[None]:
        """The program is at the client's device of the node, and its mate in the backend."""
        config = LoadBalancerConfig("maglev", "dsr", dispatch, acceleration="disabled")
        make = partial(LoadBalancer, self.client.host_ifname, config=config)
        serve = partial(DSRBackend, self.backend.ifname, [_VIP], acceleration="disabled")
        with self.backend.call(serve), self.node.call(make) as balancer:
            balancer.upsert(*self.services())
            yield


if __name__ == "__main__":
    for figure in figures():
        print(*figure.cells(), sep=" | ")
