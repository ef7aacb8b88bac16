"""What the tests of `SocketBalancer` share: a node, clients, backends, and a cgroup for all."""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from attrs import frozen

from pyciliumlib.lab import Host, Lab, Node, Pod
from pyciliumlib.loadbalancer import LoadBalancerConfig, Service
from pyciliumlib.loadbalancer.program import Sizes, SocketBalancer
from tests import cgroups

KINDS = ("IPv4", "IPv6", "v4-mapped")
kinds = pytest.mark.parametrize("kind", KINDS)
protocols = pytest.mark.parametrize("protocol", ["TCP", "UDP"])
VIP = {4: "10.96.0.10", 6: "fd00:96::10"}
SIZES = Sizes(services=64, frontends=64, backends=64, slots=1 << 16, flows=4096, sockets=8192)
_SO_COOKIE = 57
PORT = {"TCP": 80, "UDP": 53}


def version_of(kind: str) -> int:
    return 6 if kind == "IPv6" else 4


def at(address: object, port: int, protocol: str) -> str:
    host = f"[{address}]" if ":" in str(address) else address
    return f"{host}:{port}/{protocol}"


@frozen
class Scene:
    """A node with two clients and three backends, and the cgroup that the test is in."""

    lab: Lab
    node: Node
    client: Pod
    other: Pod
    backends: tuple[Pod, ...]
    cgroup: Path

    def served(self, version: int, protocol: str, *numbers: int) -> list[str]:
        pods = [self.backends[number - 1] for number in numbers]
        return [
            at(pod.ip4 if version == 4 else pod.ip6, 8000 + PORT[protocol], protocol)
            for pod in pods
        ]

    def service(self, protocol: str = "TCP", *numbers: int, **options: Any) -> Service:
        """A service of both families, at these backends or at all."""
        frontends = [at(VIP[version], PORT[protocol], protocol) for version in (4, 6)]
        chosen = numbers or (1, 2, 3)
        served = [one for version in (4, 6) for one in self.served(version, protocol, *chosen)]
        return Service(
            options.pop("name", protocol.lower()), options.pop("frontends", frontends), served,
            **options,
        )  # fmt: skip

    def balancer(self, **options: Any) -> SocketBalancer:
        config = LoadBalancerConfig(**options.pop("config", {}))
        return self.node.call(
            lambda: SocketBalancer(self.cgroup, config=config, sizes=SIZES, **options)
        )


@contextmanager
def scene() -> Iterator[Scene]:
    """All of it; the test is in the cgroup meanwhile."""
    with Lab() as lab, cgroups.cgroup() as group, cgroups.inside(group):
        node = lab.node()
        client, other = node.pod("client"), node.pod("other")
        backends = tuple(node.pod(f"b{number}") for number in (1, 2, 3))
        for pod in backends:
            pod.serve("8080/TCP")
            pod.serve("8053/UDP")
        yield Scene(lab, node, client, other, backends, group)


class Client:
    """A socket of a host that asks for a service, as often as wanted."""

    def __init__(self, host: Host, kind: str, protocol: str = "TCP") -> None:
        self.kind, self.protocol = kind, protocol
        how = socket.SOCK_STREAM if protocol == "TCP" else socket.SOCK_DGRAM
        self.sock = host.netns.socket(socket.AF_INET if kind == "IPv4" else socket.AF_INET6, how)
        self.sock.settimeout(3)

    def to(self, address: object, port: int) -> tuple[str, int]:
        return (f"::ffff:{address}" if self.kind == "v4-mapped" else str(address)), port

    def connect(self, address: object | None = None, port: int | None = None) -> Client:
        """To the service of its family and protocol, or to another place."""
        address = address or VIP[version_of(self.kind)]
        self.sock.connect(self.to(address, port or PORT[self.protocol]))
        return self

    def ask(self) -> str:
        """Who is at the other end."""
        self.sock.sendall(b"who?")
        return self.sock.recv(100).decode().strip()

    @property
    def peer(self) -> tuple[str, int]:
        found: tuple[str, int] = self.sock.getpeername()[:2]
        return found

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc: object) -> None:
        self.sock.close()


def cookie_of(sock: socket.socket) -> int:
    """The kernel's number of a socket."""
    return int.from_bytes(sock.getsockopt(socket.SOL_SOCKET, _SO_COOKIE, 8), sys.byteorder)


def wait_for(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
