"""ARP and neighbour discovery: the programs answer for every neighbour an endpoint may have."""

from __future__ import annotations

import pytest
from scapy.layers.inet6 import (
    ICMPv6MLReport2,
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6ND_RA,
    ICMPv6ND_RS,
    ICMPv6NDOptDstLLAddr,
    ICMPv6NDOptSrcLLAddr,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrHopByHop,
)
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet

from pyciliumlib.flow import DropReason
from tests.bpf.harness import CLIENT, FROM, OK, REDIRECT, SERVER, SHOT, TO, Rig
from tests.bpf.packets import CLIENT_MAC, CLIENT_NODE_MAC, V4, V6, arp, checksums_hold

MULTICAST_MAC = "33:33:ff:00:00:02"
ALL_NODES = "ff02::1"
ASKS, ANSWERS = 1, 2


@pytest.mark.parametrize("target", [V4.server, V4.peer, V4.world, "169.254.1.1"])
def test_an_arp_request_is_answered(rig: Rig, target: str) -> None:
    """Whoever is asked for, the node's device is where to send: RFC 826, byte by byte."""
    outcome = rig.send(FROM, CLIENT, arp(ASKS, V4.client, target))
    expected = Ether(src=CLIENT_NODE_MAC, dst=CLIENT_MAC) / ARP(
        op="is-at", hwsrc=CLIENT_NODE_MAC, psrc=target, hwdst=CLIENT_MAC, pdst=V4.client
    )
    assert outcome.action == REDIRECT
    assert outcome.packet == bytes(expected)
    assert outcome.events == ()


@pytest.mark.parametrize(
    ("sender", "target"),
    [("0.0.0.0", V4.client), ("0.0.0.0", V4.server), (V4.client, V4.client)],
    ids=["probe of its own", "probe of another's", "announcement"],
)
def test_a_probe_and_an_announcement_get_silence(rig: Rig, sender: str, target: str) -> None:
    """An answer would tell the endpoint that its address is taken (RFC 5227)."""
    outcome = rig.send(FROM, CLIENT, arp(ASKS, sender, target))
    assert (outcome.action, outcome.drop) == (SHOT, DropReason.UNSUPPORTED_L3)


def test_an_arp_reply_speaks_for_its_sender_only(rig: Rig) -> None:
    """The stack may ask an endpoint, and the endpoint answers for its own addresses."""
    for own in (V4.client, V4.client_second):
        assert rig.send(FROM, CLIENT, arp(ANSWERS, own, V4.router)).action == OK
    for other in (V4.server, V4.world, V4.router):
        outcome = rig.send(FROM, CLIENT, arp(ANSWERS, other, V4.router))
        assert (outcome.action, outcome.drop) == (SHOT, DropReason.INVALID_SOURCE)


def test_arp_from_the_stack_passes(rig: Rig) -> None:
    """The node's own neighbour table may work."""
    for operation in (ASKS, ANSWERS):
        assert rig.send(TO, CLIENT, arp(operation, V4.router, V4.client)).action == OK


@pytest.mark.parametrize(
    ("field", "value"), [("hwlen", 8), ("plen", 16), ("ptype", 0x86DD), ("op", 3), ("op", 9)]
)
def test_other_kinds_of_arp(rig: Rig, field: str, value: int) -> None:
    """Not IPv4 over Ethernet, or neither a request nor an answer."""
    frame = bytearray(arp(ASKS, V4.client, V4.server))
    at = {"ptype": 16, "hwlen": 18, "plen": 19, "op": 20}[field]
    size = 2 if field in ("ptype", "op") else 1
    frame[at : at + size] = value.to_bytes(size, "big")
    outcome = rig.send(FROM, CLIENT, bytes(frame))
    assert (outcome.action, outcome.drop) == (SHOT, DropReason.UNSUPPORTED_L3)


def test_arp_cut_short(rig: Rig) -> None:
    """Every shorter form is dropped."""
    frame = arp(ASKS, V4.client, V4.server)
    for length in range(15, 14 + 28):
        outcome = rig.send(FROM, CLIENT, frame[:length])
        assert (outcome.action, outcome.drop) == (SHOT, DropReason.INVALID_PACKET)


def _solicit(source: str, target: str, option: bool = True, hops: int = 255) -> Packet:
    frame = (
        Ether(src=CLIENT_MAC, dst=MULTICAST_MAC)
        / IPv6(src=source, dst="ff02::1:ff00:2", hlim=hops)
        / ICMPv6ND_NS(tgt=target)
    )
    return frame / ICMPv6NDOptSrcLLAddr(lladdr=CLIENT_MAC) if option else frame


@pytest.mark.parametrize("option", [True, False], ids=["with its address", "without"])
@pytest.mark.parametrize("target", [V6.server, V6.world, "fe80::1"])
def test_a_solicitation_is_answered(rig: Rig, target: str, option: bool) -> None:
    """The advertisement says "solicited, override" and the node's address: RFC 4861, 4.4."""
    outcome = rig.send(FROM, CLIENT, bytes(_solicit(V6.client, target, option)))
    expected = (
        Ether(src=CLIENT_NODE_MAC, dst=CLIENT_MAC)
        / IPv6(src=target, dst=V6.client, hlim=255)
        / ICMPv6ND_NA(R=0, S=1, O=1, tgt=target)
        / ICMPv6NDOptDstLLAddr(lladdr=CLIENT_NODE_MAC)
    )
    assert outcome.action == REDIRECT
    assert outcome.packet == bytes(expected)
    assert checksums_hold(outcome.packet)


