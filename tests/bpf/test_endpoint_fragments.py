"""Fragments: only the first one carries ports, the later ones go the way that it went."""

from __future__ import annotations

import pytest
from scapy.layers.inet import UDP
from scapy.layers.inet6 import IPv6ExtHdrDestOpt, IPv6ExtHdrFragment
from scapy.packet import Raw

from pyciliumlib.flow import DropReason
from tests.bpf.harness import CLIENT, EGRESS, FROM, INGRESS, OK, REDIRECT, SERVER, TO, Rig
from tests.bpf.packets import FAMILIES, SYN_ACK, V4, V6, Family

families = pytest.mark.parametrize("family", FAMILIES, ids=str)
UDP_NUMBER = 17


def _datagram(family: Family, port: int = 53, identifier: int = 1000) -> list[bytes]:
    """Three fragments of one datagram from the client to the server."""
    frame = family.udp(family.client, family.server, port, payload=bytes(64))
    pieces = family.fragments(frame, 24, identifier)
    assert len(pieces) == 3
    return pieces


@families
def test_later_fragments_go_with_the_first(rig: Rig, family: Family) -> None:
    """All belong to one flow, which the ports of the first one name."""
    rig.rule(CLIENT, EGRESS)
    rig.rule(SERVER, INGRESS, proto=UDP_NUMBER, port=53)
    outcomes = [rig.send(FROM, CLIENT, piece) for piece in _datagram(family)]
    assert [outcome.action for outcome in outcomes] == [REDIRECT] * 3
    assert rig.flow_count() == (0, 1)
    assert rig.only_entry("pending").packets[0] == 3


@families
def test_later_fragments_in_any_order(rig: Rig, family: Family) -> None:
    """Among the later ones order does not matter."""
    rig.allow_all()
    first, second, third = _datagram(family)
    for piece in (first, third, second):
        assert rig.send(FROM, CLIENT, piece).action == REDIRECT


@families
def test_a_later_fragment_without_its_first(rig: Rig, family: Family) -> None:
    """Nobody knows its ports, so it is dropped, and passes once the first was seen."""
    rig.allow_all()
    first, second, _ = _datagram(family)
    assert rig.send(FROM, CLIENT, second).drop == DropReason.FRAGMENT_NOT_FOUND
    rig.send(FROM, CLIENT, first)
    assert rig.send(FROM, CLIENT, second).action == REDIRECT


@families
def test_fragments_of_a_forbidden_datagram(rig: Rig, family: Family) -> None:
    """The first one's verdict is every one's."""
    rig.rule(CLIENT, EGRESS)
    rig.rule(SERVER, INGRESS, proto=UDP_NUMBER, port=53)
    for piece in _datagram(family, port=54):
        assert rig.send(FROM, CLIENT, piece).drop == DropReason.POLICY


@families
def test_two_datagrams_at_once(rig: Rig, family: Family) -> None:
    """The identifier tells which datagram a fragment is of."""
    rig.rule(CLIENT, EGRESS)
    rig.rule(SERVER, INGRESS, proto=UDP_NUMBER, port=53)
    allowed, forbidden = _datagram(family, 53, 1), _datagram(family, 54, 2)
    for left, right in zip(allowed, forbidden, strict=True):
        assert rig.send(FROM, CLIENT, left).action == REDIRECT
        assert rig.send(FROM, CLIENT, right).drop == DropReason.POLICY


@families
def test_a_forger_does_not_redirect_anothers_fragments(rig: Rig, family: Family) -> None:
    """What a forged first fragment says is not believed for the later ones of its victim."""
    rig.rule(CLIENT, EGRESS)
    rig.rule(SERVER, EGRESS)
    rig.rule(SERVER, INGRESS, proto=UDP_NUMBER, port=53)
    mine, forged = _datagram(family, 53, 5), _datagram(family, 54, 5)
    rig.send(FROM, CLIENT, mine[0])
    assert rig.send(FROM, SERVER, forged[0]).drop == DropReason.INVALID_SOURCE
    assert rig.send(FROM, CLIENT, mine[1]).action == REDIRECT


