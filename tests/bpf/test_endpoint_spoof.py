"""Who may send what from where, and what is no IP packet that we judge."""

from __future__ import annotations

import pytest
from scapy.layers.inet import ICMP, IP, TCP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Raw

from pyciliumlib.flow import DropReason
from tests.bpf.harness import CLIENT, EGRESS, FROM, INGRESS, OK, SERVER, SHOT, TO, Rig
from tests.bpf.packets import ACK, CLIENT_MAC, CLIENT_NODE_MAC, FAMILIES, SYN_ACK, V4, V6, Family

families = pytest.mark.parametrize("family", FAMILIES, ids=str)


@families
@pytest.mark.parametrize("forged", ["server", "peer", "world"])
@pytest.mark.parametrize("target", ["server", "world", "client"])
def test_a_forged_source_is_dropped(rig: Rig, family: Family, forged: str, target: str) -> None:
    """An endpoint sends from its own addresses only, whatever policy says."""
    rig.allow_all()
    frame = family.tcp(getattr(family, forged), getattr(family, target))
    outcome = rig.send(FROM, CLIENT, frame)
    assert (outcome.action, outcome.drop) == (SHOT, DropReason.INVALID_SOURCE)
    assert outcome.events[-1].endpoint == CLIENT
    assert rig.flow_count() == (0, 0)


@families
def test_every_address_of_an_endpoint_is_its_own(rig: Rig, family: Family) -> None:
    """More than one address may be behind a device."""
    rig.allow_all()
    assert rig.send(FROM, CLIENT, family.tcp(family.client_second, family.server)).passed


@families
@pytest.mark.parametrize("flags", [ACK, SYN_ACK])
def test_a_forger_finds_no_way_through_an_established_flow(
    rig: Rig, family: Family, flags: str
) -> None:
    """The flow's entry says from which device each side must come."""
    rig.allow_all()
    rig.send(FROM, CLIENT, family.tcp(family.client, family.world))
    rig.send(TO, CLIENT, family.tcp(family.world, family.client, 40000, SYN_ACK, 80))
    genuine = rig.only_flow()
    forged = [
        family.tcp(family.client, family.world, flags=flags),
        family.tcp(family.world, family.client, 40000, flags, 80),
    ]
    for frame in forged:
        outcome = rig.send(FROM, SERVER, frame)
        assert outcome.drop == DropReason.INVALID_SOURCE
    assert rig.only_flow() == genuine


@families
@pytest.mark.parametrize("source", ["client", "client_second", "server"])
def test_the_stack_does_not_speak_for_an_endpoint(rig: Rig, family: Family, source: str) -> None:
    """A packet with an endpoint's source that comes from the stack is forged."""
    rig.allow_all()
    outcome = rig.send(TO, SERVER, family.tcp(getattr(family, source), family.server))
    assert (outcome.action, outcome.drop) == (SHOT, DropReason.INVALID_SOURCE)


@families
def test_the_stack_sends_to_a_device_what_is_for_its_endpoint(rig: Rig, family: Family) -> None:
    """A packet for another address does not reach the endpoint."""
    rig.allow_all()
    outcome = rig.send(TO, SERVER, family.tcp(family.world, family.client))
    assert (outcome.action, outcome.drop) == (SHOT, DropReason.INVALID_SOURCE)


@pytest.mark.parametrize("hook", [FROM, TO])
@pytest.mark.parametrize(
    ("src", "dst"),
    [
        ("::ffff:10.0.0.1", V6.server),
        (V6.client, "::ffff:10.0.0.2"),
        ("::ffff:10.0.0.1", "::ffff:10.0.0.2"),
    ],
)
def test_a_v4_mapped_address_on_the_wire_is_dropped(
    rig: Rig, hook: str, src: str, dst: str
) -> None:
    """Keys hold IPv4 as v4-mapped, so such a packet would pass for an IPv4 one."""
    rig.allow_all()
    outcome = rig.send(hook, CLIENT, V6.tcp(src, dst))
    assert (outcome.action, outcome.drop) == (SHOT, DropReason.V4_MAPPED)


