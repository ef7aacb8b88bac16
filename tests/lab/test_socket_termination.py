"""Sockets whose backend is gone are ended, and only those, also while everything changes."""

from __future__ import annotations

import contextlib
import errno
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from pyciliumlib.loadbalancer import (
    Service,
)
from pyciliumlib.loadbalancer.program import SocketBalancer
from tests import cgroups
from tests.lab import socket_scene
from tests.lab.socket_scene import (
    PORT,
    VIP,
    Client,
    Scene,
    at,
    cookie_of,
    kinds,
    protocols,
    version_of,
    wait_for,
)


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    with socket_scene.scene() as made:
        yield made


@pytest.fixture
def balancer(scene: Scene) -> Iterator[SocketBalancer]:
    with scene.balancer() as made:
        yield made


@pytest.fixture
def terminating(scene: Scene) -> Iterator[SocketBalancer]:
    with scene.balancer(config={"socket_terminate": True}) as made:
        yield made


@kinds
@protocols
def test_sockets_of_a_backend_that_is_gone(
    scene: Scene, terminating: SocketBalancer, kind: str, protocol: str
) -> None:
    """Those that got it are ended, and no others: not even who asked for the backend itself."""
    balancer, version = terminating, version_of(kind)
    balancer.upsert(scene.service(protocol))
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(Client(scene.client, kind, protocol).connect())
                   for _ in range(30)]  # fmt: skip
        homes = [client.ask() for client in clients]
        assert set(homes) == {"b1", "b2", "b3"}
        b1 = scene.backends[0]
        direct = stack.enter_context(Client(scene.other, kind, protocol))
        direct.connect(b1.ip4 if version == 4 else b1.ip6, 8000 + PORT[protocol])
        assert direct.ask() == "b1"
        balancer.upsert(scene.service(protocol, 2, 3))
        wait_for(lambda: balancer.ended == homes.count("b1"))
        for client, home in zip(clients, homes, strict=True):
            if home == "b1":
                with pytest.raises(ConnectionAbortedError):
                    client.sock.recv(100)
            else:
                assert client.ask() == home
        assert direct.ask() == "b1"
        time.sleep(1.3)  # the later looks end no more
        assert balancer.ended == homes.count("b1")
        assert len(list(balancer.connections())) == len(homes) - homes.count("b1")


def test_sockets_that_are_not_connected_to_it(scene: Scene, terminating: SocketBalancer) -> None:
    """One that sends to the service asks the next backend; one that went elsewhere stays."""
    terminating.upsert(scene.service("UDP", 1))
    service = (VIP[4], 53)
    with (
        Client(scene.client, "IPv4", "UDP") as resolver,
        Client(scene.client, "IPv4", "UDP") as mover,
    ):
        for client in (resolver, mover):
            client.sock.sendto(b"who?", service)
            assert client.sock.recvfrom(100) == (b"b1\n", service)
        mover.connect(scene.backends[1].ip4, 8053)
        terminating.upsert(scene.service("UDP", 3))
        time.sleep(1.3)
        resolver.sock.sendto(b"who?", service)
        assert resolver.sock.recvfrom(100) == (b"b3\n", service)
        assert mover.ask() == "b2"
    assert terminating.ended == 0
    asked = terminating._object.maps["lb_reverse_sk"]
    assert {str(key.addr) for key in asked} == {str(scene.backends[2].ip4)}


def test_a_socket_that_was_being_connected(scene: Scene, terminating: SocketBalancer) -> None:
    """The kernel lists it a moment after it was translated, when its backend has gone already."""
    terminating.upsert(scene.service("TCP", 1))
    with Client(scene.client, "IPv4").connect(), cgroups.outside():
        asked = terminating._object.maps["lb_reverse_sk"]
        ((key, value),) = asked.items()
        late = Client(scene.client, "IPv4")  # no program sees what it does
        asked.update(key._replace(socket=cookie_of(late.sock)), value)
        terminating.upsert(scene.service("TCP", 2))
        wait_for(lambda: terminating.ended == 1)
        late.connect(scene.backends[0].ip4, 8080)
        wait_for(lambda: terminating.ended == 2)
        with late, pytest.raises(ConnectionAbortedError):
            late.sock.recv(1)


def test_a_backend_of_two_services(scene: Scene, terminating: SocketBalancer) -> None:
    """Sockets of the service that it left are ended, those of the other one go on."""
    first = scene.service("TCP", 1)
    second = scene.service("TCP", 1, name="second", frontends=[at(VIP[4], 81, "TCP"),
                                                              at(VIP[6], 81, "TCP")])  # fmt: skip
    terminating.upsert(first, second)
    with Client(scene.client, "IPv4").connect() as one, Client(scene.client, "IPv4") as two:
        two.connect(port=81)
        assert one.ask() == two.ask() == "b1"
        terminating.delete("default/tcp")
        wait_for(lambda: terminating.ended == 1)
        with pytest.raises(ConnectionAbortedError):
            one.sock.recv(1)
        assert two.ask() == "b1"


