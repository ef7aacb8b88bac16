"""The programs at sockets: what a socket of the cgroup gets, sees and may not do."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyciliumlib.flow import DropReason
from pyciliumlib.flow.metrics import Metrics
from pyciliumlib.loadbalancer import Backend, Frontend, Service
from pyciliumlib.net import NetNS
from tests import cgroups
from tests.bpf import sockets
from tests.bpf.sockets import (
    BACKENDS,
    KINDS,
    OTHER_VIP,
    OWN,
    VIP,
    Rig,
    at,
    family_of,
    spelled,
    version_of,
)

needs_cookie = pytest.mark.skipif(not sockets.TOLD, reason="no namespace's cookie is told")
kinds = pytest.mark.parametrize("kind", KINDS)
NOT_A_SERVICE = {4: "10.0.0.7", 6: "fd00::7"}
#: So many connections meet each of 4 backends, but for one run in 10 million.
MANY = 64


@pytest.fixture(scope="module")
def netns() -> Iterator[NetNS]:
    with sockets.namespace() as made:
        yield made


@pytest.fixture(scope="module")
def loaded(netns: NetNS) -> Iterator[Rig]:
    with sockets.rig(netns) as made:
        yield made


@pytest.fixture
def rig(loaded: Rig) -> Rig:
    loaded.reset()
    return loaded


def service(version: int, numbers: tuple[int, ...] = (1, 2, 3), **options: Any) -> Service:
    protocol = options.pop("protocol", "UDP")
    frontends = options.pop("frontends", [at(VIP[version], 53, protocol)])
    served = [at(BACKENDS[version][number - 1], 5353, protocol) for number in numbers]
    return Service(options.pop("name", "dns"), frontends, served, **options)


@contextlib.contextmanager
def server(rig: Rig, version: int, address: str, port: int, protocol: str) -> Iterator[None]:
    """Answers everything with its own address."""
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    ending = threading.Event()

    def answer_streams(listening: socket.socket) -> None:
        connection, _ = listening.accept()
        with connection:
            connection.settimeout(3)
            while connection.recv(100):
                connection.sendall(address.encode())

    def answer_datagram(listening: socket.socket) -> None:
        _, peer = listening.recvfrom(100)
        listening.sendto(address.encode(), peer)

    def run(answer: Callable[[socket.socket], None]) -> None:
        while not ending.is_set():
            with contextlib.suppress(TimeoutError, ConnectionError):
                answer(listening)

    kind = socket.SOCK_STREAM if protocol == "TCP" else socket.SOCK_DGRAM
    with rig.netns.socket(family, kind) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((address, port))
        listening.settimeout(0.05)
        if protocol == "TCP":
            listening.listen()
        answer = answer_streams if protocol == "TCP" else answer_datagram
        thread = threading.Thread(target=run, args=(answer,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            ending.set()
            thread.join()


# ---------------------------------------------------------------------- who is met


@kinds
@pytest.mark.smoke
def test_each_backend_is_met(rig: Rig, kind: str) -> None:
    """A connection goes to any of them, and each has its share."""
    version = version_of(kind)
    rig.serve(service(version))
    met = rig.connected(kind, VIP[version], 53, 300)
    assert set(met) == {at(BACKENDS[version][n], 5353, "UDP") for n in range(3)}
    assert min(met.values()) > 60


STATES = ("active", "active", "terminating", "quarantined")
POLICIES = st.sampled_from(["Cluster", "Local"])
KIND = st.sampled_from(["LoadBalancer", "ClusterIP", "externalIPs"])


@st.composite
def histories(draw: st.DrawFn) -> list[list[Service]]:
    """Sets of services, one after the other; no two have the same frontend."""
    return [draw(_services()) for _ in range(draw(st.integers(1, 3)))]


@st.composite
def _services(draw: st.DrawFn) -> list[Service]:
    made = []
    spots = [(vip[version], port, version) for vip in (VIP, OTHER_VIP)
             for version in (4, 6) for port in (53, 54)]  # fmt: skip
    places = draw(st.permutations(spots))
    for number in range(draw(st.integers(1, 3))):
        mine = places[2 * number : 2 * number + 2]
        frontends = [Frontend(vip, port, "UDP", draw(KIND)) for vip, port, _ in mine]
        backends = [
            Backend(BACKENDS[version][n], 5353, "UDP", state=STATES[n % 4], node=f"n{n % 2}")
            for n in draw(st.sets(st.integers(0, 5), max_size=4))
            for version in sorted({version for _, _, version in mine})
        ]
        made.append(
            Service(
                f"s{number}",
                frontends,
                backends,
                algorithm=draw(st.sampled_from(["random", "maglev"])),
                affinity_timeout=draw(st.sampled_from([0, 0, 600])),
                external_policy=draw(POLICIES),
                internal_policy=draw(POLICIES),
                source_ranges=draw(st.sampled_from([[], ["198.51.100.0/24"]])),
            )
        )
    return made


@given(histories())
@settings(deadline=None, max_examples=15)
def test_the_programs_do_what_the_model_says(loaded: Rig, history: list[list[Service]]) -> None:
    """For every place and kind of client, after every change: all candidates, and no others."""
    rig = loaded
    rig.reset()
    for wanted in history:
        rig.serve(*wanted)
        for kind in KINDS:
            version = version_of(kind)
            for vip in (VIP[version], OTHER_VIP[version], NOT_A_SERVICE[version]):
                for port in (53, 54, 55):
                    _compare(rig, kind, vip, port)


def _compare(rig: Rig, kind: str, address: str, port: int) -> None:
    client = at("::" if ":" in address else "0.0.0.0", 1).partition("/")[0]
    placed = rig.model.where(client, at(address, port, "UDP"), direction="socket")
    if placed.dropped:
        before = rig.refused()
        with pytest.raises(OSError) as caught:
            rig.connected(kind, address, port, 1)
        assert (caught.value.errno, rig.refused()) == (sockets.UNREACHABLE, before + 1)
        return
    met = rig.connected(kind, address, port, MANY)
    if placed.service is None:
        assert set(met) == {at(address, port, "UDP")}
    elif rig.model.services[placed.service].affinity_timeout:
        assert len(met) == 1 and set(met) <= set(map(str, placed.candidates))
    else:
        assert set(met) == set(map(str, placed.candidates))


def test_affinity(rig: Rig, netns: NetNS) -> None:
    """One backend for a namespace until it is silent for the timeout, or the backend goes."""
    rig.serve(service(4, affinity_timeout=1))
    (first,) = rig.connected("IPv4", VIP[4], 53, MANY)
    ((key, _),) = rig.maps["lb_affinity"].items()
    told = netns.cookie.to_bytes(8, "little") if sockets.TOLD else key.client.packed[-8:]
    assert (key.netns, key.client.packed[-8:]) == (4, told)
    met = {first}
    for _ in range(20):
        time.sleep(1.1)
        met |= set(rig.connected("IPv4", VIP[4], 53, 2))
        if len(met) > 1:
            break
    assert len(met) == 2
    rig.serve(service(4, affinity_timeout=600))
    (first,) = rig.connected("IPv4", VIP[4], 53, 1)
    number = BACKENDS[4].index(first.partition(":")[0]) + 1
    rig.serve(service(4, tuple({1, 2, 3} - {number}), affinity_timeout=600))
    (second,) = rig.connected("IPv4", VIP[4], 53, MANY)
    assert second != first


def test_affinity_of_namespaces(rig: Rig) -> None:
    """Each namespace has its own."""
    rig.serve(service(4, affinity_timeout=600))
    rig.connected("IPv4", VIP[4], 53, 1)
    with sockets.namespace() as other, other.enter(), socket.socket(type=socket.SOCK_DGRAM) as udp:
        udp.connect((VIP[4], 53))
    assert len(rig.maps["lb_affinity"]) == 2


# ---------------------------------------------------------------------- what is seen


@kinds
@pytest.mark.smoke
def test_tcp(rig: Rig, kind: str) -> None:
    """The backend answers; the peer is the service."""
    version = version_of(kind)
    rig.serve(service(version, (1,), protocol="TCP"))
    backend = BACKENDS[version][0]
    with server(rig, version, backend, 5353, "TCP"), rig.socket(kind, "TCP") as client:
        client.connect((spelled(kind, VIP[version]), 53))
        client.sendall(b"who?")
        assert client.recv(100).decode() == backend
        assert client.getpeername()[:2] == (spelled(kind, VIP[version]), 53)
        assert str(rig.peers()[sockets.cookie_of(client)].peer[0]) == backend


@kinds
@pytest.mark.smoke
def test_unconnected_udp(rig: Rig, kind: str) -> None:
    """As a resolver does that trusts no answer but from the address that it asked."""
    version = version_of(kind)
    rig.serve(service(version, (1, 2)))
    with contextlib.ExitStack() as stack:
        for backend in BACKENDS[version][:2]:
            stack.enter_context(server(rig, version, backend, 5353, "UDP"))
        client = stack.enter_context(rig.socket(kind))
        answers = set()
        for _ in range(40):
            client.sendto(b"who?", (spelled(kind, VIP[version]), 53))
            answer, sender = client.recvfrom(100)
            assert sender[:2] == (spelled(kind, VIP[version]), 53)
            answers.add(answer.decode())
        assert answers == set(BACKENDS[version][:2])
        client.sendto(b"who?", (spelled(kind, BACKENDS[version][2]), 5353))  # nobody is there


@kinds
def test_connected_udp(rig: Rig, kind: str) -> None:
    """One backend for all datagrams, and the service's address in each answer."""
    version = version_of(kind)
    rig.serve(service(version, (1,)))
    with server(rig, version, BACKENDS[version][0], 5353, "UDP"), rig.socket(kind) as client:
        client.connect((spelled(kind, VIP[version]), 53))
        for _ in range(3):
            client.send(b"who?")
            answer, sender = client.recvfrom(100)
            assert (answer.decode(), sender[1]) == (BACKENDS[version][0], 53)
            assert sender[0] == client.getpeername()[0] == spelled(kind, VIP[version])


