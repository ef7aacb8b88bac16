"""Where a connection goes, and why: one case for each reason the model knows."""

from __future__ import annotations

from typing import Any

import pytest

from pyciliumlib.errors import ExistsError, InvalidError, NotFoundError
from pyciliumlib.flow import DropReason
from pyciliumlib.loadbalancer import (
    Backend,
    Balancer,
    DSRDispatch,
    FlowTuple,
    ForwardingMode,
    Frontend,
    LoadBalancerConfig,
    LocalNode,
    Service,
    ServiceKey,
    Why,
)

VIP, CLIENT = "203.0.113.10:80", "192.0.2.7:40000"
NODE = LocalNode("n1", ["192.0.2.1", "2001:db8::1"])


def web(backends: list[Any] | None = None, **options: Any) -> Service:
    served = ["10.0.0.1:80", "10.0.0.2:80"] if backends is None else backends
    return Service("web", options.pop("frontends", [VIP]), served, **options)


def backend(address: str, **fields: Any) -> Backend:
    return Backend(address, 80, **fields)


def balancer(*services: Service, **config: Any) -> Balancer:
    return Balancer(services, LoadBalancerConfig(table_size=251, **config), NODE, seed=1)


def test_random_names_the_candidates() -> None:
    """`where` does not toss a coin; `connect` does, and remembers."""
    model = balancer(web())
    placed = model.where(CLIENT, VIP)
    assert (placed.why, placed.backend) == (Why.RANDOM, None)
    assert placed.candidates == web().backends
    connected = model.connect(CLIENT, VIP)
    assert connected.backend in web().backends
    again = model.where(CLIENT, VIP, opening=False)
    assert (again.why, again.backend) == (Why.CONNECTION, connected.backend)
    assert [b for _, _, b in model.connections()] == [connected.backend]


def test_maglev_is_the_tables_choice() -> None:
    """The same as the table gives for the flow."""
    model = balancer(web(algorithm="maglev"))
    table = model.config.maglev().build(web().backends)
    for port in range(40000, 40020):
        placed = model.where(f"192.0.2.7:{port}", VIP)
        assert placed.why is Why.MAGLEV
        assert placed.backend == table.select(FlowTuple("192.0.2.7", port, 80))


@pytest.mark.parametrize(
    ("kind", "direction", "own", "expected"),
    [
        ("LoadBalancer", "north-south", None, Why.MAGLEV),
        ("LoadBalancer", "east-west", None, Why.RANDOM),
        ("ClusterIP", "east-west", None, Why.RANDOM),
        ("ClusterIP", "east-west", "maglev", Why.MAGLEV),
        ("LoadBalancer", "north-south", "random", Why.RANDOM),
        ("ClusterIP", "socket", "maglev", Why.RANDOM),
    ],
)
def test_where_maglev_counts(kind: str, direction: str, own: str | None, expected: Why) -> None:
    """The balancer's Maglev is for clients from outside, a service's own for all packets."""
    frontend = Frontend("203.0.113.10", 80, type=kind)
    model = balancer(web(frontends=[frontend], algorithm=own), algorithm="maglev")
    assert model.where(CLIENT, VIP, direction=direction).why is expected


@pytest.mark.parametrize(
    ("to", "why", "reason"),
    [
        ("203.0.113.10:81", Why.UNKNOWN_PORT, DropReason.NO_SERVICE_BACKEND),
        ("203.0.113.10:80/UDP", Why.UNKNOWN_PORT, DropReason.NO_SERVICE_BACKEND),
        ("203.0.113.11:80", Why.NO_SERVICE, DropReason.FORWARDED),
        ("192.0.2.1:81", Why.NO_SERVICE, DropReason.FORWARDED),
        ("192.0.2.1:30080", Why.RANDOM, DropReason.FORWARDED),
    ],
)
def test_addresses(to: str, why: Why, reason: DropReason) -> None:
    """Unknown ports of a service's address are dropped, those of the node's own are not."""
    model = balancer(web(frontends=[VIP, Frontend("0.0.0.0", 30080, type="NodePort")]))
    placed = model.where(CLIENT, to)
    assert (placed.why, placed.reason) == (why, reason)


def test_cluster_ips_are_for_the_cluster() -> None:
    """From outside only if the config says so."""
    service = web(frontends=[Frontend("10.96.0.1", 80, type="ClusterIP")])
    to = "10.96.0.1:80"
    outside = balancer(service).where(CLIENT, to)
    assert (outside.why, outside.reason) == (Why.CLUSTER_IP, DropReason.IS_CLUSTER_IP)
    assert balancer(service).where(CLIENT, to, direction="east-west").why is Why.RANDOM
    assert balancer(service, external_cluster_ip=True).where(CLIENT, to).why is Why.RANDOM


