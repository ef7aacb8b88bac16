"""A client, a router, a director and backends in namespaces, with real servers and real packets.

    client --- router === bridge === director, backend 1, backend 2, ...

The router sends the services' addresses to the director; backends answer by way of the router. The
links behind the router are a little larger, so that the outer header fits.

Servers listen on any address at the services' ports, as behind IP in IP, and at ports of their own,
as behind an option or Geneve.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final, TypeVar

from attrs import define, frozen

from pyciliumlib.kernel import ObjectSpec, attach_xdp
from pyciliumlib.loadbalancer import Service
from pyciliumlib.net import Netlink, NetNS, write_sysctls
from tests.bpf.compiled import compile_bpf
from tests.bpf.sockets import at

T = TypeVar("T")
VIP: Final = {4: "203.0.113.10", 6: "2001:db8:a::10"}
CLIENT: Final = {4: "198.51.100.7", 6: "2001:db8:c::7"}
DIRECTOR: Final = {4: "192.0.2.1", 6: "2001:db8::1"}
ROUTER: Final = {4: "192.0.2.254", 6: "2001:db8::254"}
UPLINK: Final = {4: "198.51.100.254", 6: "2001:db8:c::254"}
LENGTH: Final = {4: 24, 6: 64}
INSIDE_MTU: Final = 1600
#: Ports of the services, and those of the backends' own.
TCP_PORTS: Final = (80, 8080)
UDP_PORTS: Final = (53, 5353)
OTHER_PORT: Final = TCP_PORTS[1]
PATIENCE: Final = 3.0
_IP_PKTINFO: Final = 8
_serial = itertools.count()
_PASS: Final = """
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
SEC("xdp") int let_pass(struct xdp_md *ctx) { return XDP_PASS; }
char LICENSE[] SEC("license") = "GPL";
"""


def backend_address(number: int, version: int) -> str:
    """The address of backend 1, 2, ..."""
    return f"192.0.2.{10 + number}" if version == 4 else f"2001:db8::{10 + number}"


def dns(version: int) -> Service:
    """Port 53 of the three backends."""
    served = [at(backend_address(number, version), 53, "UDP") for number in (1, 2, 3)]
    return Service(f"dns-{version}", [at(VIP[version], 53, "UDP")], served)


def exchange(tcp: socket.socket) -> str:
    """Ask once more on an open connection; who answered."""
    tcp.sendall(b"who?")
    return tcp.recv(200).decode().split()[0]


@frozen
class Scene:
    """The namespaces, and the servers of the backends."""

    client: NetNS
    router: NetNS
    director: NetNS
    backends: tuple[NetNS, ...]
    servers: tuple[Server, ...]

    def ask(self, version: int, port: int = 80, source: int = 0) -> str:
        """Connect to the service, and read who answered and whom it saw; raises OSError."""
        family = socket.AF_INET if version == 4 else socket.AF_INET6
        with self.client.socket(family, socket.SOCK_STREAM) as tcp:
            tcp.settimeout(PATIENCE)
            if source:
                tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                tcp.bind((CLIENT[version], source))
            tcp.connect((VIP[version], port))
            tcp.sendall(b"who?")
            return tcp.recv(200).decode()

    def hush(self) -> None:
        """End what the client's closed sockets still say: the next balancer would hear of it."""
        self.client.call(lambda: subprocess.run(["ss", "-K", "-t", "-a"], capture_output=True))

    def ask_udp(self, version: int, port: int = 53, question: bytes = b"who?") -> str:
        """The same by a datagram."""
        family = socket.AF_INET if version == 4 else socket.AF_INET6
        with self.client.socket(family, socket.SOCK_DGRAM) as udp:
            udp.settimeout(PATIENCE)
            udp.sendto(question, (VIP[version], port))
            data, peer = udp.recvfrom(65536)
            assert peer[:2] == (VIP[version], port)
            return data.decode()

    def who(self, version: int, times: int, **options: int) -> Counter[str]:
        """Which backends answered so many connections."""
        return Counter(self.ask(version, **options).split()[0] for _ in range(times))


@define(eq=False)
class Server:
    """Answers "<name> <peer>" by TCP (and goes on while asked) and UDP, in its namespace.

    What ends in a zero byte is answered by "got it", and "send <n>" by so many bytes.
    """

    name: str
    netns: NetNS
    _ending: threading.Event
    _threads: list[threading.Thread]
    _sockets: list[socket.socket]

    @classmethod
    def start(cls, name: str, netns: NetNS) -> Server:
        server = cls(name, netns, threading.Event(), [], [])
        for family in (socket.AF_INET, socket.AF_INET6):
            for port in TCP_PORTS:
                tcp = server._socket(family, socket.SOCK_STREAM, port)
                tcp.listen(128)
                server._run(server._accept, tcp)
            for port in UDP_PORTS:
                server._run(server._datagrams, server._socket(family, socket.SOCK_DGRAM, port))
        return server

    def _socket(self, family: int, kind: int, port: int) -> socket.socket:
        made = self.netns.socket(family, kind)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(("", port))
        made.settimeout(0.1)
        self._sockets.append(made)
        return made

    def _run(self, target: Callable[[socket.socket], None], argument: socket.socket) -> None:
        thread = threading.Thread(target=target, args=(argument,), daemon=True)
        thread.start()
        self._threads.append(thread)

    def _accept(self, listener: socket.socket) -> None:
        while not self._ending.is_set():
            try:
                connection, peer = listener.accept()
            except OSError:
                continue
            self._sockets.append(connection)
            connection.settimeout(0.1)
            self._run(lambda c, p=peer[0]: self._answer(c, p), connection)

    def _answer(self, connection: socket.socket, peer: str) -> None:
        with connection, contextlib.suppress(OSError):
            while not self._ending.is_set():
                with contextlib.suppress(TimeoutError):
                    data = connection.recv(65536)
                    if not data:
                        return
                    if data.startswith(b"send "):
                        connection.settimeout(PATIENCE)
                        connection.sendall(b"y" * int(data[5:]))
                        connection.settimeout(0.1)
                    elif not data.endswith(b"\0"):  # the middle of something long
                        connection.sendall(f"{self.name} {peer}\n".encode())
                    else:
                        connection.sendall(b"got it")

    def _datagrams(self, udp: socket.socket) -> None:
        if udp.family == socket.AF_INET:
            udp.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
        else:
            udp.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        while not self._ending.is_set():
            with contextlib.suppress(OSError):
                data, asked, _, peer = udp.recvmsg(65536, 64)
                answer = f"{self.name} {peer[0]} {len(data)}\n".encode()
                size = 0 if udp.getsockname()[1] == UDP_PORTS[0] else len(data)
                # from the address that was asked: a wildcard socket would choose its own
                udp.sendmsg([answer.ljust(size)], asked, 0, peer)

    def stop(self) -> None:
        self._ending.set()
        for thread in self._threads:
            thread.join(timeout=5)
        for made in self._sockets:
            made.close()


