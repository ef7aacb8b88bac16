"""What user space is told: events, the cookie of the rule, metrics, and what the ring lost."""

from __future__ import annotations

import ipaddress
import time
from pathlib import Path

import pytest

from pyciliumlib.conntrack.program import kernel_clock
from pyciliumlib.flow import DropReason
from pyciliumlib.flow.program import FlowStream
from pyciliumlib.kernel import ObjectSpec
from pyciliumlib.resources import include_dir
from tests.bpf import harness
from tests.bpf.compiled import compile_bpf
from tests.bpf.harness import (
    CLIENT,
    CLIENT_IDENTITY,
    EGRESS,
    FROM,
    INGRESS,
    PEER_IDENTITY,
    SERVER,
    SERVER_IDENTITY,
    TO,
    Devices,
    Rig,
)
from tests.bpf.packets import ACK, FAMILIES, SYN, SYN_ACK, V6, Family
from tests.bpf.test_endpoint_flows import answer, client_may_reach_server, establish, request

families = pytest.mark.parametrize("family", FAMILIES, ids=str)
DROP, TRACE, VERDICT = 1, 4, 5
TO_ENDPOINT, TO_STACK = 0, 3
IPV6, REPLY, NEW = 1, 2, 4
SYN_FLAG, ACK_FLAG = 2, 16


@families
def test_a_drop_says_everything(rig: Rig, family: Family) -> None:
    """Who, where, why, and which line of which file."""
    frame = family.tcp(family.peer, family.server, 8080, SYN, 1234)
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    *_, event = rig.send(TO, SERVER, frame).events
    assert before <= event.time_ns <= time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    assert (event.type, event.reason, event.direction) == (DROP, DropReason.POLICY, INGRESS)
    assert event.src == ipaddress.ip_address(family.peer)
    assert event.dst == ipaddress.ip_address(family.server)
    assert (event.src_identity, event.dst_identity) == (PEER_IDENTITY, SERVER_IDENTITY)
    assert (event.sport, event.dport, event.proto) == (1234, 8080, 6)
    assert (event.tcp_flags, event.length) == (SYN_FLAG, len(frame))
    assert event.endpoint == SERVER
    assert event.ifindex == rig.where.ifindex[SERVER]
    assert event.flags == (IPV6 if family is V6 else 0)
    assert event.file
    assert event.line


@families
def test_a_new_flow_between_endpoints_is_told_by_both_ends(rig: Rig, family: Family) -> None:
    """A verdict of each policy with its rule, and one trace of the delivery."""
    rig.rule(CLIENT, EGRESS, cookie=11)
    rig.rule(SERVER, INGRESS, cookie=22)
    told = [
        (e.type, e.reason, e.direction, e.endpoint, e.rule, e.flags & ~IPV6)
        for e in request(rig, family, SYN).events
    ]
    assert told == [
        (VERDICT, 0, EGRESS, CLIENT, 11, NEW),
        (VERDICT, 0, INGRESS, SERVER, 22, NEW),
        (TRACE, TO_ENDPOINT, INGRESS, SERVER, 22, NEW),
    ]


@families
def test_a_reply_is_told_as_one(rig: Rig, family: Family) -> None:
    """The identities are the packet's, not the flow's."""
    client_may_reach_server(rig)
    request(rig, family, SYN)
    (event,) = answer(rig, family, SYN_ACK).events
    assert (event.type, event.reason, event.endpoint) == (TRACE, TO_ENDPOINT, CLIENT)
    assert (event.src_identity, event.dst_identity) == (SERVER_IDENTITY, CLIENT_IDENTITY)
    assert event.flags & ~IPV6 == REPLY
    assert event.tcp_flags == SYN_FLAG | ACK_FLAG


@families
def test_what_goes_to_the_stack(rig: Rig, family: Family) -> None:
    """The trace is of the sender's egress."""
    rig.rule(CLIENT, EGRESS)
    (trace,) = rig.send(FROM, CLIENT, family.udp(family.client, family.world)).traces
    assert (trace.reason, trace.direction, trace.endpoint) == (TO_STACK, EGRESS, CLIENT)
    assert (trace.src_identity, trace.dst_identity) == (CLIENT_IDENTITY, family.world_identity)


@families
def test_a_flow_that_goes_on_is_told_now_and_then(rig: Rig, family: Family) -> None:
    """Not each packet: after five seconds the next one."""
    client_may_reach_server(rig)
    establish(rig, family)
    assert [request(rig, family, ACK).events for _ in range(3)] == [(), (), ()]
    flows = rig.maps["flows"]
    keys, values = flows.lookup_batch()
    values["due"] -= 6 * kernel_clock().hz
    flows.update_batch(keys, values)
    assert [event.type for event in request(rig, family, ACK).events] == [TRACE]
    assert request(rig, family, ACK).events == ()