@families
@pytest.mark.parametrize("hook", [FROM, TO])
@pytest.mark.parametrize("kind", [0x8100, 0x88A8])
def test_a_vlan_tag_is_dropped(rig: Rig, family: Family, hook: str, kind: int) -> None:
    """Behind a tag is another network; nothing here knows its policy."""
    rig.allow_all()
    tagged = Ether(family.tcp(family.client, family.server))
    frame = bytes(
        Ether(src=tagged.src, dst=tagged.dst, type=kind)
        / Dot1Q(vlan=5, type=tagged.type)
        / tagged.payload
    )
    outcome = rig.send(hook, CLIENT, frame)
    assert (outcome.action, outcome.drop) == (SHOT, DropReason.VLAN)


@pytest.mark.parametrize("hook", [FROM, TO])
@pytest.mark.parametrize("kind", [0x88CC, 0x8847, 0x0001])
def test_what_is_not_ip_is_dropped(rig: Rig, hook: str, kind: int) -> None:
    """LLDP, MPLS, and whatever else."""
    frame = bytes(Ether(src=CLIENT_MAC, dst=CLIENT_NODE_MAC, type=kind) / Raw(bytes(60)))
    outcome = rig.send(hook, CLIENT, frame)
    assert (outcome.action, outcome.drop) == (SHOT, DropReason.UNSUPPORTED_L3)


@families
@pytest.mark.parametrize("number", [2, 4, 41, 47, 50, 89, 255])
def test_an_unknown_transport_is_dropped(rig: Rig, family: Family, number: int) -> None:
    """Neither ports nor types: policy has nothing to judge by."""
    rig.allow_all()
    outcome = rig.send(FROM, CLIENT, family.protocol(family.client, family.server, number))
    assert (outcome.action, outcome.drop) == (SHOT, DropReason.UNKNOWN_L4)


def test_the_other_familys_icmp_is_unknown(rig: Rig) -> None:
    """ICMP in IPv6 and ICMPv6 in IPv4 have no meaning."""
    rig.allow_all()
    icmp = bytes(ICMP()) + bytes(24)
    frames = [
        bytes(V6.ip(V6.client, V6.server, nh=1) / Raw(icmp)),
        bytes(V4.ip(V4.client, V4.server, proto=58) / Raw(b"\x80" + icmp[1:])),
    ]
    for frame in frames:
        assert rig.send(FROM, CLIENT, frame).drop == DropReason.UNKNOWN_L4


def test_the_version_must_be_what_ethernet_says(rig: Rig) -> None:
    """A frame whose type and IP version differ is no packet."""
    rig.allow_all()
    link = Ether(src=CLIENT_MAC, dst=CLIENT_NODE_MAC)
    six_as_four = bytes(link / IPv6(src=V6.client, dst=V6.server) / TCP())
    four_as_six = bytes(link / IP(src=V4.client, dst=V4.server) / TCP() / Raw(bytes(40)))
    for frame, kind in ((six_as_four, b"\x08\x00"), (four_as_six, b"\x86\xdd")):
        outcome = rig.send(FROM, CLIENT, frame[:12] + kind + frame[14:])
        assert outcome.drop == DropReason.INVALID_PACKET


@families
def test_a_stranger_at_a_device_that_is_no_endpoints(rig: Rig, family: Family) -> None:
    """Without an entry in `endpoints` there is no source that a device may use."""
    rig.allow_all()
    rig.maps["endpoints"].clear()
    outcome = rig.send(FROM, CLIENT, family.tcp(family.client, family.world))
    assert outcome.drop == DropReason.INVALID_SOURCE


@families
def test_a_replier_must_be_where_the_flow_says(rig: Rig, family: Family) -> None:
    """A remote end's answer through an endpoint's device is not an answer."""
    rig.rule(CLIENT, EGRESS)
    rig.rule(SERVER, INGRESS)
    rig.send(FROM, CLIENT, family.tcp(family.client, family.world))
    answer = family.tcp(family.world, family.client, 40000, SYN_ACK, 80)
    assert rig.send(FROM, SERVER, answer).drop == DropReason.INVALID_SOURCE
    assert rig.send(TO, CLIENT, answer).action == OK
