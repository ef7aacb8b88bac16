"""The backend's side of DSR by test run: what is taken off, what is remembered, what goes out."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from scapy.contrib.geneve import GENEVE, GeneveOptions
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from pyciliumlib.flow import DropReason
from pyciliumlib.loadbalancer.program.loading import Hook
from tests.bpf import balancer, dsr_packets, dsr_side
from tests.bpf.balancer import FAMILIES, V4, V6, Family
from tests.bpf.dsr_packets import (
    ACK,
    DATAGRAM,
    FRAGMENTS,
    SHAPES,
    SYN,
    Shape,
    received,
    routed,
)
from tests.bpf.dsr_side import (
    ANSWERS,
    DATA,
    FIN,
    LONG_REPLY,
    REPLY,
    RST,
    SYN_ACK,
    UNREACHABLE,
    Passed,
    Side,
    answer,
)

families = pytest.mark.parametrize("family", FAMILIES, ids=str)
dispatches = pytest.mark.parametrize("dispatch", ["opt", "geneve"])
FORWARDED = DropReason.FORWARDED


@pytest.fixture(scope="module", params=[Hook.NATIVE, Hook.TC], ids=str)
def loaded(request: pytest.FixtureRequest) -> Iterator[Side]:
    with dsr_side.side(request.param) as made:
        yield made


@pytest.fixture(scope="module", params=[Hook.NATIVE, Hook.TC], ids=str)
def picky(request: pytest.FixtureRequest) -> Iterator[Side]:
    """One that takes from the usual director alone."""
    with dsr_side.side(request.param, check_directors=True) as made:
        made.reset([f.vip for f in FAMILIES], [f.own for f in FAMILIES])
        yield made


@pytest.fixture
def side(loaded: Side) -> Side:
    loaded.reset(family.vip for family in FAMILIES)
    return loaded


def service(family: Family) -> tuple[str, int]:
    return family.vip, 80


def backend(family: Family) -> tuple[str, int]:
    return family.backends[0], 8080


def sent(dispatch: str, family: Family, shape: Shape, *, tells: bool = True) -> list[bytes]:
    """The frames by which a balancer sends a client's packets."""
    packets = shape.packets(family, backend(family))
    told = service(family) if tells else None
    if dispatch == "opt":
        return [routed(dsr_packets.with_option(p, told) if told else p) for p in packets]
    to = backend(family)[0]
    return [routed(dsr_packets.in_geneve(family, p, to, told, source=50000)) for p in packets]


def plain(family: Family, shape: Shape) -> list[bytes]:
    """The same as the backend's stack is to get them."""
    return [routed(packet) for packet in shape.packets(family, backend(family))]


def out(family: Family, shape: Shape, sender: tuple[str, int]) -> list[bytes]:
    """The frames of an answer."""
    return [received(packet) for packet in answer(shape, family, sender)]


def opened(side: Side, family: Family, dispatch: str = "opt", *shapes: Shape) -> None:
    """A connection that is known, or whatever these packets of the client make."""
    for shape in shapes or (SYN, ACK):
        for frame in sent(dispatch, family, shape, tells=shape.tells):
            assert not side.take(frame).dropped


# ---------------------------------------------------------------------- what is taken off


@families
@dispatches
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.smoke
def test_what_the_client_sent(side: Side, family: Family, dispatch: str, shape: Shape) -> None:
    """Each kind of packet comes out as it was before the balancer, for the backend itself."""
    frames = sent(dispatch, family, shape, tells=shape.tells)
    for frame, expected in zip(frames, plain(family, shape), strict=True):
        untouched = dispatch == "opt" and not shape.tells
        assert side.take(frame) == Passed(expected, None if untouched else FORWARDED)


@families
def test_ip_in_ip(side: Side, family: Family) -> None:
    """The packet inside is for the service's address, which the node has."""
    for packet in SYN.packets(family, service(family)):
        layer, number = (IP, {"proto": 4}) if family.version == 4 else (IPv6, {"nh": 41})
        outer = layer(src=family.own, dst=backend(family)[0], **number)
        frame = routed(bytes(outer / Raw(packet)))
        assert side.take(frame) == Passed(routed(packet), FORWARDED)
        assert side.flows() == (0, 0)


