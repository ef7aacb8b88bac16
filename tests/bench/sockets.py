"""Services at sockets beside plain routing: the same pods, the same programs, the same run.

Each round measures both, one right after the other and in changing order. The client of a plain
turn asks for the backend itself, and there is no balancer meanwhile. It is in the cgroup all the
same, since the kernel does more for each switch of a task that is in one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from attrs import frozen

from pyciliumlib.lab import Lab, Pod
from pyciliumlib.loadbalancer import Service
from pyciliumlib.loadbalancer.program import SocketBalancer
from tests import cgroups
from tests.bench.compiled import c_program
from tests.bench.figure import Figure, ratio_at_least, spread
from tests.bench.load import STREAM_PORT, serve_streams, stream, wait_for_listener

ROUNDS = 12
MILLISECONDS = 400
#: Of plain routing: throughput, new connections and requests alike.
ENOUGH = 0.95
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
        yield from scene.compared(4, "iperf3", "Gbit/s", scene.stream, STREAM_PORT)
        for version in (4, 6):
            yield from scene.compared(
                version, "connections with a request each", "1/s", scene.rate("new"), _LOAD
            )
            yield from scene.compared(
                version, "requests on one connection", "1/s", scene.rate("keep"), _LOAD
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

    def stream(self, address: str, _: int) -> float:
        """Gbit/s of one TCP stream."""
        return stream(self.client, address).rate

    def rate(self, how: str) -> Callable[[str, int], float]:
        """How many of `net_load` there are in a second."""

        def measure(address: str, port: int) -> float:
            argv = [self.program, how, address, port, MILLISECONDS]
            count, took = self.client.run(argv, check=True, timeout=20).stdout.split()
            return int(count) * 1e9 / int(took)

        return measure

    def compared(
        self, version: int, what: str, unit: str, measure: Callable[[str, int], float], port: int
    ) -> Iterator[Figure]:
        """The service beside the backend itself."""
        plain: list[float] = []
        balanced: list[float] = []
        for number in range(ROUNDS):
            for turn in (balanced, plain) if number % 2 else (plain, balanced):
                if turn is plain:
                    turn.append(measure(self.address(version), port))
                    continue
                with self.balancing():
                    turn.append(measure(_VIP[version], port))
        name = f"sockets, IPv{version}: {what}"
        yield from spread(name, balanced, unit, "plain routing", plain, ratio_at_least(ENOUGH))

    def connects(self, version: int) -> Iterator[Figure]:
        """What a UDP socket costs, from its making to its end, with nothing sent."""
        took = {"plain": 1e9, "a service": 1e9, "no service": 1e9}
        addresses = {"a service": _VIP[version], "no service": self.address(version)}
        measure = self.rate("udp")
        for _ in range(ROUNDS):
            took["plain"] = min(took["plain"], 1e9 / measure(self.address(version), _UDP))
            with self.balancing():
                for name, address in addresses.items():
                    took[name] = min(took[name], 1e9 / measure(address, _UDP))
        for name in addresses:
            yield Figure(
                f"sockets, IPv{version}: UDP socket, connect, close, {name}", took[name], "ns",
                "no balancer", took["plain"],
            )  # fmt: skip


if __name__ == "__main__":
    for figure in figures():
        print(*figure.cells(), sep=" | ")