@kinds
def test_one_socket_and_two_services(rig: Rig, kind: str) -> None:
    """Each answer comes from the service that was asked."""
    version = version_of(kind)
    rig.serve(
        service(version, (1,)),
        service(version, (2,), name="ntp", frontends=[at(OTHER_VIP[version], 123, "UDP")]),
    )
    with contextlib.ExitStack() as stack:
        for backend in BACKENDS[version][:2]:
            stack.enter_context(server(rig, version, backend, 5353, "UDP"))
        client = stack.enter_context(rig.socket(kind))
        asked = [(VIP[version], 53), (OTHER_VIP[version], 123)] * 3
        for address, port in asked:
            client.sendto(b"who?", (spelled(kind, address), port))
        seen = [client.recvfrom(100)[1][:2] for _ in asked]
        assert sorted(seen) == sorted((spelled(kind, address), port) for address, port in asked)


@kinds
def test_who_asks_a_backend_itself_sees_it(rig: Rig, kind: str) -> None:
    """Also a socket that asked for the service before, and was not answered."""
    version = version_of(kind)
    rig.serve(service(version, (1,), protocol="TCP"))
    with rig.socket(kind, "TCP") as client:
        client.settimeout(None)  # else its next connect() would tell the first one's end
        with pytest.raises(ConnectionRefusedError):
            client.connect((spelled(kind, VIP[version]), 53))
        with server(rig, version, BACKENDS[version][0], 5353, "TCP"):
            client.connect((spelled(kind, BACKENDS[version][0]), 5353))
            assert client.getpeername()[:2] == (spelled(kind, BACKENDS[version][0]), 5353)