def test_every_packet_is_told_on_demand(where: Devices) -> None:
    """With `trace_every_packet` nothing is left out."""
    with harness.rig(where, trace_every_packet=True) as rig:
        for family in FAMILIES:
            client_may_reach_server(rig)
            establish(rig, family)
            assert [event.type for event in request(rig, family, ACK).events] == [TRACE]
            assert [event.type for event in answer(rig, family, ACK).events] == [TRACE]


@families
def test_a_ping_tells_its_type(rig: Rig, family: Family) -> None:
    """ICMP has a type where others have ports."""
    rig.rule(CLIENT, EGRESS)
    event = rig.send(FROM, CLIENT, family.echo(family.client, family.world)).events[0]
    assert (event.proto, event.icmp_type) == (family.icmp, family.echo_request)


@families
def test_metrics_count_by_direction_and_reason(rig: Rig, family: Family) -> None:
    """A delivery between endpoints is egress of the one and ingress of the other."""
    client_may_reach_server(rig)
    establish(rig, family)
    bare = len(family.tcp(family.client, family.server))
    assert rig.metrics() == {(EGRESS, 0): (3, 3 * bare), (INGRESS, 0): (3, 3 * bare)}

    request(rig, family, ACK, payload=bytes(50))
    rig.send(FROM, CLIENT, family.tcp(family.client, family.server, 81))
    rig.send(FROM, SERVER, family.tcp(family.client, family.server, 80))
    rig.send(TO, SERVER, family.tcp(family.world, family.server, 81))
    assert rig.metrics() == {
        (EGRESS, 0): (4, 4 * bare + 50),
        (INGRESS, 0): (4, 4 * bare + 50),
        (EGRESS, DropReason.POLICY): (1, bare),
        (EGRESS, DropReason.INVALID_SOURCE): (1, bare),
        (INGRESS, DropReason.POLICY): (1, bare),
    }


@families
def test_what_goes_to_the_stack_is_no_ingress(rig: Rig, family: Family) -> None:
    """Whoever receives it counts it."""
    rig.rule(CLIENT, EGRESS)
    frame = family.udp(family.client, family.world)
    rig.send(FROM, CLIENT, frame)
    assert rig.metrics() == {(EGRESS, 0): (1, len(frame))}


def test_a_full_ring_counts_what_it_loses(where: Devices) -> None:
    """The packets' fate does not depend on it."""
    size, sent = 4096, 100
    with harness.rig(where, sizes={"events": size}) as rig:
        frame = V6.tcp(V6.peer, V6.server)
        with where.netns.enter():
            for _ in range(sent):
                rig.programs[TO].run(frame, {"ifindex": where.ifindex[SERVER]})
        told = len(rig.drain())
        lost = sum(rig.maps["events_lost"][0])
        record = 8 + 80  # the kernel's header, and struct event
        assert size // record - 1 <= told <= size // record
        assert told + lost == 2 * sent  # a verdict and a drop each
        assert rig.metrics()[INGRESS, DropReason.POLICY] == (sent, sent * len(frame))


#: A user's program that shares our ring and tells of what this library has no name for.
OF_THE_USER = """
#include <lib/event.h>

SEC("tc")
int tells(struct __sk_buff *skb)
{
	struct work *work = work_get();

	if (!work)
		return 0;
	work->event = (struct event_context){ .type = skb->mark, .direction = DIRECTION_EGRESS };
	return event_send(skb);
}
"""


def test_an_event_of_another_kind_does_not_end_the_stream(rig: Rig, tmp_path: Path) -> None:
    """It is passed over and counted; what comes before and after it is told."""
    spec = ObjectSpec.open(compile_bpf(OF_THE_USER, tmp_path, include_dir()))
    events = rig.maps["events"]
    spec.resize("events", events.max_entries)
    with spec.load(reuse={"events": events}) as loaded:
        stream = FlowStream(loaded, spec.type("event").dtype, lambda address, identity: None)
        for kind in (DROP, 77, VERDICT, 78):
            loaded.programs["tells"].run(bytes(64), {"mark": kind})
        assert [flow.type for flow in stream.read()] == [DROP, VERDICT]
        assert stream.unknown == 2
        assert stream.read() == [] and stream.unknown == 2
        stream.close()
