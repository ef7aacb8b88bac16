"""`SocketBalancer` with real clients and servers in namespaces: who answers, and who is ended."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from typing import Any

import pytest

from pyciliumlib import errors
from pyciliumlib.flow import DropReason
from pyciliumlib.kernel import probe
from pyciliumlib.loadbalancer import (
    Backend,
    Frontend,
    LocalNode,
    Service,
    ServiceKey,
    Why,
)
from pyciliumlib.loadbalancer.program import SocketBalancer
from tests.lab import socket_scene
from tests.lab.socket_scene import (
    KINDS,
    PORT,
    SIZES,
    VIP,
    Client,
    Scene,
    at,
    kinds,
    protocols,
    version_of,
)


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    with socket_scene.scene() as made:
        yield made


@pytest.fixture
def balancer(scene: Scene) -> Iterator[SocketBalancer]:
    with scene.balancer() as made:
        yield made


# ---------------------------------------------------------------------- who answers


@pytest.mark.smoke
@kinds
@protocols
def test_every_backend_answers(scene: Scene, kind: str, protocol: str) -> None:
    """In the service's name, and it sees the client's own address."""
    with SocketBalancer(scene.cgroup, sizes=SIZES) as balancer:
        balancer.upsert(scene.service(protocol))
        answers = set()
        for _ in range(40):
            with Client(scene.client, kind, protocol).connect() as client:
                answers.add(client.ask())
                assert client.peer == client.to(VIP[version_of(kind)], PORT[protocol])
        assert answers == {"b1", "b2", "b3"}
        with scene.backends[0].serve(f"9000/{protocol}") as server:
            address = scene.backends[0].ip4 if kind != "IPv6" else scene.backends[0].ip6
            balancer.upsert(Service(
                "seen", [at(VIP[version_of(kind)], 9, protocol)], [at(address, 9000, protocol)],
            ))  # fmt: skip
            with Client(scene.client, kind, protocol).connect(port=9) as client:
                assert client.ask() == "b1"
            (request,) = server.requests
            assert request.peer in (scene.client.ip4, scene.client.ip6)


def test_where_says_who_may_answer(scene: Scene, balancer: SocketBalancer) -> None:
    """The candidates; with affinity the one that the namespace met; and why it goes nowhere."""
    balancer.upsert(scene.service(affinity_timeout=600), scene.service("UDP"))
    to = at(VIP[4], 80, "TCP")
    before = balancer.where(to, scene.client.netns)
    assert (before.why, before.backend, len(before.candidates)) == (Why.RANDOM, None, 3)
    with Client(scene.client, "IPv4").connect() as client:
        answered = client.ask()
    after = balancer.where(to, scene.client.netns)
    assert after.why is Why.AFFINITY
    assert str(after.backend) == scene.served(4, "TCP", int(answered[1]))[0]
    for _ in range(20):
        with Client(scene.client, "IPv4").connect() as client:
            assert client.ask() == answered
    assert balancer.where(to, scene.other.netns).why is Why.RANDOM
    assert balancer.where(at(VIP[6], 80, "TCP"), scene.client.netns).why is Why.RANDOM
    assert balancer.where(to).forwarding is None
    assert balancer.where(at(VIP[4], 53, "UDP"), scene.client.netns).why is Why.RANDOM
    assert balancer.where(at(VIP[4], 81, "TCP")).why is Why.UNKNOWN_PORT
    assert balancer.where("10.96.0.99:80").why is Why.NO_SERVICE


@pytest.mark.parametrize(
    ("external", "internal", "answer"),
    [
        ("Cluster", "Cluster", {"b1", "b2", "b3"}),
        ("Local", "Cluster", {"b1", "b2", "b3"}),
        ("Cluster", "Local", {"b1"}),
        ("Local", "Local", {"b1"}),
    ],
)
def test_traffic_policies(scene: Scene, external: str, internal: str, answer: set[str]) -> None:
    """The internal policy is that of clients in the cluster, whatever the external one says."""
    service = scene.service(external_policy=external, internal_policy=internal)
    placed = [
        Backend(b.address, b.port, node="n1" if b.address in (scene.backends[0].ip4,) else "n2")
        for b in service.backends
        if b.address.version == 4
    ]
    with scene.balancer(node=LocalNode("n1")) as balancer:
        balancer.upsert(
            Service("web", [at(VIP[4], 80, "TCP")], placed, external_policy=external,
                    internal_policy=internal)
        )  # fmt: skip
        seen = set()
        for _ in range(40):
            with Client(scene.client, "IPv4").connect() as client:
                seen.add(client.ask())
        assert seen == answer
        candidates = balancer.where(at(VIP[4], 80, "TCP")).candidates
        assert len(candidates) == len(answer)


def test_cluster_ips_and_source_ranges(scene: Scene, balancer: SocketBalancer) -> None:
    """What hides a service from clients outside does not hide it from these."""
    balancer.upsert(
        scene.service(frontends=[Frontend(VIP[v], 80, type="ClusterIP") for v in (4, 6)]),
        scene.service("UDP", source_ranges=["198.51.100.0/24", "2001:db8:c::/64"]),
    )
    for protocol in ("TCP", "UDP"):
        for kind in KINDS:
            with Client(scene.client, kind, protocol).connect() as client:
                assert client.ask() in ("b1", "b2", "b3")


def test_a_resolver(scene: Scene, balancer: SocketBalancer) -> None:
    """One socket, unconnected, many questions: each answer comes from the address asked."""
    balancer.upsert(scene.service("UDP"))
    for kind in KINDS:
        with Client(scene.client, kind, "UDP") as client:
            answers = set()
            server = client.to(VIP[version_of(kind)], 53)
            for _ in range(40):
                client.sock.sendto(b"who?", server)
                answer, sender = client.sock.recvfrom(100)
                assert sender[:2] == server
                answers.add(answer.decode().strip())
            assert answers == {"b1", "b2", "b3"}


# ---------------------------------------------------------------------- NodePorts


def test_node_ports(scene: Scene, balancer: SocketBalancer) -> None:
    """At the node's addresses for all, at loopback for the node's own; no server may be there."""
    node_ports = [Frontend(any_, 30080, type="NodePort") for any_ in ("0.0.0.0", "::")]
    balancer.upsert(scene.service(frontends=node_ports))
    for host, addresses in (
        (scene.client, (scene.node.ip4, scene.node.ip6, scene.node.router4)),
        (scene.node, (scene.node.ip4, scene.node.ip6, "127.0.0.1", "::1")),
    ):
        for address in addresses:
            kind = "IPv6" if ":" in str(address) else "IPv4"
            with Client(host, kind).connect(address, 30080) as client:
                assert client.ask() in ("b1", "b2", "b3")
                assert client.peer == (str(address), 30080)
            assert balancer.where(at(address, 30080, "TCP"), host.netns).why is Why.RANDOM
    with Client(scene.client, "IPv4") as client, pytest.raises(ConnectionRefusedError):
        client.connect("127.0.0.1", 30080)
    assert balancer.where("127.0.0.1:30080", scene.client.netns).why is Why.NO_SERVICE
    own_errors = probe("helper_set_retval").has("helper_set_retval")
    with pytest.raises(OSError) as caught, Client(scene.node, "IPv6") as server:
        server.sock.bind(("::", 30080))
    assert caught.value.errno == (errno.EADDRINUSE if own_errors else errno.EPERM)
    with scene.client.serve("30080/TCP"), scene.node.serve("30081/TCP"):
        pass


def test_host_only(scene: Scene) -> None:
    """The setting leaves pods alone."""
    with scene.balancer(config={"socket_host_only": True}) as balancer:
        balancer.upsert(scene.service())
        with Client(scene.node, "IPv4").connect() as client:
            assert client.ask() in ("b1", "b2", "b3")
        assert balancer.where(at(VIP[4], 80, "TCP")).why is Why.RANDOM
        assert balancer.where(at(VIP[4], 80, "TCP"), scene.client.netns).why is Why.NO_SERVICE
        with Client(scene.client, "IPv4") as client:
            client.sock.settimeout(0.3)
            with contextlib.suppress(OSError):  # the lab has no way there
                client.connect()
        assert balancer.metrics().packets() == 1


# ---------------------------------------------------------------------- what it tells


def test_counts_and_connections(scene: Scene, balancer: SocketBalancer) -> None:
    """What was translated, for whom; and that numbers begin anew."""
    balancer.upsert(scene.service(), scene.service("UDP"))
    tcp, udp = ServiceKey("default", "tcp"), ServiceKey("default", "udp")
    with contextlib.ExitStack() as stack:
        for _ in range(5):
            stack.enter_context(Client(scene.client, "IPv4").connect())
        seen = list(balancer.connections())
        assert {str(one.to) for one in seen} == {at(VIP[4], 80, "TCP")}
        assert len({one.cookie for one in seen}) == 5
        assert {one.backend for one in seen} <= set(balancer.services[tcp].backends)
        assert balancer.service_counts() == {tcp: 5, udp: 0}
        assert sum(balancer.backend_counts().values()) == 5
        assert balancer.metrics().packets() == 5
    assert list(balancer.connections()) == []
    balancer.delete("default/tcp")
    balancer.upsert(scene.service())
    assert balancer.service_counts() == {tcp: 0, udp: 0}
    with pytest.raises(OSError), Client(scene.client, "IPv4") as client:
        client.connect(port=81)
    assert balancer.metrics().packets(DropReason.NO_SERVICE_BACKEND) == 1


def test_the_end_of_a_balancer(scene: Scene) -> None:
    """What is connected stays connected; new ones are not translated; questions are refused."""
    with scene.balancer() as balancer:
        balancer.upsert(scene.service())
        client = Client(scene.client, "IPv4").connect()
    with client:
        assert client.ask() in ("b1", "b2", "b3")
        assert client.peer[0] != VIP[4]
    balancer.close()
    for ask in (
        balancer.metrics,
        balancer.connections,
        balancer.service_counts,
        lambda: balancer.upsert(scene.service()),
        lambda: balancer.where("10.96.0.10:80"),
    ):
        with pytest.raises(errors.ClosedError):
            ask()


BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "no such cgroup": ({"cgroup": "/sys/fs/cgroup/unified/nobody"}, errors.NotFoundError, "nobody"),
    "no cgroup": ({"cgroup": "/proc"}, errors.StateError, "cgroup2"),
}


@pytest.mark.parametrize(("arguments", "error", "said"), BAD.values(), ids=BAD)
def test_bad_cgroups(arguments: dict[str, Any], error: type[Exception], said: str) -> None:
    """A typed error, and nothing is left attached or open."""
    with pytest.raises(error, match=said):
        SocketBalancer(**arguments)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"frontends": ["10.96.0.10:80/SCTP"], "backends": ["10.0.0.1:80/SCTP"]}, "SCTP"),
        (
            {"frontends": ["10.96.0.10:80"], "backends": [],
             "proxy_delegation": "delegate-if-local"},
            "delegation",
        ),
    ],
)  # fmt: skip
def test_refused_services(balancer: SocketBalancer, options: dict[str, Any], said: str) -> None:
    """Told with the reason, and nothing of the call is applied."""
    with pytest.raises(errors.ServiceError, match=said):
        balancer.upsert(Service("fine", ["10.96.0.11:80"], []), Service("bad", **options))
    assert balancer.services == {}