@pytest.mark.parametrize(
    ("client", "policy", "direction", "let_in"),
    [
        ("192.0.2.7:1", "allow", "north-south", True),
        ("198.51.100.7:1", "allow", "north-south", False),
        ("198.51.100.7:1", "allow", "east-west", True),
        ("198.51.100.7:1", "allow", "socket", True),
        ("192.0.2.7:1", "deny", "north-south", False),
        ("198.51.100.7:1", "deny", "north-south", True),
    ],
)
def test_source_ranges(client: str, policy: str, direction: str, let_in: bool) -> None:
    """They bind those from outside; deny turns their meaning round."""
    model = balancer(web(source_ranges=["192.0.2.0/24"], source_ranges_policy=policy))
    placed = model.where(client, VIP, direction=direction)
    assert placed.dropped is not let_in
    assert let_in or placed.reason is DropReason.LB_SOURCE_RANGE


def test_source_ranges_of_other_types() -> None:
    """Only LoadBalancer addresses check them, unless the config says all."""
    node_port = Frontend("192.0.2.1", 30080, type="NodePort")
    service = web(frontends=[node_port], source_ranges=["10.0.0.0/8"])
    assert not balancer(service).where(CLIENT, "192.0.2.1:30080").dropped
    strict = balancer(service, source_ranges_all_types=True)
    assert strict.where(CLIENT, "192.0.2.1:30080").why is Why.SOURCE_RANGE


@pytest.mark.parametrize(
    ("states", "taken"),
    [
        (["active", "terminating"], [0]),
        (["terminating", "terminating-not-serving"], [0]),
        (["quarantined", "maintenance"], []),
        (["quarantined", "active"], [1]),
        (["terminating-not-serving"], []),
    ],
)
def test_states(states: list[str], taken: list[int]) -> None:
    """Active ones; terminating ones only where none is active."""
    served = [backend(f"10.0.0.{n}", state=state) for n, state in enumerate(states)]
    placed = balancer(web(served)).where(CLIENT, VIP)
    assert [b for b in served if b in placed.candidates] == [served[n] for n in taken]
    assert (placed.why is Why.NO_BACKEND) is (not taken)


def test_sockets_are_not_forwarded() -> None:
    """A client that is connected to its backend needs no mode and no dispatch."""
    model = balancer(web(), mode="dsr")
    assert model.where(CLIENT, VIP).forwarding is ForwardingMode.DSR
    placed = model.where(CLIENT, VIP, direction="socket")
    assert (placed.forwarding, placed.dispatch) == (None, None)
    assert set(placed.candidates) == set(web().backends)


def test_weight_0_takes_nothing_new() -> None:
    """As maintenance does."""
    placed = balancer(web([backend("10.0.0.1", weight=0), "10.0.0.2:80"])).where(CLIENT, VIP)
    assert [str(b.address) for b in placed.candidates] == ["10.0.0.2"]


@pytest.mark.parametrize(
    ("external", "internal", "direction", "expected"),
    [
        ("Local", "Cluster", "north-south", 1),
        ("Local", "Cluster", "east-west", 2),
        ("Cluster", "Local", "north-south", 2),
        ("Cluster", "Local", "east-west", 1),
        ("Local", "Cluster", "socket", 2),
        ("Cluster", "Local", "socket", 1),
    ],
)
def test_traffic_policy(external: str, internal: str, direction: str, expected: int) -> None:
    """Local leaves this node's backends, for the direction that it names."""
    served = [backend("10.0.0.1", node="n1"), backend("10.0.0.2", node="n2")]
    service = web(served, external_policy=external, internal_policy=internal)
    placed = balancer(service).where(CLIENT, VIP, direction=direction)
    assert len(placed.candidates) == expected


def test_affinity() -> None:
    """The client's address decides until it was silent for the timeout, whatever its port."""
    model = balancer(web([f"10.0.0.{n}:80" for n in range(1, 50)], affinity_timeout=60))
    met = model.connect(CLIENT, VIP, now=100).backend
    placed = model.where("192.0.2.7:50000", VIP, now=159.9)
    assert (placed.why, placed.backend) == (Why.AFFINITY, met)
    assert model.where("192.0.2.7:50000", VIP, now=160).why is Why.RANDOM
    assert model.where("192.0.2.8:50000", VIP, now=101).why is Why.RANDOM


def test_affinity_of_a_backend_that_drains() -> None:
    """It takes no new connections, also from those who know it."""
    model = balancer(web(affinity_timeout=60))
    met = model.connect(CLIENT, VIP).backend
    assert met is not None
    others = [b for b in web().backends if b != met]
    model.upsert(web([met.in_state("quarantined"), *others], affinity_timeout=60))
    assert model.where("192.0.2.7:50000", VIP, now=1).backend == others[0]


