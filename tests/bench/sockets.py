"""Services at sockets beside plain routing: the same pods, the same programs, the same run.

The client of a plain turn asks for the backend itself, and there is no balancer meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Final

from attrs import frozen

from pyciliumlib.lab import Host, Lab, Pod
from pyciliumlib.loadbalancer import Service
from pyciliumlib.loadbalancer.program import SocketBalancer
from pyciliumlib.types import AddressLike
from tests import cgroups
from tests.bench.compiled import c_program
from tests.bench.figure import Figure
from tests.bench.load import (
    STREAM_PORT,
    Measure,
    Work,
    serve_streams,
    stream,
    wait_for_listener,
)
from tests.bench.ways import ENOUGH, ROUNDS, Way, compared

MILLISECONDS = 400
_VIP: Final = {4: "10.96.0.10", 6: "fd00:96::10"}
_LOAD, _UDP = 7000, 7001


def figures() -> Iterator[Figure]:
    """Throughput, new connections, requests, and what connect() itself costs."""
    with (
        c_program("net_load") as program,
        cgroups.cgroup() as group,
        cgroups.inside(group),
        Lab() as lab,
    ):
        node = lab.node()
        scene = Scene(node.pod("client"), node.pod("backend"), program, group)
        scene.start()
        yield from scene.compared(4, "iperf3", "Gbit", stream)
        for version in (4, 6):
            yield from scene.compared(
                version, "connections with a request each", "1", scene.load("new")
            )
            yield from scene.compared(
                version, "requests on one connection", "1", scene.load("keep")
            )
            yield from scene.connects(version)


@frozen
class Scene:
    """A client and a backend, and the cgroup in which both run."""

    client: Pod
    backend: Pod
    program: Path
    cgroup: Path

    def start(self) -> None:
        """Start the servers, and wait for them."""
        serve_streams(self.backend)
        self.backend.popen([self.program, "serve", _LOAD])
        wait_for_listener(self.backend, _LOAD)

    def address(self, version: int) -> str:
        return str(self.backend.ip4 if version == 4 else self.backend.ip6)

    @contextmanager
    def balancing(self) -> Iterator[None]:
        """The backend is behind services."""
        services = []
        for port, protocol in ((STREAM_PORT, "TCP"), (_LOAD, "TCP"), (_UDP, "UDP")):
            places = [
                [f"{addresses[4]}:{port}/{protocol}", f"[{addresses[6]}]:{port}/{protocol}"]
                for addresses in (_VIP, {4: self.address(4), 6: self.address(6)})
            ]
            services.append(Service(f"{protocol}-{port}", *places))
        with SocketBalancer(self.cgroup) as balancer:
            balancer.upsert(*services)
            yield

    def load(self, how: str, port: int = _LOAD) -> Measure:
        """What `net_load` does for a while."""

        def measure(client: Host, address: AddressLike) -> Work:
            argv = [self.program, how, address, port, MILLISECONDS]
            count, took = client.run(argv, check=True, timeout=20).stdout.split()
            return Work(int(count), int(took) / 1e9)

        return measure

    def compared(self, version: int, what: str, unit: str, measure: Measure) -> Iterator[Figure]:
        """The service beside the backend itself."""
        ways = [
            Way("plain routing", self.address(version), nullcontext),
            Way(f"sockets, IPv{version}", _VIP[version], self.balancing, ENOUGH),
        ]
        yield from compared(self.client, ways, what, unit, measure, self.cgroup)

    def connects(self, version: int) -> Iterator[Figure]:
        """What a UDP socket costs, from its making to its end, with nothing sent."""
        took = {"plain": 1e9, "a service": 1e9, "no service": 1e9}
        addresses = {"a service": _VIP[version], "no service": self.address(version)}
        measure = self.load("udp", _UDP)

        def best(name: str, address: str) -> None:
            took[name] = min(took[name], 1e9 / measure(self.client, address).rate)

        for _ in range(ROUNDS):
            best("plain", self.address(version))
            with self.balancing():
                for name, address in addresses.items():
                    best(name, address)
        for name in addresses:
            yield Figure(
                f"sockets, IPv{version}: UDP socket, connect, close, {name}", took[name], "ns",
                "no balancer", took["plain"],
            )  # fmt: skip


if __name__ == "__main__":
    for figure in figures():
        print(*figure.cells(), sep=" | ")
