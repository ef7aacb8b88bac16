"""What the endpoint program costs for each packet: an established flow's, a new flow's, translated.

Everything runs by BPF_PROG_TEST_RUN behind the same wrapper (`bpf/fastpath.bpf.c`), on one CPU, in
rounds that alternate between the programs. Of each the best round counts: what disturbs a round
only adds to it. A program's own cost is its time less that of an empty program behind the wrapper.

Whoever shares the core, or the host, makes all of it dearer, the lookup alone too, and by up to
twice; the more instructions, the more. So a figure is to be read beside the lookup's of its run.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from pyciliumlib.kernel import Object, ObjectSpec, Program
from pyciliumlib.types import address_to_bytes, parse_address
from tests.bench.compiled import bpf_object
from tests.bench.figure import Figure, at_most
from tests.bpf.harness import CLIENT, FROM, SERVER, Devices, Rig, devices, jiffies, rig
from tests.bpf.packets import ACK, FAMILIES, SYN, SYN_ACK, V4, Family
from tests.bpf.services import PORT, SPORT, Pair, ServiceRig, service_rig

FLOWS = (1, 1024, 1 << 18)
NEW_FLOWS = 1 << 20
ROUNDS = 15
#: Short rounds, so that some are not disturbed, and yet each flow has its turn in each; of those
#: with few flows there are more instead.
REPEAT, SHORT_REPEAT = 1 << 18, 1 << 15
TABLE = 1 << 20
#: Nanoseconds a packet, beyond an empty program and beyond one lookup in the same table.
ABOVE_EMPTY, ABOVE_LOOKUP, NEW_FLOW, TRANSLATED = 65, 25, 1000, 250

Times = dict[str, int]


def figures() -> Iterator[Figure]:
    """Nanoseconds a packet of the endpoint program, both families."""
    with devices() as where, one_cpu():
        for family in FAMILIES:
            for count in FLOWS:
                # A new table each: one that was full once has its entries all over its memory.
                with rig(where, sizes={"flows": TABLE}) as node:
                    node.allow_all()
                    yield from _established(node, family, count)
        with rig(where) as node:
            node.allow_all()
            for family in FAMILIES:
                yield from _new(node, family)
        with service_rig(where) as services:
            for family in FAMILIES:
                yield from _translated(services, family)


@contextmanager
def one_cpu() -> Iterator[None]:
    """Keep this thread on the last CPU that it may use."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _established(node: Rig, family: Family, count: int) -> Iterator[Figure]:
    frame = family.tcp(family.client, family.server, 80, ACK, 0)
    _fill(node, family, count)
    with _wrapped(node, family, frame, count) as bench:
        programs = {
            "empty": bench.programs["empty"],
            "lookup": bench.programs["lru_hit"],
            "endpoint": node.programs[FROM],
        }
        times = _measure(node, bench, programs, frame, repeat=max(count, SHORT_REPEAT))
    name = f"established TCP, {family}, {count:,} flows"
    cost = times["endpoint"] - times["empty"]
    yield Figure(name, cost, "ns", "", None, at_most(ABOVE_EMPTY) if count < FLOWS[-1] else None)
    yield Figure(
        f"{name}, beyond the lookup",
        times["endpoint"] - times["lookup"],
        "ns",
        "the lookup alone",
        times["lookup"] - times["empty"],
        at_most(ABOVE_LOOKUP),
    )


def _new(node: Rig, family: Family) -> Iterator[Figure]:
    frame = family.tcp(family.client, family.server, 80, SYN, 0)
    with _wrapped(node, family, frame, NEW_FLOWS) as bench:
        programs = {"empty": bench.programs["empty"], "endpoint": node.programs[FROM]}
        for name, listener in (("nobody listens", False), ("events are read", True)):
            with _listening(node, listener):
                times = _measure(node, bench, programs, frame)
            cost = times["endpoint"] - times["empty"]
            yield Figure(f"new TCP flow, {family}, {name}", cost, "ns", "", None, at_most(NEW_FLOW))


# ------------------------------------------------------------------ by a service


def _translated(services: ServiceRig, family: Family) -> Iterator[Figure]:
    services.reset()
    services.rig.allow_all()
    pair = Pair(family, "tcp", family.server)
    services.put(pair.service())
    for count in FLOWS[:-1]:
        _fill_translated(services, pair, count)
        for name, frame, place in (
            ("to a service", pair.request(), pair.vip),
            ("its answer", pair.answer_inside(), pair.backend),
        ):
            answers = name == "its answer"
            settings = {
                "translated": True,
                "answers": answers,
                "server_port": pair.target if answers else PORT,
                "address": np.frombuffer(address_to_bytes(parse_address(place)), "u8").tolist(),
            }
            with _wrapped(services.rig, family, frame, count, settings) as bench:
                programs = {
                    "empty": bench.programs["empty"],
                    "endpoint": services.rig.programs[FROM],
                }
                at = SERVER if answers else CLIENT
                times = _measure(services.rig, bench, programs, frame, at)
            yield Figure(
                f"established TCP {name}, {family}, {count:,} flows",
                times["endpoint"] - times["empty"],
                "ns",
                "",
                None,
                at_most(TRANSLATED),
            )
    settings = {
        "translated": True,
        "address": np.frombuffer(address_to_bytes(parse_address(pair.vip)), "u8").tolist(),
    }
    frame = pair.request(SYN)
    # The service has one port; the tables hold fewer flows than one client has ports.
    with _wrapped(services.rig, family, frame, 1 << 16, settings) as bench:
        programs = {"empty": bench.programs["empty"], "endpoint": services.rig.programs[FROM]}
        times = _measure(services.rig, bench, programs, frame)
    cost = times["endpoint"] - times["empty"]
    yield Figure(f"new TCP flow to a service, {family}", cost, "ns")


