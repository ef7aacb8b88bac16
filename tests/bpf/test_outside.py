"""Packets of clients outside for services, at the node's device: every byte of both directions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from attrs import evolve, frozen
from scapy.layers.inet import TCP as TCPHeader
from scapy.layers.inet import IPOption_NOP
from scapy.layers.inet6 import IPv6ExtHdrDestOpt
from scapy.layers.l2 import Dot1Q, Ether

from pyciliumlib.flow import DropReason, TracePoint
from pyciliumlib.loadbalancer import Frontend, Service
from tests.bpf.harness import (
    HOST,
    INGRESS,
    REDIRECT,
    SERVER,
    SERVER_IDENTITY,
    SHOT,
    Devices,
    Outcome,
)
from tests.bpf.packets import (
    ACK,
    FAMILIES,
    FIN_ACK,
    RST,
    SERVER_NODE_MAC,
    SYN,
    SYN_ACK,
    Family,
    arp,
    checksums_hold,
)
from tests.bpf.services import PORT, SPORT, Pair, ServiceRig, delivered, device_programs, device_rig

families = pytest.mark.parametrize("family", FAMILIES, ids=str)
transports = pytest.mark.parametrize("transport", ["tcp", "udp", "sctp"])
TO_HOST, FROM_HOST = "to_host", "from_host"
#: TC_ACT_UNSPEC: the next program at the device has its turn.
NEXT = 0xFFFFFFFF
DECIDED = 0x0F00
FLOW_OUTSIDE = 128


@frozen
class Outside(Pair):
    """The pair's client is in the world, and its service there for it."""

    @property
    def client(self) -> str:
        return self.family.world

    def service(self, *backends: str, **options: Any) -> Service:
        inside = super().service(*backends, **options)
        frontend = Frontend(self.vip, PORT, self.protocol, "LoadBalancer")
        return evolve(inside, frontends=(frontend,))


@pytest.fixture(scope="module")
def loaded(where: Devices) -> Iterator[ServiceRig]:
    with device_rig(where) as made:
        yield made


@pytest.fixture
def rig(loaded: ServiceRig) -> ServiceRig:
    """No services, no flows; the pods are open, and the node is closed."""
    loaded.reset()
    loaded.rig.allow_all()
    loaded.rig.place_host()
    return loaded


def into(rig: ServiceRig, frame: bytes) -> Outcome:
    """A packet comes to the node."""
    return rig.rig.send(TO_HOST, HOST, frame)


def hopped(frame: bytes) -> bytes:
    """The frame after a router; the next hop's address is not in it yet."""
    packet = Ether(frame)
    if packet.payload.version == 4:
        packet.payload.ttl -= 1
        del packet.payload.chksum
    else:
        packet.payload.hlim -= 1
    return bytes(packet)


def pair_of(family: Family, transport: str = "tcp") -> Outside:
    return Outside(family, transport, family.server)


def establish(rig: ServiceRig, pair: Outside) -> None:
    for flags in (SYN, ACK):
        assert into(rig, pair.request(flags)).action == REDIRECT
        assert rig.from_server(pair.answer_inside(SYN_ACK if flags == SYN else ACK)).passed


# ------------------------------------------------------------------ both directions


@families
@transports
def test_both_directions(rig: ServiceRig, family: Family, transport: str) -> None:
    """From the first packet on, and again when the flow is established and nothing is told."""
    pair = pair_of(family, transport)
    rig.put(pair.service())
    for flags, back in ((SYN, SYN_ACK), (ACK, ACK), (ACK, ACK)):
        outcome = into(rig, pair.request(flags))
        assert (outcome.action, outcome.drop) == (REDIRECT, 0)
        assert outcome.packet == delivered(pair.request_inside(flags), SERVER)
        answer = rig.from_server(pair.answer_inside(back))
        assert (answer.action, answer.mark & DECIDED) == (REDIRECT, DECIDED)
        assert answer.packet == hopped(pair.answer(back))
    assert outcome.events == answer.events == ()
    entry = rig.entry(family.world, family.server)
    assert entry.state & FLOW_OUTSIDE
    assert sorted(entry.ifindex) == sorted([rig.rig.where.uplink, rig.rig.where.ifindex[SERVER]])
    for flags in (FIN_ACK, RST):
        assert into(rig, pair.request(flags)).packet == delivered(
            pair.request_inside(flags), SERVER
        )