@kinds
@pytest.mark.parametrize("protocol", ["TCP", "UDP"])
def test_closed_sockets_are_forgotten(rig: Rig, kind: str, protocol: str) -> None:
    """The table holds sockets that live, so that it need not be large."""
    version = version_of(kind)
    rig.serve(service(version, (1,), protocol=protocol))
    with server(rig, version, BACKENDS[version][0], 5353, protocol):
        for _ in range(20):
            with rig.socket(kind, protocol) as client:
                client.connect((spelled(kind, VIP[version]), 53))
                assert len(rig.asked()) == 1
        assert rig.asked() == []


# ---------------------------------------------------------------------- what is refused


REFUSED = {
    "no backend": ([], VIP, 53),
    "quarantined": ("quarantined", VIP, 53),
    "another port": ([1], VIP, 54),
}


@kinds
@pytest.mark.parametrize("protocol", ["TCP", "UDP"])
@pytest.mark.parametrize("why", REFUSED)
def test_refused(rig: Rig, kind: str, protocol: str, why: str) -> None:
    """connect() and sendto() fail with EHOSTUNREACH, and are counted."""
    version = version_of(kind)
    backends, address, port = REFUSED[why]
    one = service(version, (1,) if backends else (), protocol=protocol)
    if backends == "quarantined":
        one = one.with_backends([one.backends[0].in_state("quarantined")])
    rig.serve(one)
    target = spelled(kind, address[version]), port
    with rig.socket(kind, protocol) as client:
        with pytest.raises(OSError) as caught:
            client.connect(target)
        assert caught.value.errno == sockets.UNREACHABLE
        if protocol == "UDP":
            with pytest.raises(OSError) as caught:
                client.sendto(b"who?", target)
            assert caught.value.errno == sockets.UNREACHABLE
    reason = DropReason.NO_SERVICE_BACKEND
    assert Metrics.read(rig.maps["metrics"]).packets(reason) == (1 if protocol == "TCP" else 2)
    assert rig.asked() == []