@contextmanager
def scene(
    folder: Path,
    backends: int = 3,
    inside_mtu: int = INSIDE_MTU,
    *,
    uplink_mtu: int = 1500,
    offloads: bool = False,
) -> Iterator[Scene]:
    """All of it, without a balancer and with no service's address at a backend.

    With `offloads` packets come large and with checksums to be filled in, and programs run at tc
    alone: a frame that XDP sends would be lost.
    """
    prefix = f"pclL{os.getpid()}-{next(_serial)}"
    with ExitStack() as stack:

        def namespace(name: str) -> NetNS:
            made = stack.enter_context(NetNS.create(f"{prefix}-{name}"))
            stack.callback(made.delete)
            write_sysctls(made, {"ipv4/ip_forward": 1, "ipv6/conf/all/forwarding": 1})
            with Netlink(made) as netlink:
                netlink.set_link("lo", up=True)
            return made

        router, client, director = map(namespace, ("router", "client", "director"))
        served = [namespace(f"b{number}") for number in range(1, backends + 1)]
        passing = stack.enter_context(ObjectSpec.open(compile_bpf(_PASS, folder)).load())
        with Netlink(router) as netlink:
            netlink.add_bridge("br0", mtu=inside_mtu)
            netlink.set_link("br0", up=True)
            _connect(netlink, "up0", client, 1500)
            netlink.set_link("up0", mtu=uplink_mtu)  # the client does not know
            _address(netlink, "up0", UPLINK)
            _address(netlink, "br0", ROUTER)
            for name, netns in (
                ("director", director),
                *((f"b{i}", n) for i, n in enumerate(served, 1)),
            ):
                _connect(netlink, name, netns, inside_mtu)
                netlink.set_link(name, master="br0")
                if offloads:
                    continue
                # a frame that XDP sends back is lost unless this end runs a program too
                link = router.call(
                    lambda name=name: attach_xdp(passing.programs["let_pass"], name, "native")
                )
                stack.callback(link.close)
        _host(client, CLIENT, UPLINK)
        _host(director, DIRECTOR, ROUTER)
        for number, netns in enumerate(served, 1):
            _host(netns, {v: backend_address(number, v) for v in (4, 6)}, ROUTER)
        # checksums are to be in the packets, since XDP sends them as they are
        for netns, name in (
            (client, "eth0"),
            (router, "director"),
            (router, "br0"),
            (router, "up0"),
            *((netns, "eth0") for netns in served),
        ):
            if not offloads:
                fill_in_checksums(netns, name)
        with Netlink(router) as netlink:
            for version in (4, 6):
                netlink.wait_usable("br0", ROUTER[version])
                netlink.wait_usable("up0", UPLINK[version])
                netlink.add_route(VIP[version], via=DIRECTOR[version], dev="br0")
        servers = []
        for number, netns in enumerate(served, 1):
            servers.append(Server.start(f"b{number}", netns))
            stack.callback(servers[-1].stop)
        yield Scene(client, router, director, tuple(served), tuple(servers))


def _connect(netlink: Netlink, name: str, netns: NetNS, mtu: int) -> None:
    netlink.add_veth(name, "eth0", peer_netns=netns, mtu=mtu)
    netlink.set_link(name, up=True)


def _address(netlink: Netlink, device: str, addresses: dict[int, str]) -> None:
    for version, address in addresses.items():
        netlink.add_address(device, f"{address}/{LENGTH[version]}")


def _host(netns: NetNS, addresses: dict[int, str], gateway: dict[int, str]) -> None:
    with Netlink(netns) as netlink:
        netlink.set_link("eth0", up=True)
        _address(netlink, "eth0", addresses)
        netlink.wait_operational("eth0")
        for version, address in addresses.items():
            netlink.wait_usable("eth0", address)
            netlink.add_route(f"default{version}", via=gateway[version], dev="eth0")


def fill_in_checksums(netns: NetNS, device: str) -> None:
    """Let no packet leave the device without its checksums."""
    command = ["ethtool", "-K", device, "tx", "off"]
    netns.call(lambda: subprocess.run(command, check=True, capture_output=True))