@families
def test_what_is_told(rig: ServiceRig, family: Family) -> None:
    """The client's identity, the pod's verdict, and where either direction goes."""
    pair = pair_of(family)
    rig.put(pair.service())
    outcome = into(rig, pair.request(SYN))
    assert [(direction, reason) for direction, reason, _ in outcome.verdicts] == [(INGRESS, 0)]
    (trace,) = outcome.traces
    assert (trace.reason, trace.endpoint) == (TracePoint.TO_ENDPOINT, SERVER)
    assert (trace.src_identity, trace.dst_identity) == (family.world_identity, SERVER_IDENTITY)
    (trace,) = rig.from_server(pair.answer_inside(SYN_ACK)).traces
    assert (trace.reason, trace.endpoint) == (TracePoint.TO_NETWORK, SERVER)
    assert rig.rig.metrics()[INGRESS, 0][0] == 1


@families
def test_what_is_odd(rig: ServiceRig, family: Family) -> None:
    """IP options and extension headers; payloads of odd lengths."""
    pair = pair_of(family)
    rig.put(pair.service())
    establish(rig, pair)
    for size in (1, 3, 1000):
        frame = pair.request(payload=b"x" * size)
        outcome = into(rig, frame)
        assert outcome.packet == delivered(pair.request_inside(payload=b"x" * size), SERVER)
        assert checksums_hold(outcome.packet)
    packet = Ether(pair.request())
    if family.version == 4:
        packet.payload.options = [IPOption_NOP()] * 4
        packet.payload.ihl = None
        packet.payload.len = None
        packet.payload.chksum = None
    else:
        segment = packet.payload.payload
        packet.payload.nh, packet.payload.plen = 60, None
        packet.payload.remove_payload()
        packet = packet / IPv6ExtHdrDestOpt(nh=6) / segment
    outcome = into(rig, bytes(packet))
    assert outcome.action == REDIRECT and checksums_hold(outcome.packet)
    after = Ether(outcome.packet)
    assert (after.payload.dst, after[TCPHeader].dport) == (family.server, pair.target)


@families
def test_fragments(rig: ServiceRig, family: Family) -> None:
    """Of both directions: addresses in all of them, port and checksum in the first."""
    pair = pair_of(family, "udp")
    rig.put(pair.service())
    payload = bytes(range(64))
    pieces = family.fragments(pair.request(payload=payload), 24)
    wanted = family.fragments(pair.request_inside(payload=payload), 24)
    assert into(rig, pieces[1]).action == NEXT
    for piece, expected in zip(pieces, wanted, strict=True):
        assert into(rig, piece).packet == delivered(expected, SERVER)
    pieces = family.fragments(pair.answer_inside(payload=payload), 24)
    wanted = family.fragments(pair.answer(payload=payload), 24)
    for piece, expected in zip(pieces, wanted, strict=True):
        assert rig.from_server(piece).packet == hopped(expected)


# ------------------------------------------------------------------ ICMP errors


@families
@transports
def test_complaints(rig: ServiceRig, family: Family, transport: str) -> None:
    """Of the pod in the service's name; of the client and of routers to the pod."""
    pair = pair_of(family, transport)
    rig.put(pair.service())
    establish(rig, pair)
    quoted = delivered(pair.request_inside(), SERVER)
    outcome = rig.from_server(family.unreachable(family.server, pair.client, quoted))
    expected = family.unreachable(pair.vip, pair.client, delivered(pair.request(), SERVER))
    assert (outcome.action, outcome.packet) == (REDIRECT, hopped(expected))
    for speaker in (pair.client, family.router):
        error = family.unreachable(speaker, pair.vip, hopped(pair.answer()))
        expected = family.unreachable(speaker, pair.backend, hopped(pair.answer_inside()))
        outcome = into(rig, error)
        assert (outcome.action, outcome.packet) == (REDIRECT, delivered(expected, SERVER))
    # about a flow that is not there, and one of the node's own
    other = pair.packet(pair.vip, PORT, pair.client, SPORT + 1)
    assert into(rig, family.unreachable(family.router, pair.vip, other)).action == NEXT
    mine = pair.packet(family.host, PORT, pair.client, SPORT)
    outcome = into(rig, family.unreachable(family.router, family.host, mine))
    assert (outcome.action, outcome.drop) == (SHOT, DropReason.POLICY)


@families
def test_nobody_serves(rig: ServiceRig, family: Family) -> None:
    """ "Port unreachable" by the same device, past the policy of the node."""
    pair = pair_of(family)
    rig.put(pair.service().with_backends([]))
    frame = pair.request(SYN)
    outcome = into(rig, frame)
    assert (outcome.action, outcome.drop) == (REDIRECT, DropReason.NO_SERVICE_BACKEND)
    answer = Ether(outcome.packet)
    assert (answer.src, answer.dst) == (Ether(frame).dst, Ether(frame).src)
    assert (answer.payload.src, answer.payload.dst) == (pair.vip, pair.client)
    assert checksums_hold(outcome.packet)
    assert outcome.mark & DECIDED == DECIDED


# ------------------------------------------------------------------ whose packet it is


