"""What has no ports of its own, and pods that meet themselves: fragments, ICMP errors, hairpins."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from scapy.layers.inet import ICMP, IP, UDP, IPOption_NOP
from scapy.packet import Raw

from pyciliumlib.flow import DropReason
from tests.bpf.harness import CLIENT, OK, REDIRECT, SERVER, Devices
from tests.bpf.packets import ACK, FAMILIES, SYN, SYN_ACK, V4, Family
from tests.bpf.services import (
    LOOPBACK,
    PORT,
    SPORT,
    Pair,
    ServiceRig,
    delivered,
    establish,
    service_rig,
)

families = pytest.mark.parametrize("family", FAMILIES, ids=str)
transports = pytest.mark.parametrize("transport", ["tcp", "udp", "sctp"])
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


# ------------------------------------------------------------------ fragments


@families
def test_fragments(rig: ServiceRig, family: Family) -> None:
    """Of both directions: addresses in all of them, port and checksum in the first."""
    pair = Pair(family, "udp", family.server)
    rig.put(pair.service())
    payload = bytes(range(64))
    for frame, inside, send, to in (
        (pair.request, pair.request_inside, rig.from_client, SERVER),
        (pair.answer_inside, pair.answer, rig.from_server, CLIENT),
    ):
        pieces = family.fragments(frame(payload=payload), 24)
        expected = family.fragments(inside(payload=payload), 24)
        assert len(pieces) == 3
        for piece, wanted in zip(pieces, expected, strict=True):
            assert send(piece).packet == delivered(wanted, to)


@families
def test_a_later_fragment_without_its_first(rig: ServiceRig, family: Family) -> None:
    """Nobody knows whether it is for the service."""
    pair = Pair(family, "udp", family.server)
    rig.put(pair.service())
    _, second, _ = family.fragments(pair.request(payload=bytes(64)), 24)
    assert rig.from_client(second).drop == DropReason.FRAGMENT_NOT_FOUND


# ------------------------------------------------------------------ ICMP errors


@families
@transports
def test_the_backend_complains(rig: ServiceRig, family: Family, transport: str) -> None:
    """In the service's name, about what the client has sent to it."""
    pair = Pair(family, transport, family.server)
    rig.put(pair.service())
    rig.from_client(pair.request(SYN))
    quoted = delivered(pair.request_inside(SYN), SERVER)
    outcome = rig.from_server(family.unreachable(family.server, family.client, quoted))
    expected = family.unreachable(pair.vip, family.client, delivered(pair.request(SYN), SERVER))
    assert outcome.action == REDIRECT
    assert outcome.packet == delivered(expected, CLIENT)


@families
@transports
def test_a_router_complains(rig: ServiceRig, family: Family, transport: str) -> None:
    """In its own name: about a packet that the client knows."""
    pair = Pair(family, transport, family.peer)
    rig.put(pair.service())
    establish(rig, pair)
    error = family.unreachable(family.router, family.client, pair.request_inside())
    outcome = rig.from_stack(error)
    assert outcome.action == OK
    assert outcome.packet == family.unreachable(family.router, family.client, pair.request())
    backend = rig.from_stack(family.unreachable(family.peer, family.client, pair.request_inside()))
    assert backend.packet == family.unreachable(pair.vip, family.client, pair.request())


@families
@transports
def test_the_client_complains(rig: ServiceRig, family: Family, transport: str) -> None:
    """To the service; it is its backend who has sent what is quoted."""
    pair = Pair(family, transport, family.server)
    rig.put(pair.service())
    establish(rig, pair)
    quoted = delivered(pair.answer(), CLIENT)
    outcome = rig.from_client(family.unreachable(family.client, pair.vip, quoted))
    expected = family.unreachable(
        family.client, pair.backend, delivered(pair.answer_inside(), CLIENT)
    )
    assert outcome.action == REDIRECT
    assert outcome.packet == delivered(expected, SERVER)


@families
@pytest.mark.parametrize("transport", ["tcp", "udp"])
def test_a_quote_of_eight_bytes(rig: ServiceRig, family: Family, transport: str) -> None:
    """That is all that a router must quote: no checksum of TCP is in it (RFC 792)."""
    pair = Pair(family, transport, family.peer)
    rig.put(pair.service())
    establish(rig, pair)
    cut = family.headers + 8
    error = family.unreachable(family.router, family.client, pair.request_inside()[:cut])
    expected = family.unreachable(family.router, family.client, pair.request()[:cut])
    assert rig.from_stack(error).packet == expected


