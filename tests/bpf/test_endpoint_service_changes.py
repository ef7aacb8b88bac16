"""Translated flows while services change: which keep their backend, what becomes of the rest."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from scapy.layers.l2 import Ether

from pyciliumlib.flow import DropReason
from pyciliumlib.loadbalancer import Backend, FlowTuple, Frontend, LoadBalancerConfig, Service
from tests.bpf.harness import CLIENT, FROM, OK, REDIRECT, SERVER, Devices, Outcome
from tests.bpf.packets import ACK, FAMILIES, FIN_ACK, RST, SYN, SYN_ACK, Family
from tests.bpf.services import (
    NODE,
    OTHER_VIP,
    PORT,
    SPORT,
    TARGET,
    Pair,
    ServiceRig,
    delivered,
    establish,
    service_rig,
)

families = pytest.mark.parametrize("family", FAMILIES, ids=str)
NO_BACKEND = DropReason.NO_SERVICE_BACKEND


@pytest.fixture(scope="module")
def loaded(where: Devices) -> Iterator[ServiceRig]:
    with service_rig(where) as made:
        yield made


@pytest.fixture
def rig(loaded: ServiceRig) -> ServiceRig:
    """No services and no flows; everything is allowed."""
    loaded.reset()
    loaded.rig.allow_all()
    return loaded


def destination(outcome: Outcome) -> str:
    """Whom the packet goes to."""
    return str(Ether(outcome.packet).payload.dst)


def in_state(pair: Pair, state: str, *others: str) -> list[Backend]:
    """The pair's backend in a state, and others that are active."""
    return [
        Backend(address, pair.target, pair.protocol, state=state if not at else "active")
        for at, address in enumerate((pair.backend, *others))
    ]


# ------------------------------------------------------------------ which backend


@families
def test_chance_meets_every_backend(rig: ServiceRig, family: Family) -> None:
    """And nobody else."""
    pair = Pair(family, "udp", family.server)
    rig.put(pair.service(family.server, family.peer, family.world))
    met = [
        destination(rig.from_client(pair.packet(family.client, 1000 + n, pair.vip, PORT)))
        for n in range(120)
    ]
    assert set(met) == {family.server, family.peer, family.world}
    assert min(map(met.count, set(met))) > 15


@families
def test_a_connection_keeps_its_backend(rig: ServiceRig, family: Family) -> None:
    """Whatever else comes and goes; a SYN again as well."""
    pair = Pair(family, "tcp", family.server)
    rig.put(pair.service())
    establish(rig, pair)
    for others in ((family.peer,), (family.peer, family.world), (family.world,)):
        rig.put(pair.service(family.server, *others))
        for flags in (ACK, SYN, ACK):
            assert rig.from_client(pair.request(flags)).packet == delivered(
                pair.request_inside(flags), SERVER
            )
        assert rig.from_server(pair.answer_inside()).packet == delivered(pair.answer(), CLIENT)


@families
@pytest.mark.parametrize("state", ["terminating", "quarantined", "maintenance"])
def test_a_backend_that_takes_no_new_connections(
    rig: ServiceRig, family: Family, state: str
) -> None:
    """Those that it has go on; the same ports with a SYN go elsewhere."""
    pair = Pair(family, "tcp", family.server)
    rig.put(pair.service())
    establish(rig, pair)
    rig.put(pair.service().with_backends(in_state(pair, state, family.peer)))
    assert destination(rig.from_client(pair.request())) == family.server
    assert rig.from_server(pair.answer_inside()).packet == delivered(pair.answer(), CLIENT)
    for port in range(1000, 1020):
        frame = pair.packet(family.client, port, pair.vip, PORT, SYN)
        assert destination(rig.from_client(frame)) == family.peer
    assert destination(rig.from_client(pair.request(SYN))) == family.peer
    assert rig.from_server(pair.answer_inside(FIN_ACK)).drop == NO_BACKEND