@families
def test_fragments_of_a_reply_from_the_stack(rig: Rig, family: Family) -> None:
    """The first fragment of a reply makes the flow a replied one, as a whole packet does."""
    rig.rule(CLIENT, EGRESS)
    rig.send(FROM, CLIENT, family.udp(family.client, family.world))
    answer = family.udp(family.world, family.client, 40000, 53, payload=bytes(64))
    for piece in family.fragments(answer, 24):
        assert rig.send(TO, CLIENT, piece).action == OK
    assert rig.flow_count() == (1, 0)
    assert rig.only_entry().packets[1] == 3


@families
def test_fragments_of_a_ping(rig: Rig, family: Family) -> None:
    """An echo is found again by its identifier, also in its fragments and those of its reply."""
    rig.rule(CLIENT, EGRESS)
    rig.rule(SERVER, INGRESS, proto=family.icmp, port=family.echo_request)
    ping = family.echo(family.client, family.server) + bytes(60)
    pong = family.echo(family.server, family.client, reply=True) + bytes(60)
    for hook_endpoint, frame in ((CLIENT, ping), (SERVER, pong)):
        for piece in family.fragments(_sized(family, frame), 24):
            assert rig.send(FROM, hook_endpoint, piece).action == REDIRECT
    assert rig.flow_count() == (1, 0)


@families
def test_fragments_of_an_established_tcp_flow(rig: Rig, family: Family) -> None:
    """Fragments take the slow path and find the same flow."""
    rig.allow_all()
    rig.send(FROM, CLIENT, family.tcp(family.client, family.server))
    rig.send(FROM, SERVER, family.tcp(family.server, family.client, 40000, SYN_ACK, 80))
    data = family.tcp(family.client, family.server, flags="A", payload=bytes(60))
    for piece in family.fragments(data, 40):
        assert rig.send(FROM, CLIENT, piece).action == REDIRECT
    assert rig.flow_count() == (1, 0)
    assert rig.only_entry().packets[0] == 3


@families
def test_a_first_fragment_too_short_for_its_ports(rig: Rig, family: Family) -> None:
    """The tiny fragment attack (RFC 1858): TCP's flags must be in the first fragment."""
    rig.allow_all()
    tiny = family.fragments(family.tcp(family.client, family.server), 8)
    assert rig.send(FROM, CLIENT, tiny[0]).drop == DropReason.INVALID_PACKET


def test_an_atomic_fragment_is_a_whole_packet(rig: Rig) -> None:
    """A fragment header that says "first and last" (RFC 6946) changes nothing."""
    rig.allow_all()
    frame = V6.ip(V6.client, V6.server) / IPv6ExtHdrFragment(m=0, offset=0, id=9) / UDP(dport=53)
    assert rig.send(FROM, CLIENT, bytes(frame)).action == REDIRECT
    assert len(rig.maps["fragments"]) == 0


def test_a_first_fragment_with_more_headers_behind(rig: Rig) -> None:
    """Later fragments name the first of those headers, so they are not found: fail closed."""
    rig.allow_all()
    base = V6.ip(V6.client, V6.server)
    first = (
        base
        / IPv6ExtHdrFragment(nh=60, m=1, offset=0, id=9)
        / IPv6ExtHdrDestOpt()
        / UDP(dport=53)
        / Raw(bytes(16))
    )
    later = base / IPv6ExtHdrFragment(nh=60, m=0, offset=4, id=9) / Raw(bytes(16))
    assert rig.send(FROM, CLIENT, bytes(first)).action == REDIRECT
    assert rig.send(FROM, CLIENT, bytes(later)).drop == DropReason.FRAGMENT_NOT_FOUND


def _sized(family: Family, frame: bytes) -> bytes:
    """The frame with the IP header's length made to fit what was appended."""
    frame = bytearray(frame)  # type: ignore[assignment]  # of the same meaning, and writable
    at, length = (16, len(frame) - 14) if family is V4 else (18, len(frame) - 54)
    return bytes(frame[:at]) + length.to_bytes(2, "big") + bytes(frame[at + 2 :])
