"""Translated connections by test run: ICMP errors, fragments and SCTP, both ways."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from attrs import evolve
from scapy.layers.inet import ICMP
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6EchoRequest,
    ICMPv6PacketTooBig,
    ICMPv6TimeExceeded,
    IPv6ExtHdrFragment,
)
from scapy.layers.l2 import Ether
from scapy.layers.sctp import SCTP, SCTPChunkInit
from scapy.packet import Packet, Raw

from pyciliumlib.flow import DropReason
from pyciliumlib.net import NetNS
from tests.bpf import balancer
from tests.bpf.balancer import (
    OWN_MAC,
    PASS,
    TX,
    V4,
    Family,
    Rig,
)
from tests.bpf.balancer_nat import HOPS, Ends, Talk, on_the_way, served
from tests.bpf.test_loadbalancer_nat import HOOKS, SNAT, families, kinds, sizes

ROUTER = {4: "198.51.100.254", 6: "2001:db8:c::254"}


@pytest.fixture(scope="module")
def where() -> Iterator[tuple[NetNS, int]]:
    with balancer.device() as made:
        yield made


@pytest.fixture(scope="module", params=HOOKS, ids=str)
def loaded(request: pytest.FixtureRequest, where: tuple[NetNS, int]) -> Iterator[Rig]:
    with balancer.rig(where, SNAT, hook=request.param) as made:
        yield made


@pytest.fixture
def rig(loaded: Rig) -> Rig:
    loaded.reset()
    return loaded


# ---------------------------------------------------------------------- ICMP errors

ERRORS: dict[str, tuple[Any, Any]] = {
    "unreachable": (lambda: ICMP(type=3, code=3), lambda: ICMPv6DestUnreach(code=4)),
    "too big": (
        lambda: ICMP(type=3, code=4, nexthopmtu=1400), lambda: ICMPv6PacketTooBig(mtu=1400),
    ),
    "time exceeded": (lambda: ICMP(type=11), lambda: ICMPv6TimeExceeded()),
}  # fmt: skip


def error(what: str, sender: str, quoted: Ends, cut: int | None = None, hops: int = HOPS) -> Packet:
    """What `sender` tells the source of a packet about it; it quotes so many bytes of transport."""
    layer = ERRORS[what][quoted.family.version == 6]()
    fields = {"flags": "A"} if quoted.kind == "TCP" else {}
    about = bytes(quoted.ip() / quoted.l4(**fields) / Raw(b"hello"))
    header = 20 if quoted.family.version == 4 else 40
    about = about[: header + cut] if cut else about
    outer = evolve(quoted, source=sender, destination=quoted.source).ip(hops)
    return Ether(dst=OWN_MAC) / outer / layer / Raw(about)


@families
@kinds
@pytest.mark.parametrize("what", ERRORS)
@pytest.mark.parametrize("cut", [None, 8], ids=["whole", "eight bytes quoted"])
def test_errors_from_the_way_to_the_backend(
    rig: Rig, family: Family, kind: str, what: str, cut: int | None
) -> None:
    """The client hears of the packet that it sent, in the service's name."""
    rig.serve(served(family, kind, count=1))
    talk = Talk(rig, family, kind=kind)
    seen = talk.open()
    outcome = rig.send(error(what, ROUTER[family.version], seen, cut))
    assert outcome.action == TX
    assert outcome.data == on_the_way(error(what, family.vip, talk.ends, cut, HOPS - 1))


@families
@kinds
@pytest.mark.parametrize("what", ERRORS)
@pytest.mark.parametrize("cut", [None, 8], ids=["whole", "eight bytes quoted"])
def test_errors_from_the_way_to_the_client(
    rig: Rig, family: Family, kind: str, what: str, cut: int | None
) -> None:
    """The backend hears of the answer that it sent, from the node."""
    rig.serve(served(family, kind, count=1))
    talk = Talk(rig, family, kind=kind)
    seen = talk.open()
    outcome = rig.send(error(what, ROUTER[family.version], talk.ends.back, cut))
    assert outcome.action == TX
    assert outcome.data == on_the_way(error(what, family.own, seen.back, cut, HOPS - 1))


@families
def test_errors_about_pending_flows(rig: Rig, family: Family) -> None:
    """The first packet is the one that is answered with an error most often."""
    rig.serve(served(family, count=1))
    talk = Talk(rig, family)
    seen = talk.open("S")
    for quoted, to in ((seen, family.client), (talk.ends.back, family.backends[0])):
        outcome = rig.send(error("unreachable", ROUTER[family.version], quoted))
        assert outcome.packet.getlayer(1).dst == to
    assert sizes(rig) == (0, 1, 0, 1)


@families
def test_errors_change_no_flow(rig: Rig, family: Family) -> None:
    """Lives and states are the same afterwards; errors about no flow pass."""
    rig.serve(served(family, count=1))
    talk = Talk(rig, family)
    seen = talk.open()
    talk.answer(seen)
    before = [list(rig.maps[name].items()) for name in ("lb_flows", "lb_nat")]
    for quoted in (seen, talk.ends.back):
        assert rig.send(error("unreachable", ROUTER[family.version], quoted)).action == TX
        other = evolve(quoted, dport=quoted.dport + 1)
        assert rig.send(error("unreachable", ROUTER[family.version], other)).action == PASS
    assert [list(rig.maps[name].items()) for name in ("lb_flows", "lb_nat")] == before


