"""Sockets listed and ended from outside, and the namespaces that they may be in."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import subprocess
from collections.abc import Iterator

import pytest

from pyciliumlib.kernel import probe
from pyciliumlib.net import (
    Netlink,
    NetNS,
    SocketDiag,
    check_can_destroy,
    every_netns,
    netns_inode_of,
)
from pyciliumlib.types import Protocol, parse_address

SO_COOKIE = 57
CASES = [
    (socket.AF_INET, "127.0.0.1", "127.0.0.1"),
    (socket.AF_INET6, "::1", "::1"),
    (socket.AF_INET6, "::ffff:127.0.0.1", "127.0.0.1"),
]
cases = pytest.mark.parametrize(("family", "to", "seen"), CASES, ids=["IPv4", "IPv6", "mapped"])
protocols = pytest.mark.parametrize("protocol", [Protocol.TCP, Protocol.UDP], ids=str)


@pytest.fixture
def netns() -> Iterator[NetNS]:
    """A namespace whose loopback device is up."""
    made = NetNS.create(f"pcle-diag-{os.getpid()}")
    with Netlink(made) as netlink:
        netlink.set_link("lo", up=True)
    yield made
    made.delete()


@contextlib.contextmanager
def connected(netns: NetNS, family: int, to: str, protocol: Protocol) -> Iterator[socket.socket]:
    """A socket that is connected to another one here."""
    kind = socket.SOCK_STREAM if protocol is Protocol.TCP else socket.SOCK_DGRAM
    with netns.socket(family, kind) as server, netns.socket(family, kind) as client:
        server.bind((to, 0))
        if protocol is Protocol.TCP:
            server.listen()
        client.connect(server.getsockname()[:2])
        yield client


def cookie_of(made: socket.socket) -> int:
    return int.from_bytes(made.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8), "little")


@cases
@protocols
def test_listed_and_ended(
    netns: NetNS, family: int, to: str, seen: str, protocol: Protocol
) -> None:
    """By its cookie and peer; its owner is told, and what is gone is no error."""
    with connected(netns, family, to, protocol) as client, SocketDiag(netns) as diag:
        (found,) = [one for one in diag.connected(protocol) if one.cookie == cookie_of(client)]
        assert found.peer == (parse_address(seen), client.getpeername()[1])
        assert found.protocol is protocol and found.family == family
        assert diag.destroy(found)
        with pytest.raises(ConnectionAbortedError):
            client.recv(1)
        assert not diag.destroy(found)
        assert cookie_of(client) not in {one.cookie for one in diag.connected(protocol)}


@protocols
def test_only_sockets_with_a_peer_are_listed(netns: NetNS, protocol: Protocol) -> None:
    """Neither listeners nor datagram sockets that are not connected."""
    kind = socket.SOCK_STREAM if protocol is Protocol.TCP else socket.SOCK_DGRAM
    with netns.socket(socket.AF_INET, kind) as server, SocketDiag(netns) as diag:
        server.bind(("127.0.0.1", 0))
        if protocol is Protocol.TCP:
            server.listen()
        assert diag.connected(protocol) == []


def test_a_thousand_sockets(netns: NetNS) -> None:
    """The kernel answers in many messages: all are read, none twice."""
    with contextlib.ExitStack() as stack:
        with netns.enter():
            made = [stack.enter_context(socket.socket(type=socket.SOCK_DGRAM)) for _ in range(1000)]
            for client in made:
                client.connect(("127.0.0.1", 9))
        with SocketDiag(netns) as diag:
            cookies = [one.cookie for one in diag.connected(Protocol.UDP)]
    assert len(cookies) == len(set(cookies)) == 1000


def test_this_kernel_can(netns: NetNS) -> None:
    """What is tried is what is needed, and it leaves nothing behind."""
    check_can_destroy(netns)


def test_cookies_of_namespaces(netns: NetNS) -> None:
    """Each has its own, and keeps it."""
    if not probe("netns_cookie").has("netns_cookie"):
        pytest.skip("the kernel tells no namespace's cookie before 5.14")
    with NetNS.current() as here:
        assert here.cookie != netns.cookie == netns.cookie


def test_every_namespace(netns: NetNS) -> None:
    """Named ones and those of processes, once each."""
    with subprocess.Popen(["unshare", "--net", "sleep", "60"]) as process:
        try:
            with NetNS.current() as here:
                while (inode := netns_inode_of(process.pid)) == here.inode:
                    pass
                inodes = [one.inode for one in every_netns()]
                assert {here.inode, netns.inode, inode} <= set(inodes)
                assert len(inodes) == len(set(inodes))
        finally:
            process.kill()


def test_errors_keep_the_kernels_errno(netns: NetNS) -> None:
    """A message that the kernel refuses is an error with its reason."""
    with SocketDiag(netns) as diag, pytest.raises(OSError) as caught:
        diag._ask(99, 0, b"")
    assert caught.value.errno == errno.EINVAL
