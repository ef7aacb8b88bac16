"""`policy.bpf.c` alone: one policy at one device, no endpoints and no forwarding."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from scapy.layers.inet6 import ICMPv6ND_NA, ICMPv6ND_NS, IPv6
from scapy.layers.l2 import Dot1Q, Ether

from pyciliumlib.flow import DropReason
from tests.bpf import harness
from tests.bpf.harness import (
    CLIENT,
    EGRESS,
    INGRESS,
    OK,
    PEER_IDENTITY,
    SHOT,
    Devices,
    Outcome,
    Rig,
)
from tests.bpf.packets import ACK, FAMILIES, SYN, SYN_ACK, V4, V6, Family, arp

families = pytest.mark.parametrize("family", FAMILIES, ids=str)
SUBJECT = 1
SUBJECT_IDENTITY = 777
FROM_SUBJECT, TO_SUBJECT = "policy_from_subject", "policy_to_subject"


@pytest.fixture(scope="module")
def loaded(where: Devices) -> Iterator[Rig]:
    with harness.rig(where, "policy", subject_identity=SUBJECT_IDENTITY) as made:
        yield made


@pytest.fixture
def device(loaded: Rig) -> Rig:
    """The programs with an empty policy, which denies everything."""
    loaded.reset()
    return loaded


def out(rig: Rig, frame: bytes) -> Outcome:
    """A packet that the subject sends."""
    return rig.send(FROM_SUBJECT, CLIENT, frame)


def into(rig: Rig, frame: bytes) -> Outcome:
    """A packet that comes to it."""
    return rig.send(TO_SUBJECT, CLIENT, frame)


@families
def test_what_the_subject_may_open(device: Rig, family: Family) -> None:
    """Egress by the remote end's identity, protocol and port; the packet is not touched."""
    device.rule(SUBJECT, EGRESS, identity=PEER_IDENTITY, proto=6, port=80, cookie=5)
    frame = family.tcp(family.client, family.peer, 80)
    outcome = out(device, frame)
    assert (outcome.action, outcome.packet) == (OK, frame)
    assert outcome.verdicts == [(EGRESS, 0, 5)]
    assert outcome.events[0].src_identity == SUBJECT_IDENTITY
    assert outcome.events[0].dst_identity == PEER_IDENTITY
    for other in (
        family.tcp(family.client, family.peer, 81),
        family.udp(family.client, family.peer, 80),
        family.tcp(family.client, family.world, 80),
    ):
        outcome = out(device, other)
        assert (outcome.action, outcome.drop) == (SHOT, DropReason.POLICY)
        assert outcome.events[-1].endpoint == SUBJECT


@families
def test_what_may_be_opened_to_it(device: Rig, family: Family) -> None:
    """Ingress is judged at the other hook."""
    device.rule(SUBJECT, INGRESS, identity=PEER_IDENTITY, proto=17, port=53)
    assert into(device, family.udp(family.peer, family.server, 53)).action == OK
    assert into(device, family.udp(family.world, family.server, 53)).drop == DropReason.POLICY
    assert out(device, family.udp(family.server, family.peer, 53)).drop == DropReason.POLICY


@families
def test_answers_need_no_rule(device: Rig, family: Family) -> None:
    """In both directions, and the flow moves to `flows`."""
    device.rule(SUBJECT, EGRESS)
    assert out(device, family.tcp(family.client, family.peer)).passed
    assert into(device, family.tcp(family.peer, family.client, 40000, SYN_ACK, 80)).passed
    assert device.flow_count() == (1, 0)
    device.reset()
    device.rule(SUBJECT, INGRESS)
    assert into(device, family.tcp(family.peer, family.client)).passed
    assert out(device, family.tcp(family.client, family.peer, 40000, SYN_ACK, 80)).passed
    assert device.flow_count() == (1, 0)


@families
def test_each_side_comes_through_its_own_hook(device: Rig, family: Family) -> None:
    """The subject's packet at the other hook is a forgery of it."""
    device.rule(SUBJECT, EGRESS)
    frame = family.tcp(family.client, family.peer, flags=ACK)
    assert out(device, frame).passed
    assert into(device, frame).drop == DropReason.INVALID_SOURCE


