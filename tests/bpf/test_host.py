"""`host.bpf.c`: policy of the node itself, at a device that leads out of it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from scapy.layers.inet6 import ICMPv6ND_NA, ICMPv6ND_NS, ICMPv6ND_RA, IPv6
from scapy.layers.l2 import Dot1Q, Ether

from pyciliumlib.flow import DropReason, TracePoint
from tests.bpf import harness
from tests.bpf.harness import (
    CLIENT,
    CLIENT_IDENTITY,
    EGRESS,
    FROM,
    HOST,
    HOST_IDENTITY,
    INGRESS,
    OK,
    PEER_IDENTITY,
    SHOT,
    TO,
    Devices,
    Outcome,
    Rig,
)
from tests.bpf.packets import ACK, FAMILIES, SYN_ACK, V4, V6, Family, arp

families = pytest.mark.parametrize("family", FAMILIES, ids=str)
FROM_HOST, TO_HOST = "from_host", "to_host"
#: TC_ACT_UNSPEC: the next program at the device has its turn.
NEXT = 0xFFFFFFFF


@pytest.fixture(scope="module")
def loaded(where: Devices) -> Iterator[Rig]:
    with harness.rig(where, "host") as made:
        yield made


@pytest.fixture
def host(loaded: Rig) -> Rig:
    """The programs, with a policy of the node that denies everything."""
    loaded.reset()
    loaded.place_host()
    return loaded


@pytest.fixture
def node(rig: Rig) -> Rig:
    """The endpoint programs of the same node; the endpoints themselves are open."""
    rig.place_host()
    rig.allow_all()
    return rig


def out(rig: Rig, frame: bytes, came_by: int = 0) -> Outcome:
    """A packet that leaves the node."""
    return rig.send(FROM_HOST, HOST, frame, came_by=came_by)


def into(rig: Rig, frame: bytes) -> Outcome:
    """A packet that comes to the node."""
    return rig.send(TO_HOST, HOST, frame)


# ---------------------------------------------------------------------- the uplink


@families
def test_what_may_be_opened_to_the_node(host: Rig, family: Family) -> None:
    """Ingress by identity, protocol and port; what is allowed goes on untouched."""
    host.rule(HOST, INGRESS, identity=PEER_IDENTITY, proto=6, port=22, cookie=5)
    frame = family.tcp(family.peer, family.host, 22)
    outcome = into(host, frame)
    assert (outcome.action, outcome.packet) == (NEXT, frame)
    assert outcome.verdicts == [(INGRESS, 0, 5)]
    (trace,) = outcome.traces
    assert (trace.reason, trace.direction, trace.endpoint) == (TracePoint.TO_HOST, INGRESS, HOST)
    assert (trace.src_identity, trace.dst_identity) == (PEER_IDENTITY, HOST_IDENTITY)
    for other, identity in (
        (family.tcp(family.peer, family.host, 23), PEER_IDENTITY),
        (family.udp(family.peer, family.host, 22), PEER_IDENTITY),
        (family.tcp(family.world, family.host, 22), family.world_identity),
        (family.echo(family.world, family.host), family.world_identity),
    ):
        outcome = into(host, other)
        assert (outcome.action, outcome.drop) == (SHOT, DropReason.POLICY)
        drop = outcome.events[-1]
        assert (drop.endpoint, drop.direction, drop.ifindex) == (HOST, INGRESS, host.where.uplink)
        assert (drop.src_identity, drop.dst_identity) == (identity, HOST_IDENTITY)
    assert host.metrics()[INGRESS, DropReason.POLICY][0] == 4
    assert host.metrics()[INGRESS, 0][0] == 1


@families
def test_what_the_node_may_open(host: Rig, family: Family) -> None:
    """Egress, by where it goes."""
    host.rule(HOST, EGRESS, identity=PEER_IDENTITY, proto=17, port=53, cookie=6)
    outcome = out(host, family.udp(family.host, family.peer, 53))
    assert (outcome.action, outcome.verdicts) == (NEXT, [(EGRESS, 0, 6)])
    (trace,) = outcome.traces
    assert (trace.reason, trace.direction, trace.endpoint) == (TracePoint.TO_NETWORK, EGRESS, HOST)
    outcome = out(host, family.udp(family.host, family.world, 53))
    assert (outcome.action, outcome.drop) == (SHOT, DropReason.POLICY)
    assert outcome.events[-1].src_identity == HOST_IDENTITY
    assert into(host, family.udp(family.peer, family.host, 53)).drop == DropReason.POLICY


@families
def test_answers_follow_their_flow(host: Rig, family: Family) -> None:
    """In both directions, without a rule of their own."""
    host.rule(HOST, EGRESS)
    assert out(host, family.tcp(family.host, family.world)).passed
    assert into(host, family.tcp(family.world, family.host, 40000, SYN_ACK, 80)).passed
    assert host.flow_count() == (1, 0)
    host.reset()
    host.place_host()
    host.rule(HOST, INGRESS)
    assert into(host, family.tcp(family.world, family.host)).passed
    assert out(host, family.tcp(family.host, family.world, 40000, SYN_ACK, 80)).passed
    assert host.flow_count() == (1, 0)


@families
def test_a_change_bites_on_the_next_packet(host: Rig, family: Family) -> None:
    """Of an established flow, in both directions."""
    host.rule(HOST, INGRESS)
    request = family.tcp(family.world, family.host, flags=ACK)
    answer = family.tcp(family.host, family.world, 40000, ACK, 80)
    for frame in (family.tcp(family.world, family.host), request):
        assert into(host, frame).passed
    assert out(host, answer).passed
    host.clear_rules(HOST)
    assert into(host, request).passed
    host.bump_policy(HOST)
    assert into(host, request).drop == DropReason.POLICY
    assert out(host, answer).drop == DropReason.POLICY


@families
def test_what_passes_through_is_left_alone(host: Rig, family: Family) -> None:
    """No lookup of a flow, no entry, no event, whatever it is."""
    for frame in (
        family.tcp(family.client, family.world),
        family.tcp(family.world, family.client),
        family.protocol(family.world, family.router, 89),
        family.echo(family.router, family.world),
        *family.fragments(family.udp(family.world, family.client, payload=bytes(100)), 64),
    ):
        for outcome in (out(host, frame), into(host, frame)):
            assert (outcome.action, outcome.packet, outcome.events) == (NEXT, frame, ())
    assert host.flow_count() == (0, 0)
    assert host.metrics() == {}


def test_what_is_no_ip_is_left_alone(host: Rig) -> None:
    """ARP, and frames of a VLAN, which are another device's."""
    tagged = bytes(Ether() / Dot1Q(vlan=5) / IPv6(src=V6.world, dst=V6.host))
    for frame in (arp(1, V4.world, V4.host), arp(2, V4.host, V4.world), tagged):
        for outcome in (out(host, frame), into(host, frame)):
            assert (outcome.action, outcome.packet, outcome.events) == (NEXT, frame, ())