@families
def test_closed_ports_that_open_again(rig: ServiceRig, family: Family) -> None:
    """The next connection on the same ports chooses for itself."""
    pair = Pair(family, "tcp", family.server)
    rig.put(pair.service(family.server, family.peer, algorithm="random"))
    met = set()
    for _ in range(40):
        outcome = rig.from_client(pair.request(SYN))
        met.add(destination(outcome))
        rig.from_client(pair.request(ACK))
        rig.from_client(pair.request(RST))
    assert met == {family.server, family.peer}


@families
def test_a_backend_that_is_gone(rig: ServiceRig, family: Family) -> None:
    """What it says is dropped at once; what the client says goes to another."""
    pair = Pair(family, "tcp", family.server)
    rig.put(pair.service())
    establish(rig, pair)
    rig.put(pair.service(family.peer))
    assert rig.from_server(pair.answer_inside()).drop == NO_BACKEND
    outcome = rig.from_client(pair.request())
    assert (outcome.action, destination(outcome)) == (OK, family.peer)
    assert rig.from_server(pair.answer_inside()).drop == NO_BACKEND
    after = Pair(family, "tcp", family.peer)
    assert rig.from_stack(after.answer_inside()).packet == after.answer()


@families
def test_a_backend_that_comes_back(rig: ServiceRig, family: Family) -> None:
    """It is another one to the maps, and speaks when the client has met it again."""
    pair = Pair(family, "tcp", family.server)
    rig.put(pair.service(family.server))
    establish(rig, pair)
    rig.put(pair.service().with_backends([]))
    assert rig.from_client(pair.request()).drop == NO_BACKEND
    assert rig.from_server(pair.answer_inside()).drop == NO_BACKEND
    rig.put(pair.service(family.server))
    assert rig.from_server(pair.answer_inside()).drop == NO_BACKEND
    assert rig.from_client(pair.request()).packet == delivered(pair.request_inside(), SERVER)
    assert rig.from_server(pair.answer_inside()).packet == delivered(pair.answer(), CLIENT)


@families
def test_a_service_that_is_deleted(rig: ServiceRig, family: Family) -> None:
    """Its backends speak for it no longer; its address is one as any other."""
    pair = Pair(family, "tcp", family.server)
    rig.put(pair.service())
    establish(rig, pair)
    rig.only()
    assert rig.from_server(pair.answer_inside()).drop == NO_BACKEND
    frame = pair.request()
    outcome = rig.from_client(frame)
    assert (outcome.action, outcome.packet) == (OK, frame)


@families
def test_a_service_that_is_made_anew(rig: ServiceRig, family: Family) -> None:
    """It is another one, though address and backend are the same: the client meets it first."""
    pair = Pair(family, "tcp", family.server)
    twin = Service("twin", [Frontend(OTHER_VIP[family.version], PORT)], pair.service().backends)
    rig.put(pair.service(), twin)  # so that the backend is always there
    establish(rig, pair)
    rig.only(twin)
    rig.put(pair.service())
    assert rig.from_server(pair.answer_inside()).drop == NO_BACKEND
    assert rig.from_client(pair.request()).packet == delivered(pair.request_inside(), SERVER)
    assert rig.from_server(pair.answer_inside()).packet == delivered(pair.answer(), CLIENT)


@families
def test_an_answer_that_nothing_stands_behind(rig: ServiceRig, family: Family) -> None:
    """What was decided under something that has changed needs the service's entry as well."""
    pair = Pair(family, "tcp", family.server)
    rig.put(pair.service())
    establish(rig, pair)
    rig.forget(family.client, pair.vip)
    rig.rig.bump_policy(CLIENT)
    assert rig.from_server(pair.answer_inside()).drop == NO_BACKEND
    assert rig.from_client(pair.request()).packet == delivered(pair.request_inside(), SERVER)
    assert rig.from_server(pair.answer_inside()).packet == delivered(pair.answer(), CLIENT)


@families
def test_numbers_that_somebody_else_has(rig: ServiceRig, family: Family) -> None:
    """A flow of a service that is gone is not one of the next that gets the same numbers."""
    pair = Pair(family, "tcp", family.server)
    rig.put(pair.service())
    establish(rig, pair)
    number = rig.entry(family.client, pair.backend).frontend
    rig.only()
    for turn in range(80):  # until the number is used again
        frontend = Frontend(OTHER_VIP[family.version], PORT + turn)
        rig.only(Service(f"other{turn}", [frontend], pair.service().backends))
        if number in {value.frontend for value in rig.maps["lb_services"].values()}:
            break
    else:
        raise AssertionError("the number was never used again")
    assert rig.from_server(pair.answer_inside()).drop == NO_BACKEND