@families
def test_a_quote_of_a_flow_by_its_own_address(rig: ServiceRig, family: Family) -> None:
    """An error about what the client never got: the backend's answer as it was before."""
    pair = Pair(family, "tcp", family.server)
    rig.put(pair.service())
    establish(rig, pair)
    rig.rig.clear_rules(CLIENT)
    rig.rig.rule(CLIENT, 1, proto=6)
    quoted = delivered(pair.answer_inside(), CLIENT)
    outcome = rig.from_client(family.unreachable(family.client, family.server, quoted))
    assert outcome.drop == DropReason.POLICY


def test_a_quoted_header_with_options(rig: ServiceRig) -> None:
    """Its ports are elsewhere, so it cannot be translated and does not pass."""
    pair = Pair(V4, "udp", V4.peer)
    rig.put(pair.service())
    establish(rig, pair)
    ports = UDP(sport=SPORT, dport=pair.target)
    quoted = IP(src=V4.client, dst=V4.peer, options=[IPOption_NOP()] * 4) / ports / Raw(b"query")
    error = bytes(V4.ip(V4.router, V4.client) / ICMP(type=3, code=1) / quoted)
    assert rig.from_stack(error).drop == DropReason.INVALID_PACKET


# ------------------------------------------------------------------ a pod and itself


def hairpin(family: Family, transport: str = "tcp") -> Pair:
    return Pair(family, transport, family.client)


@families
@transports
def test_a_pod_meets_itself(rig: ServiceRig, family: Family, transport: str) -> None:
    """By an address that is not its own, and whatever its policy says."""
    for endpoint in (CLIENT, SERVER):
        rig.rig.clear_rules(endpoint)
    pair, loopback = hairpin(family, transport), LOOPBACK[family.version]
    rig.put(pair.service())
    for flags, back in ((SYN, SYN_ACK), (ACK, ACK), (ACK, ACK)):
        outcome = rig.from_client(pair.request(flags))
        inside = pair.packet(loopback, SPORT, family.client, pair.target, flags)
        assert outcome.action == REDIRECT
        assert outcome.packet == delivered(inside, CLIENT)
        answer = pair.packet(family.client, pair.target, loopback, SPORT, back)
        outcome = rig.from_client(answer)
        assert outcome.action == REDIRECT
        assert outcome.packet == delivered(pair.answer(back), CLIENT)
    assert outcome.events == ()


@families
def test_itself_among_others(rig: ServiceRig, family: Family) -> None:
    """Only where chance says so; the other backend is under policy as always."""
    rig.rig.clear_rules(CLIENT)
    pair = hairpin(family)
    rig.put(pair.service(family.client, family.server))
    drops = [
        rig.from_client(pair.packet(family.client, 1000 + n, pair.vip, PORT, SYN)).drop
        for n in range(40)
    ]
    assert set(drops) == {0, DropReason.POLICY}


@families
def test_nobody_uses_the_loopback_address(rig: ServiceRig, family: Family) -> None:
    """Neither as a source nor as a destination, but for answers of a flow that is there."""
    pair, loopback = hairpin(family), LOOPBACK[family.version]
    rig.put(pair.service())
    answer = pair.packet(family.client, pair.target, loopback, SPORT)
    assert rig.from_client(answer).drop == NO_BACKEND
    for target, endpoint in ((family.client, CLIENT), (family.server, CLIENT)):
        frame = pair.packet(loopback, SPORT, target, pair.target)
        assert rig.rig.send("from_endpoint", endpoint, frame).drop == DropReason.INVALID_SOURCE
    rig.from_client(pair.request(SYN))
    assert rig.from_client(answer).packet == delivered(pair.answer(), CLIENT)
    frame = pair.packet(loopback, SPORT, family.client, pair.target)
    assert rig.from_server(frame).drop == DropReason.INVALID_SOURCE
    rig.only()
    assert rig.from_client(answer).drop == NO_BACKEND


@families
@transports
def test_a_pod_complains_to_itself(rig: ServiceRig, family: Family, transport: str) -> None:
    """All four addresses of the error and of its quote change, both ways."""
    pair, loopback = hairpin(family, transport), LOOPBACK[family.version]
    rig.put(pair.service())
    rig.from_client(pair.request(SYN))
    inside = pair.packet(loopback, SPORT, family.client, pair.target, SYN)
    answer = pair.packet(family.client, pair.target, loopback, SPORT)
    error = family.unreachable(family.client, loopback, delivered(inside, CLIENT))
    outcome = rig.from_client(error)
    expected = family.unreachable(pair.vip, family.client, delivered(pair.request(SYN), CLIENT))
    assert outcome.packet == delivered(expected, CLIENT)

    rig.from_client(answer)
    error = family.unreachable(family.client, pair.vip, delivered(pair.answer(), CLIENT))
    outcome = rig.from_client(error)
    expected = family.unreachable(loopback, family.client, delivered(answer, CLIENT))
    assert outcome.packet == delivered(expected, CLIENT)