def _fill_translated(services: ServiceRig, pair: Pair, count: int) -> None:
    """Copies of both entries of a connection that was really made."""
    services.rig.forget_flows()
    services.from_client(pair.request(SYN))
    services.from_server(pair.answer_inside(SYN_ACK))
    services.from_client(pair.request(ACK))
    flows = services.maps["flows"]
    keys, values = flows.lookup_batch()
    keys, values = np.repeat(keys, count), np.repeat(values, count)
    number = np.tile(np.arange(count), 2)
    for port in ("low_port", "high_port"):
        clients = keys[port] == SPORT
        keys[port][clients] = number[clients]
    values["due"] = (jiffies() + 8000) & 0xFFFFFFFF  # as far ahead as may be: FLOW_AHEAD
    flows.clear()
    flows.update_batch(keys, values)


# ------------------------------------------------------------------ how it is measured


def _fill(node: Rig, family: Family, count: int) -> None:
    """Put that many established flows into the table, copies of one that was really made."""
    node.forget_flows()
    node.send(FROM, CLIENT, family.tcp(family.client, family.server, 80, SYN, 1000))
    node.send(FROM, SERVER, family.tcp(family.server, family.client, 1000, SYN_ACK, 80))
    node.send(FROM, CLIENT, family.tcp(family.client, family.server, 80, ACK, 1000))
    flows = node.maps["flows"]
    keys, values = flows.lookup_batch()
    (low_is_client,) = keys["low_port"] == 1000
    keys, values = np.repeat(keys, count), np.repeat(values, count)
    number = np.arange(count)
    client, server = ("low_port", "high_port") if low_is_client else ("high_port", "low_port")
    keys[client], keys[server] = number & 0xFFFF, 80 + (number >> 16)
    values["due"] = (jiffies() + 8000) & 0xFFFFFFFF  # as far ahead as may be: FLOW_AHEAD
    flows.clear()
    flows.update_batch(keys, values)


@contextmanager
def _wrapped(
    node: Rig,
    family: Family,
    frame: bytes,
    flows_in_use: int,
    settings: Mapping[str, Any] | None = None,
) -> Iterator[Object]:
    spec = ObjectSpec.open(bpf_object("fastpath"), "fastpath")
    spec.config.update(
        {
            "flows_in_use": flows_in_use,
            "ipv6": family is not V4,
            "ipv4_check": int.from_bytes(frame[24:26], "big"),
            **(settings or {}),
        }
    )
    spec.resize("flows", node.maps["flows"].max_entries)
    with spec.load(reuse={"flows": node.maps["flows"]}) as bench:
        yield bench


def _measure(
    node: Rig,
    bench: Object,
    programs: dict[str, Program],
    frame: bytes,
    at: int = CLIENT,
    repeat: int = REPEAT,
) -> Times:
    """The best round of each program."""
    rounds = [
        {
            name: _run(node.where, bench, program, frame, at, repeat)
            for name, program in programs.items()
        }
        for _ in range(ROUNDS * REPEAT // repeat)
    ]
    return {name: min(times[name] for times in rounds) for name in programs}


def _run(
    where: Devices, bench: Object, program: Program, frame: bytes, at: int, repeat: int
) -> int:
    bench.maps["under_test"][0] = program
    with where.netns.enter():
        result = bench.programs["wrap"].run(frame, {"ifindex": where.ifindex[at]}, repeat=repeat)
    if result.retval == 2:
        raise AssertionError(f"{program!r} dropped the packet")
    return result.duration_ns


@contextmanager
def _listening(node: Rig, listener: bool) -> Iterator[None]:
    """Read the ring on another CPU meanwhile, or leave it full."""
    if not listener:
        yield
        return
    done = threading.Event()

    def read() -> None:
        os.sched_setaffinity(0, {min(range(os.cpu_count() or 1))})
        while not done.wait(0.001):
            node.drain_array()

    reader = threading.Thread(target=read)
    reader.start()
    try:
        yield
    finally:
        done.set()
        reader.join()


if __name__ == "__main__":
    for figure in figures():
        print(*figure.cells(), sep=" | ")