@families
def test_another_service_that_changes(rig: ServiceRig, family: Family) -> None:
    """Established packets look once whether it is theirs, and are told of to nobody."""
    pair = Pair(family, "tcp", family.server)
    rig.put(pair.service())
    establish(rig, pair)
    host = OTHER_VIP[family.version]
    other = Service("other", [Frontend(host, PORT)], [Backend(family.peer, TARGET)])
    for services in ((other,), ()):
        rig.only(pair.service(), *services)
        outcome = rig.from_client(pair.request())
        assert outcome.packet == delivered(pair.request_inside(), SERVER)
        assert outcome.events == ()
        outcome = rig.from_server(pair.answer_inside())
        assert (outcome.packet, outcome.events) == (delivered(pair.answer(), CLIENT), ())


# ------------------------------------------------------------------ who it is for


@families
def test_affinity(rig: ServiceRig, family: Family) -> None:
    """A client meets the backend that it met, from whichever port."""
    pair = Pair(family, "udp", family.server)
    rig.put(pair.service(family.server, family.peer, family.world, affinity_timeout=60))
    met = {
        destination(rig.from_client(pair.packet(family.client, 1000 + n, pair.vip, PORT)))
        for n in range(40)
    }
    assert len(met) == 1
    second = {
        destination(rig.from_client(pair.packet(family.client_second, 1000 + n, pair.vip, PORT)))
        for n in range(40)
    }
    assert len(second) == 1
    (gone,) = met
    left = {family.server, family.peer, family.world} - met
    rig.put(pair.service(*left, affinity_timeout=60))
    now = {
        destination(rig.from_client(pair.packet(family.client, 2000 + n, pair.vip, PORT)))
        for n in range(40)
    }
    assert len(now) == 1 and gone not in now


@families
def test_affinity_with_oneself(rig: ServiceRig, family: Family) -> None:
    """A pod among its service's backends is remembered by its own address."""
    pair = Pair(family, "udp", family.client)
    rig.put(pair.service(affinity_timeout=60))
    rig.from_client(pair.request())
    rig.put(pair.service(family.client, family.server, family.peer, affinity_timeout=60))
    met = {
        destination(rig.from_client(pair.packet(family.client, 1000 + n, pair.vip, PORT)))
        for n in range(20)
    }
    assert met == {family.client}


@families
def test_maglev_by_annotation_alone(rig: ServiceRig, family: Family) -> None:
    """The table of the whole balancer is for clients from outside; a service's own is for pods."""
    rig.reset(LoadBalancerConfig("maglev", table_size=251, algorithm_annotation=True))
    rig.rig.allow_all()
    pair = Pair(family, "udp", family.server)
    backends = (family.server, family.peer, family.world)
    for own in (False, True):
        service = pair.service(*backends, algorithm="maglev" if own else None)
        rig.only(service)
        rig.rig.forget_flows()
        table = LoadBalancerConfig(table_size=251).maglev().build(service.backends)
        agree = [
            destination(rig.from_client(pair.packet(family.client, port, pair.vip, PORT)))
            == str(table.select(FlowTuple(family.client, port, PORT, "UDP")).address)
            for port in range(1000, 1040)
        ]
        assert all(agree) is own


@families
def test_internal_traffic_policy(rig: ServiceRig, family: Family) -> None:
    """Pods are clients inside: of the two scopes theirs counts, and no source range does."""
    pair = Pair(family, "udp", family.server)
    backends = [
        Backend(family.server, pair.target, "UDP", node="here"),
        Backend(family.peer, pair.target, "UDP", node="there"),
    ]
    service = pair.service(internal_policy="Local", source_ranges=["203.0.113.0/24"]).with_backends(
        backends
    )
    rig.put(service)
    met = {
        destination(rig.from_client(pair.packet(family.client, 1000 + n, pair.vip, PORT)))
        for n in range(30)
    }
    assert met == {family.server}