def test_the_link_goes_on(host: Rig) -> None:
    """Neighbour discovery, as each side of the link has it."""
    to_host, from_host = IPv6(src=V6.world, dst=V6.host), IPv6(src=V6.host, dst=V6.world)
    for message in (ICMPv6ND_NS(tgt=V6.host), ICMPv6ND_NA(tgt=V6.host)):
        assert into(host, bytes(Ether() / to_host / message)).action == NEXT
        assert out(host, bytes(Ether() / from_host / message)).action == NEXT
    assert into(host, bytes(Ether() / to_host / ICMPv6ND_RA())).action == NEXT
    assert out(host, bytes(Ether() / from_host / ICMPv6ND_RA())).drop == DropReason.POLICY
    assert host.flow_count() == (0, 0)


@families
def test_what_comes_for_a_group(host: Rig, family: Family) -> None:
    """Multicast and broadcast are for the node, by its policy."""
    groups = ["255.255.255.255", "224.0.0.251"] if family is V4 else ["ff02::1", "ff02::fb"]
    for group in groups:
        assert into(host, family.udp(family.world, group, 5353)).drop == DropReason.POLICY
    host.rule(HOST, INGRESS, proto=17, port=5353)
    host.bump_policy(HOST)
    for group in groups:
        assert into(host, family.udp(family.world, group, 5353)).passed


def test_the_link_goes_on_for_ipv4(host: Rig) -> None:
    """IGMP about groups, and the answers of DHCP; neither to a service of the node."""
    assert into(host, V4.protocol(V4.world, "224.0.0.1", 2)).passed
    assert out(host, V4.protocol(V4.host, "224.0.0.22", 2)).passed
    assert into(host, V4.protocol(V4.world, V4.host, 2)).drop == DropReason.POLICY
    assert into(host, V4.udp(V4.world, "255.255.255.255", 68, sport=67)).passed
    for dport, sport in ((68, 4000), (53, 67)):
        frame = V4.udp(V4.world, "255.255.255.255", dport, sport=sport)
        assert into(host, frame).drop == DropReason.POLICY
    assert out(host, V4.udp(V4.host, V4.world, 68, sport=67)).drop == DropReason.POLICY


@families
def test_nobody_outside_has_an_address_of_this_node(host: Rig, family: Family) -> None:
    """Neither the node's nor an endpoint's."""
    host.allow_all(HOST, CLIENT)
    for source in (family.host, family.client):
        frame = family.tcp(source, family.host)
        assert into(host, frame).drop == DropReason.INVALID_SOURCE