@kinds
def test_the_error_of_older_kernels(netns: NetNS, kind: str) -> None:
    """Where a program cannot choose it, the call still fails."""
    version = version_of(kind)
    with sockets.rig(netns, own_errors=False) as rig:
        rig.serve(service(version, ()))
        with rig.socket(kind) as client, pytest.raises(PermissionError):
            client.connect((spelled(kind, VIP[version]), 53))


@kinds
def test_others_pass(rig: Rig, kind: str) -> None:
    """Addresses of no service, other ports of the node's own, and UDP that asks for its route."""
    version = version_of(kind)
    rig.serve(service(version, (1,), frontends=[
        at(VIP[version], 53, "UDP"), Frontend(OWN[version], 30053, "UDP", "NodePort"),
    ]))  # fmt: skip
    for address, port in ((NOT_A_SERVICE[version], 53), (OWN[version], 53)):
        assert set(rig.connected(kind, address, port, 3)) == {at(address, port, "UDP")}
    with rig.socket(kind) as client:
        client.connect((spelled(kind, VIP[version]), 0))
    assert rig.refused() == 0
    backend = at(BACKENDS[version][0], 5353, "UDP")
    assert set(rig.connected(kind, OWN[version], 30053, 3)) == {backend}


def test_another_cgroup_is_left_alone(rig: Rig) -> None:
    """A process outside reaches the address itself, as if there were no balancer."""
    rig.serve(service(4, (1,)))
    assert set(rig.connected("IPv4", VIP[4], 53, 2)) == {at(BACKENDS[4][0], 5353, "UDP")}
    child = os.fork()
    if not child:
        status = 1
        with contextlib.suppress(BaseException):
            cgroups.leave()
            status = int(set(rig.connected("IPv4", VIP[4], 53, 2)) != {at(VIP[4], 53, "UDP")})
        os._exit(status)
    assert os.waitpid(child, 0)[1] == 0


# ---------------------------------------------------------------------- NodePorts


LOOPBACK = {"IPv4": ("127.0.0.1", "127.9.9.9", "0.0.0.0"), "IPv6": ("::1", "::"),
            "v4-mapped": ("127.0.0.1",)}  # fmt: skip
ANY = {4: "0.0.0.0", 6: "::"}


def node_port(version: int, protocol: str = "UDP") -> Service:
    frontend = Frontend(ANY[version], 30053, protocol, "NodePort")
    return service(version, (1, 2), protocol=protocol, frontends=[frontend])


@needs_cookie
@kinds
def test_node_ports_at_loopback(rig: Rig, kind: str) -> None:
    """The node's own clients find them there, others of the machine have their own loopback."""
    version = version_of(kind)
    rig.serve(node_port(version))
    for address in LOOPBACK[kind]:
        met = rig.connected(kind, address, 30053, 40)
        assert set(met) == {at(BACKENDS[version][n], 5353, "UDP") for n in range(2)}
        assert rig.refused() == 0
    with (
        sockets.namespace() as pod,
        pod.enter(),
        socket.socket(family_of(kind), socket.SOCK_DGRAM) as client,
    ):
        client.connect((spelled(kind, LOOPBACK[kind][0]), 30053))
        assert client.getpeername()[:2] == (spelled(kind, LOOPBACK[kind][0]), 30053)
    assert rig.asked() == []


BINDS = [
    (4, 4, "0.0.0.0", True), (4, 4, OWN[4], True), (4, 4, "127.0.0.1", True),
    (4, 4, BACKENDS[4][0], False), (4, 6, "::", True), (4, 6, OWN[6], False),
    (6, 6, "::", True), (6, 6, OWN[6], True), (6, 6, "::1", True), (6, 4, "0.0.0.0", False),
]  # fmt: skip