@pytest.mark.parametrize(
    ("state", "opening", "kept"),
    [
        ("active", True, True),
        ("terminating", False, True),
        ("terminating", True, False),
        ("quarantined", False, True),
        ("maintenance", True, False),
    ],
)
def test_connections_drain(state: str, opening: bool, kept: bool) -> None:
    """What is open stays; a SYN looks for an active backend."""
    model = balancer(web())
    met = model.connect(CLIENT, VIP).backend
    assert met is not None
    others = [b for b in web().backends if b != met]
    model.upsert(web([met.in_state(state), *others]))
    placed = model.where(CLIENT, VIP, opening=opening)
    assert (placed.why is Why.CONNECTION) is kept


def test_a_backend_that_is_gone() -> None:
    """Its connections go to another; those of others stay."""
    model = balancer(web())
    met = model.connect(CLIENT, VIP).backend
    others = [b for b in web().backends if b != met]
    model.upsert(web(others))
    assert model.where(CLIENT, VIP, opening=False).backend == others[0]


def test_families() -> None:
    """Each frontend has the backends of its own family."""
    both = web(["10.0.0.1:80", "[fd00::1]:80"], frontends=[VIP, "[2001:db8::10]:80"])
    model = balancer(both)
    assert str(model.where(CLIENT, VIP).backend) == "10.0.0.1:80/TCP"
    six = model.where("[2001:db8::7]:1", "[2001:db8::10]:80")
    assert str(six.backend) == "[fd00::1]:80/TCP"


@pytest.mark.parametrize(
    ("is_global", "affinity", "expected"),
    [
        (False, "none", {"10.0.0.1"}),
        (True, "none", {"10.0.0.1", "10.1.0.1"}),
        (True, "local", {"10.0.0.1"}),
        (True, "remote", {"10.1.0.1"}),
    ],
)
def test_other_clusters(is_global: bool, affinity: str, expected: set[str]) -> None:
    """Only of global services, by their affinity."""
    from pyciliumlib.loadbalancer import Mesh

    served = [backend("10.0.0.1"), backend("10.1.0.1", cluster_id=2)]
    model = balancer(web(served, mesh=Mesh(is_global, is_global, affinity)))
    assert {str(b.address) for b in model.where(CLIENT, VIP).candidates} == expected


def test_forwarding_and_dispatch() -> None:
    """How the packets get there is said with the backend."""
    model = balancer(web(["10.0.0.1:8080"]), mode="dsr", dispatch="ipip")
    placed = model.where(CLIENT, VIP)
    assert (placed.forwarding, placed.dispatch) == (ForwardingMode.DSR, DSRDispatch.OPT)
    assert balancer(web()).where(CLIENT, VIP).forwarding is ForwardingMode.SNAT


def test_delegated() -> None:
    """A backend at the node's own address takes the packet untranslated, if the service asks."""
    model = balancer(web(["192.0.2.1:80"], proxy_delegation="delegate-if-local"))
    assert model.where(CLIENT, VIP).why is Why.DELEGATED


def test_a_frontend_has_one_service() -> None:
    """The error names both, and nothing has changed."""
    model = balancer(web())
    with pytest.raises(ExistsError, match="default/web's already"):
        model.upsert(Service("other", [VIP, "203.0.113.11:80"], ["10.0.0.9:80"]))
    assert model.where(CLIENT, "203.0.113.11:80").why is Why.NO_SERVICE
    assert list(model.services) == [ServiceKey("default", "web")]


def test_delete() -> None:
    """Its address is nobody's afterwards; a name that is unknown is an error."""
    model = balancer(web(affinity_timeout=60))
    model.connect(CLIENT, VIP)
    model.delete(web().key)
    assert model.where(CLIENT, VIP).why is Why.NO_SERVICE
    assert list(model.connections()) == []
    with pytest.raises(NotFoundError, match="default/web"):
        model.delete(web().key)


def test_a_dispatch_that_cannot_be() -> None:
    """Told when the service is added, not at its first packet."""
    insists = web(["10.0.0.1:8080"], dispatch="ipip", forwarding="dsr")
    with pytest.raises(InvalidError, match="cannot change a port"):
        balancer(insists)


def test_placements_can_be_read() -> None:
    """One line, with backend, reason and service."""
    model = balancer(web(["10.0.0.1:80"]))
    assert "10.0.0.1:80/TCP: any" in str(model.where(CLIENT, VIP))
    assert str(model.where(CLIENT, "203.0.113.10:1")).startswith("dropped")
    assert str(balancer(web()).where(CLIENT, VIP)).startswith("one of 2 backends")