def test_ipv6_in_geneve_over_ipv4(side: Side) -> None:
    """As Cilium sends it: its tunnels are of IPv4."""
    inner = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02", type=0x86DD)
    (packet,) = SYN.packets(V6, backend(V6))
    data = balancer.ipaddress.ip_address(V6.vip).packed + b"\0\x50\0\0"
    option = GeneveOptions(classid=0x014B, type=0x81, data=data)
    outer = IP(src=V4.own, dst=V4.backends[0]) / UDP(sport=50000, dport=6081, chksum=0)
    frame = outer / GENEVE(proto=0x6558, vni=2, options=[option]) / inner / Raw(packet)
    assert side.take(routed(bytes(frame))) == Passed(routed(packet), FORWARDED)
    for passed in map(side.restore, out(V6, SYN_ACK, backend(V6))):
        assert passed == Passed(out(V6, SYN_ACK, service(V6))[0], FORWARDED)


@families
def test_a_service_at_geneves_port(side: Side, family: Family) -> None:
    """A datagram with an option is no tunnel, whatever its port."""
    (packet,) = DATAGRAM.packets(family, (backend(family)[0], 6081))
    frame = routed(dsr_packets.with_option(packet, service(family)))
    assert side.take(frame) == Passed(routed(packet), FORWARDED)


@families
@dispatches
def test_other_services(side: Side, family: Family, dispatch: str) -> None:
    """What is for an address that this node does not serve passes as it is."""
    side.reset([family.other_vip])
    for frame in sent(dispatch, family, SYN):
        assert side.take(frame) == Passed(frame, None)
    assert side.flows() == (0, 0)


@families
def test_directors(picky: Side, family: Family) -> None:
    """Geneve from another node is dropped, and so is any option: nobody knows who put it in."""
    for frame in sent("geneve", family, SYN):
        assert picky.take(frame).reason == FORWARDED
        forged = bytearray(frame)
        forged[29 if family.version == 4 else 37] ^= 1
        assert picky.take(bytes(forged)).reason == DropReason.INVALID_SOURCE
    for frame in sent("geneve", family, ACK, tells=False):
        forged = bytearray(frame)
        forged[29 if family.version == 4 else 37] ^= 1
        assert picky.take(bytes(forged)) == Passed(bytes(forged), None)
    for frame in sent("opt", family, SYN):
        assert picky.take(frame).reason == DropReason.INVALID_SOURCE


def geneve(family: Family, *, inside: str = "", port: int = 6081, **fields: object) -> bytes:
    """A frame in Geneve without the option, for the backend's node."""
    to = backend(family)[0]
    (packet,) = ACK.packets(family, (inside or to, 8080))
    kind = 0x0800 if family.version == 4 else 0x86DD
    inner = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02", type=kind) / Raw(packet)
    outer = family.ip(family.own, to).payload / UDP(sport=50000, dport=port)
    tunnel = GENEVE(**{"proto": 0x6558, "vni": 2, **fields})
    return routed(bytes(outer / tunnel / Raw(bytes(inner))))


OTHERS_GENEVE = {
    "another node's": {"inside": True},
    "an identity's": {"vni": 4242},
    "no Ethernet": {"proto": 0x0800},
    "another version": {"version": 1},
    "another port": {"port": 6082},
    "another option": {"options": [GeneveOptions(classid=0x014B, type=0x01, data=bytes(8))]},
    "another class": {"options": [GeneveOptions(classid=0x0102, type=0x81, data=bytes(8))]},
    "another length": {"options": [GeneveOptions(classid=0x014B, type=0x81, data=bytes(12))]},
    "two options": {"options": [GeneveOptions(classid=0x014B, type=0x81, data=bytes(8))] * 2},
}


@families
@pytest.mark.parametrize("what", OTHERS_GENEVE)
def test_geneve_of_others(side: Side, family: Family, what: str) -> None:
    """The host's own tunnels are left alone."""
    fields = dict(OTHERS_GENEVE[what])
    if "inside" in fields:
        fields["inside"] = family.backends[1]
    frame = geneve(family, **fields)  # type: ignore[arg-type]
    assert side.take(frame) == Passed(frame, None)