@families
def test_a_forger_gets_nothing_through_the_node(host: Rig, family: Family) -> None:
    """What has the node's address, and comes from outside for somebody behind the node."""
    host.allow_all(HOST, CLIENT)
    for target in (family.client, family.router):
        outcome = host.send(TO_HOST, HOST, family.udp(family.host, target), came_by=1)
        assert outcome.drop == DropReason.INVALID_SOURCE
    assert host.flow_count() == (0, 0)


@families
def test_the_node_and_whom_it_masquerades_share_no_rights(host: Rig, family: Family) -> None:
    """With the same ports, or with none: each packet is judged for whom it is from."""
    for frame in (
        family.udp(family.host, family.world, 9999, sport=161),
        family.protocol(family.host, family.world, 47),
    ):
        assert out(host, frame).drop == DropReason.POLICY
        assert out(host, frame, came_by=9).passed
        assert out(host, frame).drop == DropReason.POLICY
        assert out(host, frame, came_by=9).passed
    answer = family.udp(family.world, family.host, 161, sport=9999)
    host.allow_all(HOST)
    host.bump_policy(HOST)
    assert out(host, family.udp(family.host, family.world, 9999, sport=161)).passed
    host.clear_rules(HOST)
    host.bump_policy(HOST)
    # the flow is the node's own by now
    assert into(host, answer).drop == DropReason.POLICY


@families
def test_masqueraded_flows_are_not_the_nodes(host: Rig, family: Family) -> None:
    """What came in by another device and leaves with the node's address, and its answers."""
    request = family.tcp(family.host, family.world, sport=50000)
    answer = family.tcp(family.world, family.host, 50000, SYN_ACK, 80)
    assert into(host, answer).drop == DropReason.POLICY
    assert out(host, request, came_by=9).passed
    assert into(host, answer).passed
    assert out(host, family.tcp(family.host, family.world, 80, ACK, 50000), came_by=9).passed
    # decided again by an answer, the flow is still the same
    host.bump_policy(HOST)
    assert into(host, family.tcp(family.world, family.host, 50000, ACK, 80)).passed
    # an error about it may come
    error = family.unreachable(family.router, family.host, request)
    assert into(host, error).passed
    # the node itself is judged, with the very same ports
    assert out(host, request).drop == DropReason.POLICY


@families
def test_errors_follow_the_flow_they_are_about(host: Rig, family: Family) -> None:
    """And of nothing else."""
    host.rule(HOST, EGRESS, proto=17)
    request = family.udp(family.host, family.world)
    error = family.unreachable(family.router, family.host, request)
    assert into(host, error).drop == DropReason.POLICY
    assert out(host, request).passed
    assert into(host, error).passed
    other = family.udp(family.host, family.world, 54)
    assert into(host, family.unreachable(family.router, family.host, other)).drop


@families
def test_protocols_without_ports(host: Rig, family: Family) -> None:
    """By their number: all of them where nothing governs the node, none where nothing allows it."""
    frame = family.protocol(family.world, family.host, 89)
    assert into(host, frame).drop == DropReason.POLICY
    host.allow_all(HOST)
    host.bump_policy(HOST)
    assert into(host, frame).passed
    host.clear_rules(HOST)
    host.rule(HOST, INGRESS, proto=89)
    host.bump_policy(HOST)
    assert into(host, frame).passed
    assert into(host, family.protocol(family.world, family.host, 88)).drop == DropReason.POLICY


@families
def test_fragments_to_the_node(host: Rig, family: Family) -> None:
    """The first one tells for all."""
    host.rule(HOST, INGRESS, proto=17, port=53)
    pieces = family.fragments(family.udp(family.world, family.host, payload=bytes(200)), 64)
    assert into(host, pieces[1]).drop == DropReason.FRAGMENT_NOT_FOUND
    assert all(into(host, piece).passed for piece in pieces)


def test_a_v4_mapped_address_is_refused(host: Rig) -> None:
    """It would pass for the node's IPv4 address in every map."""
    host.allow_all(HOST)
    frame = V6.tcp(V6.world, "::ffff:192.0.2.1")
    assert into(host, frame).drop == DropReason.V4_MAPPED


@families
def test_without_a_policy_map_nothing_passes(host: Rig, family: Family) -> None:
    """Fail closed."""
    host.allow_all(HOST)
    host.set_ready(HOST, False)
    assert into(host, family.tcp(family.world, family.host)).drop == DropReason.ENDPOINT_NOT_READY


# ---------------------------------------------------------------------- endpoints of the node