@families
def test_echo_requests_to_the_node_pass(rig: Rig, family: Family) -> None:
    """They are the node's own affair, as are ones to the service."""
    rig.serve(served(family, count=1))
    Talk(rig, family).open()
    echo = ICMP(id=40000) if family.version == 4 else ICMPv6EchoRequest(id=40000)
    for address in (family.own, family.vip):
        assert rig.send(family.ip(family.client, address) / echo).action == PASS


# ---------------------------------------------------------------------- fragments


def fragments(ends: Ends, hops: int = HOPS, size: int = 3000) -> list[Packet]:
    """The fragments of one datagram."""
    version = ends.family.version
    header, cut = (20, 1200) if version == 4 else (40, 1200)
    payload = bytes(ends.ip(hops) / ends.l4() / Raw(b"x" * size))[header:]
    made = []
    for at in range(0, len(payload), cut):
        more, part = at + cut < len(payload), Raw(payload[at : at + cut])
        if version == 4:
            fields = {"flags": "MF" if more else 0, "frag": at // 8, "id": 77, "proto": 17}
            packet = ends.ip(hops, **fields) / part
        else:
            extension = IPv6ExtHdrFragment(offset=at // 8, m=int(more), id=77, nh=17)
            packet = ends.ip(hops) / extension / part
        made.append(Ether(dst=OWN_MAC) / packet)
    return made


@families
def test_fragments_both_ways(rig: Rig, family: Family) -> None:
    """Each as it would be of the translated datagram, whose checksum is in the first."""
    rig.serve(served(family, "UDP", count=1))
    talk = Talk(rig, family, kind="UDP")
    seen = Ends(family, family.own, 40000, family.backends[0], 8080, "UDP")
    for before, after in ((talk.ends, seen), (seen.back, talk.ends.back)):
        sent = [rig.send(fragment) for fragment in fragments(before)]
        assert [outcome.action for outcome in sent] == [TX] * 3
        wanted = [on_the_way(fragment) for fragment in fragments(after, HOPS - 1)]
        assert [outcome.data for outcome in sent] == wanted


@families
def test_fragments_without_their_first(rig: Rig, family: Family) -> None:
    """To the service dropped; to the node itself they are the node's, who can tell."""
    rig.serve(served(family, "UDP", count=1))
    talk = Talk(rig, family, kind="UDP")
    seen = talk.open()
    assert rig.send(fragments(talk.ends)[1]).reason == DropReason.FRAGMENT_NOT_FOUND
    later = fragments(seen.back)[1]
    outcome = rig.send(later)
    assert (outcome.action, outcome.data) == (PASS, bytes(later))


@families
def test_fragments_for_the_node(rig: Rig, family: Family) -> None:
    """Of datagrams to its other ports: untouched, and nothing is remembered of them."""
    rig.serve(served(family, "UDP", count=1))
    Talk(rig, family, kind="UDP").open()
    ends = Ends(family, family.client, 1000, family.own, 1001, "UDP")
    for fragment in fragments(ends):
        assert rig.send(fragment).action == PASS
    assert len(rig.maps["lb_fragments"]) == 0


# ---------------------------------------------------------------------- SCTP


def sctp(ends: Ends, hops: int = HOPS, payload: bytes = b"") -> Packet:
    """A packet of an association, with scapy's CRC32c."""
    chunk = Raw(payload) if payload else SCTPChunkInit(init_tag=7)
    return (
        Ether(dst=OWN_MAC) / ends.ip(hops) / SCTP(sport=ends.sport, dport=ends.dport, tag=9) / chunk
    )


@families
@pytest.mark.parametrize("size", [0, 1, 100, 1400])
@pytest.mark.parametrize("sport", [1000, 40000], ids=["another port", "the client's port"])
def test_sctp(rig: Rig, family: Family, size: int, sport: int) -> None:
    """Ports change, and the CRC over the whole packet follows."""
    rig.serve(served(family, "SCTP", count=1))
    payload = bytes(range(1, 255)) * 6
    talk = Talk(rig, family, sport, "SCTP")
    sent = rig.send(sctp(talk.ends, payload=payload[:size]))
    seen = talk.seen(sent)
    assert (seen.source, seen.destination, seen.dport) == (family.own, family.backends[0], 8080)
    assert (seen.sport == sport) is (sport == 40000)
    assert sent.data == on_the_way(sctp(seen, HOPS - 1, payload[:size]))
    back = rig.send(sctp(seen.back, payload=payload[:size]))
    assert back.data == on_the_way(sctp(talk.ends.back, HOPS - 1, payload[:size]))


@families
def test_sctp_whose_crc_is_left_to_the_device(rig: Rig, family: Family) -> None:
    """0 is what a sender writes there whose device makes the sum."""
    rig.serve(served(family, "SCTP", count=1))
    frame = sctp(Talk(rig, family, 1000, "SCTP").ends)
    frame[SCTP].chksum = 0
    assert rig.send(frame).packet[SCTP].chksum == 0


def test_fragments_of_sctp(rig: Rig) -> None:
    """Their CRC covers bytes that are elsewhere: dropped, unless the ports stay."""
    for backend_port, reason in ((8080, DropReason.WRITE_ERROR), (80, 0)):
        rig.reset()
        rig.serve(served(V4, "SCTP", port=backend_port, count=1))
        ends = Talk(rig, V4, kind="SCTP").ends
        whole = bytes(ends.ip() / SCTP(sport=ends.sport, dport=80) / Raw(b"x" * 400))[20:]
        first = Ether(dst=OWN_MAC) / ends.ip(flags="MF", id=7, proto=132) / Raw(whole[:200])
        assert rig.send(first).reason == reason
