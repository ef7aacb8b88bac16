"""Flows, reasons and metrics as values: decoded from the programs' structs, and shown."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyciliumlib.flow import (
    Direction,
    DropReason,
    Flow,
    FlowService,
    FlowType,
    TracePoint,
    Verdict,
    decode,
    reason_text,
)
from pyciliumlib.flow.metrics import Metric, Metrics
from pyciliumlib.kernel import ObjectSpec
from pyciliumlib.resources import object_path
from pyciliumlib.types.addresses import address_to_bytes, parse_address

SPEC = ObjectSpec.open(object_path("endpoint"))
EVENT = SPEC.type("event").dtype
BPF = Path(__file__).parents[2] / "bpf" / "lib"


def event(**fields: Any) -> np.ndarray[Any, Any]:
    """One `struct event`: a SYN from 10.0.0.1 to port 80 of 10.0.0.2, unless `fields` differ."""
    row = np.zeros(1, EVENT)
    given = {"src": "10.0.0.1", "dst": "10.0.0.2", "sport": 40000, "dport": 80, "proto": 6,
             "src_identity": 1001, "dst_identity": 1002, "type": 1, "reason": 133,
             "direction": 1, "tcp_flags": 2, "length": 54, "endpoint": 7, **fields}  # fmt: skip
    for name in ("src", "dst"):
        data = address_to_bytes(parse_address(given.pop(name)))
        row[name] = np.frombuffer(data, np.uint8)
    for name, value in given.items():
        row[name] = value
    return row


def flow(**fields: Any) -> Flow:
    (found,) = decode(event(**fields), 0.0)
    return found


def test_a_drop_is_decoded() -> None:
    """Every member of the struct finds its attribute; time is from the boot time on."""
    (found,) = decode(event(time_ns=2_500_000_000, rule=9, file=4, line=120), 1000.0)
    assert found == Flow(
        time=1002.5,
        type=FlowType.DROP,
        verdict=Verdict.DROPPED,
        reason=133,
        src=parse_address("10.0.0.1"),
        dst=parse_address("10.0.0.2"),
        sport=40000,
        dport=80,
        protocol=6,
        src_identity=1001,
        dst_identity=1002,
        direction=Direction.EGRESS,
        endpoint=7,
        ifindex=0,
        length=54,
        rule=9,
        tcp_flags=2,
        file=4,
        line=120,
    )
    assert found.dropped and found.drop_reason is DropReason.POLICY


@pytest.mark.parametrize(
    ("fields", "verdict", "reason", "point"),
    [
        ({"type": 4, "reason": 3}, Verdict.FORWARDED, None, TracePoint.TO_STACK),
        ({"type": 4, "reason": 0}, Verdict.FORWARDED, None, TracePoint.TO_ENDPOINT),
        ({"type": 5, "reason": 0}, Verdict.FORWARDED, None, None),
        ({"type": 5, "reason": 181}, Verdict.DROPPED, DropReason.POLICY_DENY, None),
        ({"type": 1, "reason": 255}, Verdict.DROPPED, None, None),
    ],
    ids=["to stack", "to endpoint", "allowed", "denied", "a reason of a newer program"],
)
def test_what_the_reason_means_depends_on_the_type(
    fields: dict[str, int], verdict: Verdict, reason: DropReason | None, point: TracePoint | None
) -> None:
    """A trace's reason is a place, a verdict's and a drop's is why."""
    found = flow(**fields)
    assert (found.verdict, found.drop_reason, found.point) == (verdict, reason, point)


@pytest.mark.parametrize(
    ("bits", "names"),
    [(0, ()), (2, ("is_reply",)), (4, ("is_new",)), (8, ("is_related",)),
     (14, ("is_reply", "is_new", "is_related")), (1, ())],
)  # fmt: skip
def test_flags(bits: int, names: tuple[str, ...]) -> None:
    """Each flag of `enum event_flags` has its attribute."""
    found = flow(flags=bits)
    every = ("is_reply", "is_new", "is_related")
    assert tuple(name for name in every if getattr(found, name)) == names


def test_many_at_once() -> None:
    """An array of both families keeps its order, and each its own addresses."""
    rows = np.concatenate(
        [event(src=f"10.0.0.{n}", dst=f"fd00::{n:x}", dport=n) for n in range(1, 200)]
    )
    found = list(decode(rows, 0.0))
    assert [(str(f.src), str(f.dst), f.dport) for f in found] == [
        (f"10.0.0.{n}", f"fd00::{n:x}", n) for n in range(1, 200)
    ]
    assert not list(decode(rows[:0], 0.0))