def test_a_backend_that_comes_back(scene: Scene, terminating: SocketBalancer) -> None:
    """Who connected before is ended, who connects afterwards is not."""
    terminating.upsert(scene.service("TCP", 1))
    with Client(scene.client, "IPv4").connect() as before, Client(scene.client, "IPv4") as after:
        assert before.ask() == "b1"
        terminating.upsert(scene.service("TCP", 2))
        terminating.upsert(scene.service("TCP", 1))
        after.connect()
        assert after.ask() == "b1"
        wait_for(lambda: terminating.ended == 1)
        time.sleep(1.3)
        assert after.ask() == "b1"
        with pytest.raises(ConnectionAbortedError):
            before.sock.recv(1)


def test_a_connection_that_nobody_answers(scene: Scene, terminating: SocketBalancer) -> None:
    """A client that waits for a handshake is ended as well."""
    nobody = "10.244.1.99"
    scene.node.netlink.add_route(nobody, dev=scene.backends[0].host_ifname)
    terminating.upsert(Service("web", [at(VIP[4], 80, "TCP")], [f"{nobody}:80"]))
    scene.node.netlink.add_neighbour(
        scene.backends[0].host_ifname, nobody, scene.backends[0].host_mac
    )
    with Client(scene.client, "IPv4") as client:
        client.sock.setblocking(False)
        with pytest.raises(BlockingIOError):
            client.connect()
        terminating.delete("default/web")
        wait_for(lambda: terminating.ended == 1)
        assert client.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNABORTED


@protocols
def test_draining_ends_nothing(scene: Scene, terminating: SocketBalancer, protocol: str) -> None:
    """What is connected stays; new ones go elsewhere."""
    terminating.upsert(scene.service(protocol))
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(Client(scene.client, "IPv4", protocol).connect())
                   for _ in range(12)]  # fmt: skip
        homes = [client.ask() for client in clients]
        terminating.drain(scene.served(4, protocol, 1)[0])
        answers = set()
        for _ in range(30):
            with Client(scene.client, "IPv4", protocol).connect() as client:
                answers.add(client.ask())
        assert answers == {"b2", "b3"}
        time.sleep(0.3)
        assert [client.ask() for client in clients] == homes
    assert terminating.ended == 0


def test_without_the_setting_nobody_is_ended(scene: Scene, balancer: SocketBalancer) -> None:
    """A connection outlives its backend's membership, as its packets still arrive."""
    balancer.upsert(scene.service("TCP", 1))
    with Client(scene.client, "IPv4").connect() as client:
        assert client.ask() == "b1"
        balancer.upsert(scene.service("TCP", 2))
        time.sleep(0.3)
        assert client.ask() == "b1"
        assert balancer.ended == 0


def test_two_thousand_sockets(scene: Scene, terminating: SocketBalancer) -> None:
    """Half of them lose their backend, at once; the other half keeps it."""
    terminating.upsert(scene.service("UDP", 1, 2))
    with contextlib.ExitStack() as stack:
        clients = []
        with scene.client.netns.enter():
            for _ in range(2000):
                client = stack.enter_context(socket.socket(type=socket.SOCK_DGRAM))
                client.connect((VIP[4], 53))
                clients.append(client)
        got = terminating.backend_counts()
        lost = sum(
            count for backend, count in got.items() if backend.address == scene.backends[0].ip4
        )
        terminating.upsert(scene.service("UDP", 2))
        wait_for(lambda: terminating.ended == lost)
        ended = [c for c in clients if c.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)]
        assert 800 < len(ended) == lost < 1200


# ---------------------------------------------------------------------- under change


@pytest.mark.parametrize("version", [4, 6])
def test_changes_under_connections(scene: Scene, terminating: SocketBalancer, version: int) -> None:
    """A thousand: connections at the backend that stays go on, and new ones always come about."""
    kind = f"IPv{version}"
    terminating.upsert(scene.service("TCP", 1))
    ending = threading.Event()
    failed: list[str] = []
    kept, made = [0] * 3, [0] * 2

    def keep(index: int) -> None:
        try:
            with Client(scene.client, kind).connect() as client:
                ready.wait(5)
                while not ending.is_set():
                    assert client.ask() == "b1"
                    kept[index] += 1
        except (OSError, AssertionError) as error:
            failed.append(f"kept: {error!r}")

    def connect(index: int) -> None:
        while not ending.is_set():
            try:
                with Client(scene.client, kind).connect() as client:
                    made[index] += 1
                    with contextlib.suppress(ConnectionAbortedError):  # its backend has just gone
                        client.ask()
            except OSError as error:
                failed.append(f"made: {error!r}")

    ready = threading.Barrier(4)
    keepers = [threading.Thread(target=keep, args=(index,)) for index in range(3)]
    for thread in keepers:
        thread.start()
    ready.wait(5)
    makers = [threading.Thread(target=connect, args=(index,)) for index in range(2)]
    for thread in makers:
        thread.start()
    sets = [(1, 2), (1, 3), (1,), (1, 2, 3)]
    for number in range(1000):
        terminating.upsert(scene.service("TCP", *sets[number % 4]))
    ending.set()
    for thread in (*keepers, *makers):
        thread.join()
    assert failed == []
    assert min(kept) > 10 and min(made) > 10
