"""How an admitted packet goes on: one hop less, the next one's addresses, the right way out."""

from __future__ import annotations

import pytest
from scapy.layers.l2 import Ether

from pyciliumlib.flow import DropReason
from tests.bpf import harness
from tests.bpf.harness import CLIENT, FROM, OK, REDIRECT, SERVER, TO, Devices, Rig
from tests.bpf.packets import (
    ACK,
    FAMILIES,
    SERVER_MAC,
    SERVER_NODE_MAC,
    SYN,
    V4,
    Family,
    checksums_hold,
)

families = pytest.mark.parametrize("family", FAMILIES, ids=str)
DECIDED = 0x0F00


def _forwarded(frame: bytes, family: Family, ttl: int) -> bytes:
    """The frame as a router would send it on."""
    packet = Ether(frame)
    packet.src, packet.dst = SERVER_NODE_MAC, SERVER_MAC
    if family is V4:
        packet.payload.ttl = ttl
        del packet.payload.chksum
    else:
        packet.payload.hlim = ttl
    return bytes(packet)


@families
@pytest.mark.parametrize("build", ["tcp", "udp", "sctp", "echo"])
def test_to_a_local_endpoint_as_a_router_would(rig: Rig, family: Family, build: str) -> None:
    """TTL, its checksum and both MAC addresses; not a byte else."""
    rig.allow_all()
    frame = getattr(family, build)(family.client, family.server)
    for _ in range(2):
        outcome = rig.send(FROM, CLIENT, frame)
        assert outcome.action == REDIRECT
        assert outcome.packet == _forwarded(frame, family, 63)


def test_the_checksum_after_every_ttl(rig: Rig) -> None:
    """Over all TTLs that allow one more hop."""
    rig.allow_all()
    for ttl in range(2, 256):
        frame = V4.tcp(V4.client, V4.server, flags=ACK, ttl=ttl)
        outcome = rig.send(FROM, CLIENT, frame)
        assert outcome.action == REDIRECT
        header = outcome.packet[14:34]
        assert header[8] == ttl - 1
        assert _sum(header) == 0xFFFF


@pytest.mark.parametrize("wanted", [0x0000, 0xFEFE, 0xFEFF, 0xFF00, 0xFFFE, 0xFFFF])
def test_the_checksum_where_it_wraps(rig: Rig, wanted: int) -> None:
    """RFC 1624: a sum near the end of 16 bits, made by choosing the identification.

    0xffff is nobody's first choice, since it says the same as 0, and yet a checksum that is right.
    """
    rig.allow_all()
    frame = bytearray(V4.udp(V4.client, V4.server))
    frame[18:20] = b"\0\0"
    frame[24:26] = b"\0\0"
    identification = (0xFFFF - wanted - _sum(bytes(frame[14:34]))) % 0xFFFF
    frame[18:20] = identification.to_bytes(2, "big")
    frame[24:26] = wanted.to_bytes(2, "big")
    assert _sum(bytes(frame[14:34])) == 0xFFFF
    outcome = rig.send(FROM, CLIENT, bytes(frame))
    assert outcome.action == REDIRECT
    assert _sum(outcome.packet[14:34]) == 0xFFFF


def _sum(header: bytes) -> int:
    """The one's complement sum of 16-bit words (RFC 1071); 0xffff over a header that is right."""
    total = sum(int.from_bytes(header[at : at + 2], "big") for at in range(0, len(header), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


@families
@pytest.mark.parametrize("ttl", [0, 1])
@pytest.mark.parametrize("flags", [SYN, ACK])
def test_a_packet_at_the_end_of_its_life(rig: Rig, family: Family, ttl: int, flags: str) -> None:
    """It may not take one more hop."""
    rig.allow_all()
    rig.send(FROM, CLIENT, family.tcp(family.client, family.server))
    frame = family.tcp(family.client, family.server, flags=flags, ttl=ttl)
    assert rig.send(FROM, CLIENT, frame).drop == DropReason.TTL_EXCEEDED


@families
def test_the_stack_does_its_own_hop(rig: Rig, family: Family) -> None:
    """What goes to the stack, or comes from it, is not touched."""
    rig.allow_all()
    out = family.tcp(family.client, family.world, ttl=1)
    back = family.tcp(family.world, family.client, 40000, "SA", 80, ttl=1)
    for hook, frame in ((FROM, out), (TO, back)):
        outcome = rig.send(hook, CLIENT, frame)
        assert (outcome.action, outcome.packet) == (OK, frame)


@families
def test_established_packets_get_the_addresses_of_the_link(rig: Rig, family: Family) -> None:
    """Those of now: an endpoint's new ones count from the next decision on."""
    rig.allow_all()
    frame = family.tcp(family.client, family.server, flags="A")
    rig.send(FROM, CLIENT, frame)
    rig.send(FROM, SERVER, family.tcp(family.server, family.client, 40000, "A", 80))
    established = rig.send(FROM, CLIENT, frame)
    assert (established.events, established.packet) == ((), _forwarded(frame, family, 63))
    moved = dict(rig.maps["endpoints"][family.server]._asdict(), mac=bytes([2, 0, 0, 0, 9, 9]))
    rig.maps["endpoints"][family.server] = moved
    rig.bump_address(family.server)
    for _ in range(2):
        assert Ether(rig.send(FROM, CLIENT, frame).packet).dst == "02:00:00:00:09:09"


@families
def test_an_answer_goes_to_the_openers_device(rig: Rig, family: Family) -> None:
    """The entry holds the addresses of both ends' links."""
    rig.allow_all()
    rig.send(FROM, CLIENT, family.tcp(family.client, family.server))
    outcome = rig.send(FROM, SERVER, family.tcp(family.server, family.client, 40000, "SA", 80))
    assert Ether(outcome.packet).dst == "0a:00:00:00:00:01"
    assert checksums_hold(outcome.packet)


def test_without_redirect_peer_a_mark_says_that_it_was_decided(where: Devices) -> None:
    """The packet then passes the endpoint's other program, which must not judge it again."""
    with harness.rig(where, redirect_peer=False) as rig:
        rig.allow_all()
        for family in FAMILIES:
            frame = family.tcp(family.client, family.server)
            outcome = rig.send(FROM, CLIENT, frame, mark=0x12340055)
            assert (outcome.action, outcome.mark) == (REDIRECT, 0x12340055 | DECIDED)
            assert outcome.packet == _forwarded(frame, family, 63)

            delivered = rig.send(TO, SERVER, outcome.packet, outcome.mark)
            assert (delivered.action, delivered.mark) == (OK, 0x12340055)
            assert delivered.events == ()
            # The same frame without the mark is a forgery of the client's.
            assert rig.send(TO, SERVER, outcome.packet).drop == DropReason.INVALID_SOURCE


def test_with_redirect_peer_the_mark_means_nothing(rig: Rig) -> None:
    """Whoever sets it does not get around policy."""
    outcome = rig.send(TO, SERVER, V4.tcp(V4.world, V4.server), mark=DECIDED)
    assert outcome.drop == DropReason.POLICY