@families
def test_an_endpoint_asks_the_nodes_ingress(node: Rig, family: Family) -> None:
    """The endpoint's egress and the node's ingress, both at the first hook."""
    frame = family.tcp(family.client, family.host)
    outcome = node.send(FROM, CLIENT, frame)
    assert (outcome.action, outcome.drop) == (SHOT, DropReason.POLICY)
    assert outcome.verdicts[0][:2] == (EGRESS, 0)
    drop = outcome.events[-1]
    assert (drop.src_identity, drop.dst_identity) == (CLIENT_IDENTITY, HOST_IDENTITY)
    assert drop.direction == INGRESS
    node.rule(HOST, INGRESS, identity=CLIENT_IDENTITY, proto=6, port=80)
    outcome = node.send(FROM, CLIENT, frame)
    assert outcome.action == OK
    assert [verdict[:2] for verdict in outcome.verdicts] == [(EGRESS, 0), (INGRESS, 0)]
    (trace,) = outcome.traces
    assert (trace.reason, trace.endpoint) == (TracePoint.TO_STACK, CLIENT)
    assert node.send(TO, CLIENT, family.tcp(family.host, family.client, 40000, SYN_ACK, 80)).passed


@families
def test_the_nodes_egress_is_asked_for_an_endpoint(node: Rig, family: Family) -> None:
    """And its answers need nothing more."""
    frame = family.tcp(family.host, family.client)
    outcome = node.send(TO, CLIENT, frame)
    assert (outcome.action, outcome.drop) == (SHOT, DropReason.POLICY)
    assert outcome.events[-1].direction == EGRESS
    node.rule(HOST, EGRESS, proto=6, port=80)
    assert node.send(TO, CLIENT, frame).passed
    assert node.send(
        FROM, CLIENT, family.tcp(family.client, family.host, 40000, SYN_ACK, 80)
    ).passed
    node.clear_rules(HOST)
    node.bump_policy(HOST)
    assert node.send(TO, CLIENT, family.tcp(family.host, family.client, flags=ACK)).drop


@families
def test_masqueraded_to_an_endpoint(node: Rig, family: Family) -> None:
    """What was forwarded with the node's address, as for a NodePort, is not the node's own."""
    frame = family.tcp(family.host, family.client)
    assert node.send(TO, CLIENT, frame).drop == DropReason.POLICY
    assert node.send(TO, CLIENT, frame, came_by=node.where.uplink).passed
    assert node.send(
        FROM, CLIENT, family.tcp(family.client, family.host, 40000, SYN_ACK, 80)
    ).passed
    node.clear_rules(CLIENT)
    node.rule(CLIENT, INGRESS, identity=HOST_IDENTITY)
    node.bump_policy(CLIENT)
    # the flow is denied in both directions: it was the world's
    assert node.send(TO, CLIENT, family.tcp(family.host, family.client, flags=ACK), came_by=1).drop
    answer = family.tcp(family.client, family.host, 40000, ACK, 80)
    assert node.send(FROM, CLIENT, answer).drop == DropReason.POLICY


@families
def test_masqueraded_where_the_node_has_no_policy(rig: Rig, family: Family) -> None:
    """The ipcache says that it is the node; it is, if the node made the packet itself."""
    rig.maps["ipcache"][family.host] = {"identity": HOST_IDENTITY, "flags": 0}
    rig.rule(CLIENT, INGRESS, identity=HOST_IDENTITY)
    frame = family.udp(family.host, family.client)
    for came_by, drop in ((0, 0), (rig.where.uplink, DropReason.POLICY), (0, 0)):
        outcome = rig.send(TO, CLIENT, frame, came_by=came_by)
        assert outcome.drop == drop
        identity = family.world_identity if came_by else HOST_IDENTITY
        assert {event.src_identity for event in outcome.events} <= {identity}


@families
def test_an_endpoint_has_not_the_nodes_address(node: Rig, family: Family) -> None:
    """A forgery by a pod, whatever the node's policy."""
    node.allow_all(HOST)
    outcome = node.send(FROM, CLIENT, family.tcp(family.host, family.peer))
    assert outcome.drop == DropReason.INVALID_SOURCE


@families
def test_the_node_speaks_about_flows_of_endpoints(node: Rig, family: Family) -> None:
    """An error of the node, as a router, about an endpoint's flow needs no rule."""
    request = family.udp(family.client, family.world)
    assert node.send(FROM, CLIENT, request).passed
    error = family.unreachable(family.host, family.client, request)
    assert node.send(TO, CLIENT, error).passed
    other = family.unreachable(family.host, family.client, family.udp(family.client, family.peer))
    assert node.send(TO, CLIENT, other).drop == DropReason.POLICY