@families
@dispatches
def test_cut_off(side: Side, family: Family, dispatch: str) -> None:
    """However short a packet is, it passes or is dropped; the rest of the frame is not invented."""
    (frame,) = sent(dispatch, family, DATAGRAM)
    for length in range(34 if family.version == 4 else 54, len(frame)):
        passed = side.take(frame[:length])
        assert len(passed.data) <= length


def test_options_of_others(side: Side) -> None:
    """Options that look alike, by one byte."""
    (packet,) = SYN.packets(V4, backend(V4))
    for index, value in ((20, 0x9B), (21, 7)):
        frame = bytearray(routed(dsr_packets.with_option(packet, service(V4))))
        frame[14 + index] = value
        assert side.take(bytes(frame)) == Passed(bytes(frame), None)
    (packet,) = SYN.packets(V6, backend(V6))
    mapped = (f"::ffff:{V4.vip}", 80)
    for index, value in ((41, 1), (42, 0x1C), (43, 19)):
        frame = bytearray(routed(dsr_packets.with_option(packet, service(V6))))
        frame[14 + index] = value
        assert side.take(bytes(frame)) == Passed(bytes(frame), None)
    same = routed(dsr_packets.with_option(packet, mapped))
    assert side.take(same) == Passed(same, None)


# ---------------------------------------------------------------------- what goes out


@families
@dispatches
@pytest.mark.parametrize("shape", ANSWERS, ids=str)
def test_answers_come_from_the_service(
    side: Side, family: Family, dispatch: str, shape: Shape
) -> None:
    """Each kind of answer to a flow that is known, with all checksums."""
    asked = SYN if shape.protocol == "TCP" else DATAGRAM
    opened(side, family, dispatch, asked)
    frames = out(family, shape, backend(family))
    for frame, expected in zip(frames, out(family, shape, service(family)), strict=True):
        assert side.restore(frame) == Passed(expected, FORWARDED)
        side.check_sums(sent(dispatch, family, asked)[0], frame)


@families
@pytest.mark.parametrize("shape", ANSWERS, ids=str)
def test_other_traffic_is_untouched(side: Side, family: Family, shape: Shape) -> None:
    """What the node says to others, from other ports, or without having been asked."""
    frames = out(family, shape, backend(family))
    for frame in frames:
        assert side.restore(frame) == Passed(frame, None)
    opened(side, family, "opt", SYN, DATAGRAM)
    other = (backend(family)[0], 9090)
    for frame in out(family, shape, other):
        assert side.restore(frame) == Passed(frame, None)
    stranger = dsr_packets.evolve(family, client=family.other_client)
    for frame in out(stranger, shape, backend(family)):
        assert side.restore(frame) == Passed(frame, None)


@families
def test_what_is_for_the_node_itself(side: Side, family: Family) -> None:
    """A client that asks the backend's own address, from the same port, is answered from there."""
    for asked, answered in ((SYN, SYN_ACK), (DATAGRAM, REPLY)):
        opened(side, family, "opt", asked)
        (frame,) = out(family, answered, backend(family))
        assert side.restore(frame).reason == FORWARDED
        (own,) = plain(family, asked)
        assert side.take(own) == Passed(own, None)
        assert side.restore(frame) == Passed(frame, None)


@families
def test_a_flow_changes_its_service(side: Side, family: Family) -> None:
    """The same client and port, by another of the services: answers follow."""
    side.reset([family.vip, family.other_vip])
    (packet,) = SYN.packets(family, backend(family))
    for vip in (family.vip, family.other_vip):
        side.take(routed(dsr_packets.with_option(packet, (vip, 80))))
        (frame,) = out(family, SYN_ACK, backend(family))
        assert side.restore(frame).data == out(family, SYN_ACK, (vip, 80))[0]


# ---------------------------------------------------------------------- lives