@pytest.mark.parametrize(
    "fields", [{"type": 77}, {"type": 4, "reason": 99}, {"direction": 3}, {"type": 0}], ids=str
)
def test_what_a_newer_program_tells_is_passed_over(fields: dict[str, int]) -> None:
    """An event of an unknown kind, place or direction; those beside it are told in order."""
    rows = np.concatenate([event(dport=1), event(**fields), event(dport=2), event(**fields)])
    assert [found.dport for found in decode(rows, 0.0)] == [1, 2]


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({}, "10.0.0.1:40000 (1001) -> 10.0.0.2:80 (1002)  drop egress TCP SYN  DROPPED: Policy "
             "denied (133)"),
        ({"src": "fd00::1", "dst": "fd00::2", "proto": 17, "type": 4, "reason": 0},
         "[fd00::1]:40000 (1001) -> [fd00::2]:80 (1002)  to-endpoint UDP  FORWARDED"),
        ({"proto": 58, "icmp_type": 128, "src": "fd00::1", "dst": "fd00::2", "type": 5,
          "reason": 0, "direction": 0},
         "fd00::1 (1001) -> fd00::2 (1002)  policy-verdict ingress ICMPv6 type 128  FORWARDED"),
        ({"flags": 2, "type": 4, "reason": 3, "tcp_flags": 0x12},
         "10.0.0.2:80 (1002) <- 10.0.0.1:40000 (1001)  to-stack TCP SYN,ACK  FORWARDED"),
        ({"proto": 99, "reason": 142},
         "10.0.0.1 (1001) -> 10.0.0.2 (1002)  drop egress 99  DROPPED: Unknown L4 protocol (142)"),
    ],
    ids=["drop", "trace", "verdict", "reply", "unknown protocol"],
)  # fmt: skip
def test_as_text(fields: dict[str, Any], text: str) -> None:
    """One line: time, both ends in the direction of the connection, what, verdict, why."""
    line = str(flow(time_ns=1_234_000_000, **fields))
    assert line == f"00:00:01.234  {text}"


def test_names_for_the_ends() -> None:
    """A namer's names take the place of addresses; None leaves the address."""
    (named,) = decode(event(), 0.0, lambda address, identity: "web" if identity == 1001 else None)
    assert (named.src_name, named.dst_name) == ("web", None)
    assert "web:40000 (1001) -> 10.0.0.2:80 (1002)" in str(named)


def test_reasons_are_those_of_the_programs() -> None:
    """Names and numbers of the C enum, each with a text of its own."""
    source = (BPF / "drop.h").read_text().split("enum drop_reason {")[1].split("}")[0]
    in_c = {name.removeprefix("DROP_"): int(number)
            for name, number in re.findall(r"(\w+) = (\d+)", source)}  # fmt: skip
    assert {reason.name: reason.value for reason in DropReason} == in_c
    texts = [reason.text for reason in DropReason]
    assert len(set(texts)) == len(texts) and all(texts)


def test_points_and_types_are_those_of_the_programs() -> None:
    """So are the observation points and the kinds of event."""
    source = (BPF / "event.h").read_text()
    for prefix, kind in (("TRACE", TracePoint), ("EVENT", FlowType)):
        block = re.search(rf"enum {'trace_point' if prefix == 'TRACE' else 'event_type'} {{(.*?)}}",
                          source, re.DOTALL)  # fmt: skip
        assert block is not None
        pairs = re.findall(rf"{prefix}_(\w+) = (\d+)", block[1])
        assert {member.name: int(member) for member in kind} == {n: int(v) for n, v in pairs}


@pytest.mark.parametrize(
    ("number", "text"), [(133, "Policy denied (133)"), (254, "Drop reason 254")]
)
def test_reason_text(number: int, text: str) -> None:
    """A number that this version does not know is shown as a number."""
    assert reason_text(number) == text


# ---------------------------------------------------------------------- metrics


def test_metrics_as_text() -> None:
    """A line for each counter that is not zero, under a head."""
    rows = (
        Metric(Direction.INGRESS, 0, 10, 1000),
        Metric(Direction.EGRESS, 0, 5, 500),
        Metric(Direction.EGRESS, 133, 2, 108),
    )
    metrics = Metrics(rows, events_lost=1)
    assert list(metrics) == list(rows)
    assert (metrics.packets(), metrics.packets(133), metrics.dropped) == (15, 2, 2)
    assert metrics.packets(direction=Direction.EGRESS) == 5
    assert metrics.packets(181) == 0
    lines = str(metrics).splitlines()
    assert len(lines) == 4 and lines[3].split() == [
        "egress", "2", "108", "Policy", "denied", "(133)",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("address", "text"),
    [
        ("10.96.0.10", "kube/dns 10.96.0.10:53"),
        ("fd96::10", "kube/dns [fd96::10]:53"),
    ],
)
def test_the_service_of_a_flow(address: str, text: str) -> None:
    """What stands behind the frontend's number, between the ends and what was seen."""
    dns = FlowService("kube", "dns", parse_address(address), 53)
    known = {7: dns}
    (found,) = decode(event(frontend=7), 0.0, services=known.get)
    assert found.service == dns
    assert f"10.0.0.2:80 (1002) by {text}  drop" in str(found)
    (none,) = decode(event(), 0.0, services=known.get)
    (unasked,) = decode(event(frontend=7), 0.0)
    assert (none.service, unasked.service) == (None, None)