@families
@pytest.mark.parametrize("changes", [0, 3])
def test_established_flows_and_a_change(device: Rig, family: Family, changes: int) -> None:
    """Decided once, and again when the policy, the remote address or a prefix has changed."""
    bumps: tuple[Callable[[], None], ...] = (
        lambda: device.bump_policy(SUBJECT),
        lambda: device.bump_address(family.peer),
        device.bump_prefixes,
    )
    for _ in range(changes):
        device.bump_prefixes()
    for bump in bumps:
        device.reset()
        device.rule(SUBJECT, EGRESS)
        out(device, family.tcp(family.client, family.peer))
        into(device, family.tcp(family.peer, family.client, 40000, SYN_ACK, 80))
        device.clear_rules(SUBJECT)
        data = family.tcp(family.client, family.peer, flags=ACK)
        back = family.tcp(family.peer, family.client, 40000, ACK, 80)
        # Were the flow decided again, the policy without rules would drop it.
        assert out(device, data).action == into(device, back).action == OK
        bump()
        assert into(device, back).drop == out(device, data).drop == DropReason.POLICY


@families
def test_errors_come_with_their_flow(device: Rig, family: Family) -> None:
    """Whoever on the way sends them."""
    device.rule(SUBJECT, EGRESS)
    quoted = family.udp(family.client, family.world)
    out(device, quoted)
    assert into(device, family.unreachable(family.router, family.client, quoted)).action == OK
    stranger = family.unreachable(family.router, family.server, quoted)
    assert into(device, stranger).drop == DropReason.POLICY


def test_the_link_works_whatever_the_policy(device: Rig) -> None:
    """ARP and neighbour discovery pass both hooks, for nothing answers in their place."""
    frames = [arp(1, V4.client, V4.server), arp(2, V4.client, V4.server)] + [
        bytes(Ether() / IPv6(src=V6.client, dst=V6.server, hlim=255) / message)
        for message in (ICMPv6ND_NS(tgt=V6.server), ICMPv6ND_NA(tgt=V6.server))
    ]
    frames += [V6.icmp_message(V6.client, V6.server, kind) for kind in (130, 131, 132, 143)]
    for frame in frames:
        for send in (out, into):
            outcome = send(device, frame)
            assert (outcome.action, outcome.packet, outcome.events) == (OK, frame, ())


def test_the_subject_finds_routers_and_is_none(device: Rig) -> None:
    """It may ask for routers and hear them. What would make others send through it is judged."""
    ask, tell, redirect = (V6.icmp_message(V6.client, V6.peer, kind) for kind in (133, 134, 137))
    told, asked = (V6.icmp_message(V6.peer, V6.client, kind) for kind in (134, 133))
    assert out(device, ask).action == into(device, told).action == OK
    for outcome in (out(device, tell), out(device, redirect), into(device, asked)):
        assert outcome.drop == DropReason.POLICY
    device.rule(SUBJECT, EGRESS, proto=58, port=134)
    assert out(device, tell).action == OK
    assert out(device, redirect).drop == DropReason.POLICY


@pytest.mark.parametrize("kind", [137, 138, 139, 142, 144, 160, 200, 255])
def test_other_icmpv6_is_for_policy(device: Rig, kind: int) -> None:
    """Types above neighbour discovery can be routed: they are no way around an empty policy."""
    frame = V6.icmp_message(V6.client, V6.world, kind)
    assert out(device, frame).drop == DropReason.POLICY
    assert into(device, V6.icmp_message(V6.world, V6.client, kind)).drop == DropReason.POLICY
    device.rule(SUBJECT, EGRESS, proto=58, port=kind)
    assert out(device, frame).action == OK


@families
@pytest.mark.parametrize("send", [out, into])
def test_what_is_no_packet_for_a_policy(
    device: Rig, family: Family, send: Callable[[Rig, bytes], Outcome]
) -> None:
    """The same refusals as at an endpoint, whatever the policy allows."""
    device.allow_all(SUBJECT)
    whole = family.tcp(family.client, family.peer)
    tagged = Ether(whole)
    vlan = Ether(type=0x8100) / Dot1Q(vlan=1, type=tagged.type) / tagged.payload
    refused = {
        DropReason.INVALID_PACKET: whole[: family.headers + 19],
        DropReason.VLAN: bytes(vlan),
        DropReason.UNKNOWN_L4: family.protocol(family.client, family.peer, 47),
        DropReason.UNSUPPORTED_L3: whole[:12] + b"\x88\xcc" + whole[14:],
        DropReason.V4_MAPPED: V6.tcp("::ffff:10.0.0.1", V6.peer),
    }
    for reason, frame in refused.items():
        outcome = send(device, frame)
        assert (outcome.action, outcome.drop) == (SHOT, reason)


@families
def test_metrics(device: Rig, family: Family) -> None:
    """One direction for each hook."""
    device.rule(SUBJECT, EGRESS)
    frame = family.tcp(family.client, family.peer, 80, SYN)
    out(device, frame)
    into(device, family.tcp(family.peer, family.client, 81))
    assert device.metrics() == {
        (EGRESS, 0): (1, len(frame)),
        (INGRESS, DropReason.POLICY): (1, len(frame)),
    }