@families
def test_node_ports(rig: ServiceRig, family: Family) -> None:
    """At the node's own address, whose other ports stay its own."""
    pair = Pair(family, "tcp", family.server)
    anywhere = "0.0.0.0" if family.version == 4 else "::"
    frontend = Frontend(anywhere, 30080, type="NodePort")
    rig.put(Service("node", [frontend], [Backend(family.server, TARGET)]))
    node = NODE[family.version]
    outcome = rig.from_client(pair.packet(family.client, SPORT, node, 30080, SYN))
    assert outcome.packet == delivered(pair.request_inside(SYN), SERVER)
    outcome = rig.from_server(pair.answer_inside(SYN_ACK))
    assert outcome.packet == delivered(
        pair.packet(node, 30080, family.client, SPORT, SYN_ACK), CLIENT
    )
    other = pair.packet(family.client, SPORT, node, 22, SYN)
    assert rig.from_client(other).packet == other


@families
def test_a_cluster_ip_is_for_pods(rig: ServiceRig, family: Family) -> None:
    """They are inside."""
    pair = Pair(family, "tcp", family.server)
    frontend = Frontend(pair.vip, PORT, type="ClusterIP")
    rig.put(Service("inside", [frontend], [Backend(family.server, TARGET)]))
    assert rig.from_client(pair.request(SYN)).packet == delivered(pair.request_inside(SYN), SERVER)


# ------------------------------------------------------------------ the same ports without it


@families
@pytest.mark.parametrize("transport", ["udp", "tcp"])
def test_the_backend_by_its_own_address(rig: ServiceRig, family: Family, transport: str) -> None:
    """From the same port as by the service: each answer is to what was asked last."""
    pair = Pair(family, transport, family.server)
    rig.put(pair.service())
    establish(rig, pair)
    for _ in range(3):
        outcome = rig.from_client(pair.request_inside())
        assert outcome.packet == delivered(pair.request_inside(), SERVER)
        outcome = rig.from_server(pair.answer_inside())
        assert outcome.packet == delivered(pair.answer_inside(), CLIENT)
        outcome = rig.from_client(pair.request(SYN))
        assert outcome.packet == delivered(pair.request_inside(SYN), SERVER)
        outcome = rig.from_server(pair.answer_inside())
        assert outcome.packet == delivered(pair.answer(), CLIENT)


@families
def test_two_services_with_one_backend(rig: ServiceRig, family: Family) -> None:
    """From one port of the client: the last one that was asked has the answers."""
    pair = Pair(family, "udp", family.server)
    host = OTHER_VIP[family.version]
    twin = Service("twin", [Frontend(host, PORT, "UDP")], pair.service().backends)
    rig.put(pair.service(), twin)
    for _ in range(2):
        for vip in (pair.vip, host):
            frame = pair.packet(family.client, SPORT, vip, PORT)
            rig.from_client(frame)
            rig.maps["flows"].delete_batch(rig.maps["flows"].lookup_batch()[0])
            rig.from_client(frame)
            outcome = rig.from_server(pair.answer_inside())
            assert outcome.packet == delivered(pair.packet(vip, PORT, family.client, SPORT), CLIENT)


@families
def test_the_backend_as_a_client_of_its_own(rig: ServiceRig, family: Family) -> None:
    """What it opens itself, from another port, has nothing to do with the service."""
    pair = Pair(family, "tcp", family.server)
    rig.put(pair.service())
    establish(rig, pair)
    frame = pair.packet(family.server, 50000, family.client, 22, SYN)
    assert rig.from_server(frame).packet == delivered(frame, CLIENT)


# ------------------------------------------------------------------ simple things of the path


@families
def test_hops(rig: ServiceRig, family: Family) -> None:
    """A packet at its last hop ends here, translated or not."""
    pair = Pair(family, "tcp", family.server)
    rig.put(pair.service())
    frame = family.tcp(family.client, pair.vip, PORT, SYN, SPORT, ttl=1)
    assert rig.from_client(frame).drop == DropReason.TTL_EXCEEDED
    assert rig.send(FROM, CLIENT, pair.request(SYN)).action == REDIRECT