@families
def test_what_is_not_ours(rig: ServiceRig, family: Family) -> None:
    """It is as if there were no services."""
    pair = pair_of(family)
    rig.put(pair.service())
    passing = [
        pair.packet(pair.client, SPORT, family.server, pair.target),
        family.udp(pair.client, family.server),
        family.echo(pair.client, family.server),
        family.echo(pair.client, pair.vip),
        arp(1, "192.0.2.9", "192.0.2.1"),
        pair.request(SYN)[: family.headers + 4],
    ]
    tagged = Ether(pair.request(SYN))
    tagged = Ether(src=tagged.src, dst=tagged.dst) / Dot1Q(vlan=5) / tagged.payload
    elsewhere = Ether(pair.request(SYN))
    elsewhere.dst = SERVER_NODE_MAC
    for frame in [*passing, bytes(tagged), bytes(elsewhere)]:
        outcome = into(rig, frame)
        assert (outcome.action, outcome.packet, outcome.events) == (NEXT, frame, ())
    for frame in (family.tcp(pair.client, family.host, 22), family.udp(pair.client, family.host)):
        assert into(rig, frame).drop == DropReason.POLICY
    assert rig.rig.flow_count() == (0, 0)


@families
def test_the_last_hop(rig: ServiceRig, family: Family) -> None:
    """A packet that may not be forwarded is not."""
    pair = pair_of(family)
    rig.put(pair.service())
    for flags in (SYN, ACK):
        outcome = into(rig, pair.request(flags, ttl=1))
        assert (outcome.action, outcome.drop) == (SHOT, DropReason.TTL_EXCEEDED)
        establish(rig, pair)


@families
def test_answers_pass_the_host_firewall(rig: ServiceRig, family: Family) -> None:
    """By mark and device together: a process of the node can have the one, not the other."""
    came_by = rig.rig.where.ifindex[SERVER]
    frame = family.tcp(family.host, family.world, 40000, SYN_ACK, 80)
    send = rig.rig.send
    outcome = send(FROM_HOST, HOST, frame, DECIDED | 1, came_by=came_by)
    assert (outcome.action, outcome.mark, outcome.events) == (NEXT, 1, ())
    outcome = send(FROM_HOST, HOST, frame, DECIDED)
    assert (outcome.action, outcome.drop) == (SHOT, DropReason.POLICY)


@families
def test_one_tuple_with_and_without_the_service(rig: ServiceRig, family: Family) -> None:
    """What goes to the backend's own address takes the flow over, and back."""
    pair = pair_of(family)
    rig.put(pair.service())
    establish(rig, pair)
    to_pod = rig.rig.send("to_endpoint", SERVER, pair.request_inside(SYN))
    assert to_pod.passed and not to_pod.drop
    answer = rig.from_server(pair.answer_inside(SYN_ACK))
    assert answer.packet == pair.answer_inside(SYN_ACK)
    establish(rig, pair)
    assert rig.from_server(pair.answer_inside()).packet == hopped(pair.answer())


@families
def test_an_answer_that_was_decided_before_a_change(rig: ServiceRig, family: Family) -> None:
    """It keeps its way; and of a service that is gone nothing comes out."""
    pair = pair_of(family)
    rig.put(pair.service())
    establish(rig, pair)
    rig.rig.bump_policy(SERVER)
    outcome = rig.from_server(pair.answer_inside())
    assert (outcome.action, outcome.packet) == (REDIRECT, hopped(pair.answer()))
    entry = rig.entry(family.world, family.server)
    assert rig.rig.where.uplink in list(entry.ifindex)
    rig.only()
    assert rig.from_server(pair.answer_inside()).drop == DropReason.NO_SERVICE_BACKEND


@families
def test_a_services_entry_opens_nothing_of_the_node(rig: ServiceRig, family: Family) -> None:
    """Where services are off by now, the node's policy is asked about the same packets."""
    node_port = Frontend(family.host, PORT, type="NodePort")
    pair = pair_of(family)
    rig.put(evolve(pair.service(), frontends=(node_port,)))
    request = pair.packet(pair.client, SPORT, family.host, PORT)
    for flags in (SYN, ACK, ACK):
        assert into(rig, pair.packet(pair.client, SPORT, family.host, PORT, flags)).passed
        assert rig.from_server(pair.answer_inside(SYN_ACK if flags == SYN else ACK)).passed
    live = rig.rig.programs
    with device_programs(rig, node_port=False) as programs:
        rig.rig.programs = {**live, **programs}
        try:
            outcome = into(rig, request)
        finally:
            rig.rig.programs = live
    assert (outcome.action, outcome.drop) == (SHOT, DropReason.POLICY)
    assert into(rig, request).action == REDIRECT