@needs_cookie
@pytest.mark.parametrize("protocol", ["TCP", "UDP"])
@pytest.mark.parametrize(("version", "family", "address", "refused"), BINDS)
def test_binds(
    rig: Rig, protocol: str, version: int, family: int, address: str, refused: bool
) -> None:
    """What a NodePort takes away nobody may wait for; other ports and addresses are free."""
    rig.serve(node_port(version, protocol))
    kind = "IPv4" if family == 4 else "IPv6"
    with rig.socket(kind, protocol) as listening:
        if refused:
            with pytest.raises(OSError) as caught:
                listening.bind((address, 30053))
            assert caught.value.errno == sockets.IN_USE
        listening.bind((address, 30054 if refused else 30053))
    other = "TCP" if protocol == "UDP" else "UDP"
    with rig.socket(kind, other) as listening:
        listening.bind((address, 30053))
    rig.serve()
    with rig.socket(kind, protocol) as listening:
        listening.bind((address, 30053))


def test_binds_in_a_pod(rig: Rig) -> None:
    """A pod's ports are its own; and a LoadBalancer's address is no port of the node."""
    rig.serve(node_port(4), service(4, name="lb", frontends=[at(BACKENDS[4][6], 30055, "UDP")]))
    with sockets.namespace() as pod, pod.socket(socket.AF_INET, socket.SOCK_DGRAM) as listening:
        listening.bind((OWN[4], 30053))
    with rig.socket("IPv4") as listening:
        listening.bind((BACKENDS[4][6], 30055))


@needs_cookie
def test_host_only(netns: NetNS) -> None:
    """The setting leaves the sockets of other namespaces alone."""
    with sockets.namespace() as pod, sockets.rig(netns, host_only=True) as rig:
        rig.serve(service(4, (1,)))
        assert set(rig.connected("IPv4", VIP[4], 53, 2)) == {at(BACKENDS[4][0], 5353, "UDP")}
        before = rig.translated()
        with pod.enter(), socket.socket(type=socket.SOCK_DGRAM) as client:
            client.connect((VIP[4], 53))
        assert rig.translated() == before


def test_the_initial_namespace_without_its_cookie(netns: NetNS) -> None:
    """It is the node's where no cookie is given, so this one is not."""
    with sockets.rig(netns, host_netns=0, host_only=True) as rig:
        rig.serve(service(4, (1,)))
        assert set(rig.connected("IPv4", VIP[4], 53, 1)) == {at(VIP[4], 53, "UDP")}


# ---------------------------------------------------------------------- under change


@pytest.mark.parametrize("version", [4, 6])
def test_a_thousand_changes(rig: Rig, version: int) -> None:
    """Clients that connect meanwhile are never refused, and never meet one who was not there."""
    kind = "IPv4" if version == 4 else "IPv6"
    sets = [(1, 2), (1, 3), (1, 2, 3), (1,), (1, 4, 5), (2, 3), (1, 5)]
    rig.serve(service(version))
    ending, failed, count = threading.Event(), [], [0, 0]

    def connect(index: int) -> None:
        with rig.netns.enter():
            while not ending.is_set():
                with socket.socket(family_of(kind), socket.SOCK_DGRAM) as client:
                    try:
                        client.connect((VIP[version], 53))
                    except OSError as error:
                        failed.append(error)
                    count[index] += 1

    clients = [threading.Thread(target=connect, args=(index,)) for index in range(2)]
    for client in clients:
        client.start()
    for number in range(1000):
        algorithm = ("random", "maglev")[number // 7 % 2]
        rig.serve(service(version, sets[number % 7], algorithm=algorithm))
    ending.set()
    for client in clients:
        client.join()
    assert failed == []
    assert min(count) > 1000
    assert rig.refused() == 0


def test_a_backend_that_goes_just_now(rig: Rig) -> None:
    """Between an entry and the backend that it leads to, a change may come: another is chosen."""
    rig.serve(service(4, (1, 2)))
    row = rig.maps["lb_backends"].lookup(1)
    rig.maps["lb_backends"].update(1, row._replace(revision=row.revision + 1))
    refused = 0
    for _ in range(400):
        with rig.socket("IPv4") as client:
            refused += client.connect_ex((VIP[4], 53)) != 0
    assert 0 < refused < 100  # about an eighth by three tries, while one would refuse half


def test_a_full_table_gives_room(rig: Rig) -> None:
    """More sockets than are remembered: the oldest lose the service's name, none is refused."""
    rig.serve(service(4, (1,)))
    limit = rig.maps["lb_reverse_sk"].max_entries
    with contextlib.ExitStack() as stack, rig.netns.enter():
        for _ in range(limit + 2000):
            client = stack.enter_context(socket.socket(type=socket.SOCK_DGRAM))
            client.connect((VIP[4], 53))
        assert client.getpeername() == (VIP[4], 53)
    assert rig.refused() == 0