def test_every_checksum_of_an_advertisement_is_right(rig: Rig) -> None:
    """Over many targets, so that each carry of the sum is met."""
    for number in range(1, 600, 7):
        target = f"2001:db8:{number * 109 & 0xFFFF:x}::{number * 31:x}"
        outcome = rig.send(FROM, CLIENT, bytes(_solicit(V6.client, target)))
        assert outcome.action == REDIRECT
        assert checksums_hold(outcome.packet), target


@pytest.mark.parametrize(
    ("source", "target"),
    [("::", V6.client), ("::", V6.server), (V6.client, V6.client)],
    ids=["of its own", "of another's", "from the address itself"],
)
def test_duplicate_address_detection_gets_silence(rig: Rig, source: str, target: str) -> None:
    """An answer would take the address from the endpoint (RFC 4862, 5.4)."""
    outcome = rig.send(FROM, CLIENT, bytes(_solicit(source, target, option=False)))
    assert (outcome.action, outcome.drop) == (SHOT, DropReason.FORBIDDEN_ICMPV6)


def test_an_advertisement_is_for_the_senders_own_address(rig: Rig) -> None:
    """Both its source and its target must be the endpoint's."""

    def advertise(source: str, target: str) -> bytes:
        return bytes(
            Ether(src=CLIENT_MAC, dst=CLIENT_NODE_MAC)
            / IPv6(src=source, dst=V6.router, hlim=255)
            / ICMPv6ND_NA(tgt=target)
        )

    assert rig.send(FROM, CLIENT, advertise(V6.client, V6.client)).action == OK
    assert rig.send(FROM, CLIENT, advertise(V6.client, V6.client_second)).action == OK
    for source, target in (
        (V6.server, V6.server),
        (V6.client, V6.server),
        (V6.client, V6.router),
        (V6.world, V6.client),
    ):
        outcome = rig.send(FROM, CLIENT, advertise(source, target))
        assert (outcome.action, outcome.drop) == (SHOT, DropReason.INVALID_SOURCE)


@pytest.mark.parametrize(
    "message",
    [
        IPv6(src=V6.client, dst="ff02::2", hlim=255) / ICMPv6ND_RS(),
        IPv6(src=V6.client, dst=ALL_NODES, hlim=255) / ICMPv6ND_RA(),
        IPv6(src=V6.client, dst="ff02::16", hlim=1) / IPv6ExtHdrHopByHop() / ICMPv6MLReport2(),
        IPv6(src=V6.client, dst=V6.server, hlim=255)
        / IPv6ExtHdrDestOpt()
        / ICMPv6ND_NS(tgt=V6.server),
    ],
    ids=["router solicitation", "router advertisement", "MLD report", "NS behind a header"],
)
def test_what_else_is_said_on_the_link(rig: Rig, message: Packet) -> None:
    """Routers and multicast listeners have no business at an endpoint's device."""
    rig.allow_all()
    frame = bytes(Ether(src=CLIENT_MAC, dst=MULTICAST_MAC) / message)
    outcome = rig.send(FROM, CLIENT, frame)
    assert (outcome.action, outcome.drop) == (SHOT, DropReason.FORBIDDEN_ICMPV6)


def test_the_stacks_neighbour_discovery_passes_and_nothing_else_of_the_link(rig: Rig) -> None:
    """The node may look for its endpoint; it is no router to it."""
    base = Ether() / IPv6(src="fe80::1", dst=V6.client, hlim=255)
    for neighbour in (ICMPv6ND_NS(tgt=V6.client), ICMPv6ND_NA(tgt="fe80::1")):
        assert rig.send(TO, CLIENT, bytes(base / neighbour)).action == OK
    for router in (ICMPv6ND_RA(), ICMPv6ND_RS()):
        outcome = rig.send(TO, CLIENT, bytes(base / router))
        assert (outcome.action, outcome.drop) == (SHOT, DropReason.FORBIDDEN_ICMPV6)


def test_a_device_that_nobody_registered_gets_no_answer(rig: Rig) -> None:
    """Before its endpoint is ready a device is told nothing."""
    rig.maps["devices"].clear()
    for frame in (arp(ASKS, V4.client, V4.server), bytes(_solicit(V6.client, V6.server))):
        outcome = rig.send(FROM, SERVER, frame)
        assert (outcome.action, outcome.drop) == (SHOT, DropReason.ENDPOINT_NOT_READY)


def test_a_solicitation_cut_short(rig: Rig) -> None:
    """A solicitation without its whole target is dropped."""
    frame = bytes(_solicit(V6.client, V6.server, option=False))
    for length in range(54, 78):
        outcome = rig.send(FROM, CLIENT, frame[:length])
        assert (outcome.action, outcome.drop) == (SHOT, DropReason.INVALID_PACKET), length