LIVES = [
    ("SYN", 60),
    ("SYN, SYN ACK", 60),
    ("SYN, SYN ACK, ACK", 8000),
    ("SYN, SYN ACK, data", 8000),
    ("SYN, SYN ACK, ACK, client's FIN", 8000),
    ("SYN, SYN ACK, ACK, FIN", 8000),
    ("SYN, SYN ACK, ACK, client's FIN, FIN", 10),
    ("SYN, SYN ACK, ACK, RST", 10),
    ("SYN, SYN ACK, ACK, client's FIN, FIN, SYN", 60),
    ("datagram", 60),
    ("datagram, datagram", 60),
    ("datagram, reply", 60),
]
COMES = {"SYN": SYN, "ACK": ACK, "client's FIN": dsr_packets.FIN, "datagram": DATAGRAM}
GOES = {"SYN ACK": SYN_ACK, "data": DATA, "FIN": FIN, "RST": RST, "reply": REPLY}


def play(side: Side, text: str, family: Family = V4) -> None:
    """The packets of a connection, in order."""
    for name in text.split(", "):
        if name in COMES:
            opened(side, family, "opt", COMES[name])
        else:
            for frame in out(family, GOES[name], backend(family)):
                side.restore(frame)


@pytest.mark.parametrize(("packets", "seconds"), LIVES)
def test_lives(side: Side, packets: str, seconds: int) -> None:
    """As long as Cilium's: before the handshake, open, closed by both, and of datagrams."""
    play(side, packets)
    rows = [*side.maps["dsr_flows"].items(), *side.maps["dsr_pending"].items()]
    ((_, flow),) = rows
    left = (flow.expires - balancer.jiffies()) / balancer.hz()
    assert seconds - 3 < left <= seconds + 1


KNOWN = [
    ("SYN", False),
    ("SYN, SYN", False),
    ("SYN, SYN ACK", False),
    ("SYN, RST", False),
    ("SYN, SYN ACK, ACK", True),
    ("SYN, SYN ACK, data", True),
    ("datagram", False),
    ("datagram, reply, reply", False),
    ("datagram, datagram", True),
]


@pytest.mark.parametrize(("packets", "known"), KNOWN)
def test_first_packets_wait_apart(side: Side, packets: str, known: bool) -> None:
    """A flow is known when its client has shown itself twice, or TCP is past its handshake."""
    play(side, packets)
    assert side.flows() == ((1, 0) if known else (0, 1))


def test_a_flood_does_not_evict_what_is_known(side: Side) -> None:
    """Ten times as many SYNs as fit; known connections, idle all the while, are restored still."""
    ports = range(2000, 2050)
    packets = {port: bytearray(SYN.packets(V4, backend(V4))[0]) for port in ports}

    def on(frame: bytes, port: int, at: int) -> bytes:
        return frame[:at] + port.to_bytes(2, "big") + frame[at + 2 :]

    (syn,) = sent("opt", V4, SYN)
    (ack,) = plain(V4, ACK)
    for port in packets:
        side.take(on(syn, port, 42))
        side.take(on(ack, port, 34))
    assert side.flows() == (50, 0)
    for number in range(10 * dsr_side.FLOWS):
        spoofed = on(on(syn, number & 0xFFFF, 42), number >> 3, 28)
        side._take.run(spoofed)
    (data,) = out(V4, DATA, backend(V4))
    for port in packets:
        assert side.restore(on(data, port, 36)).reason == FORWARDED


def test_what_expired_is_gone(side: Side) -> None:
    """Then answers go out as the node's own, for they may be about something new."""
    opened(side, V4)
    (frame,) = out(V4, DATA, backend(V4))
    assert side.restore(frame).reason == FORWARDED
    keys, values = side.maps["dsr_flows"].lookup_batch()
    values["expires"] = (balancer.jiffies() - 1) & 0xFFFFFFFF
    side.maps["dsr_flows"].update_batch(keys, values)
    assert side.restore(frame) == Passed(frame, None)


def test_later_fragments_alone(side: Side) -> None:
    """Which came in without the first: taken off, and nothing is remembered by them."""
    later = sent("opt", V4, FRAGMENTS)[1]
    assert side.take(later) == Passed(plain(V4, FRAGMENTS)[1], FORWARDED)
    assert side.flows() == (0, 0)
    frames = out(V4, LONG_REPLY, backend(V4))
    assert side.restore(frames[1]) == Passed(frames[1], None)


def test_an_error_about_a_flow_that_is_gone(side: Side) -> None:
    """It passes: what it is about may be the node's own."""
    (frame,) = out(V4, UNREACHABLE, backend(V4))
    assert side.restore(frame) == Passed(frame, None)
