"""What translation costs for each packet, to the backend and back, in XDP and at tc.

As in `balancer`: test runs behind one wrapper (`bpf/translate.bpf.c`), on one CPU, in rounds that
alternate between the programs; the best round counts, less that of an empty program.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from pyciliumlib.kernel import Object, ObjectSpec
from pyciliumlib.loadbalancer import LoadBalancerConfig, Service
from pyciliumlib.loadbalancer.program.loading import Hook, Place, Sizes, load
from pyciliumlib.types import PortProto
from tests.bench.compiled import bpf_object
from tests.bench.fastpath import one_cpu
from tests.bench.figure import Figure, at_most, ratio_at_most
from tests.bpf.balancer import FAMILIES, V4, V6, Family, Rig, device, hz, jiffies
from tests.bpf.balancer_nat import Ends, Talk

FLOWS = (1, 1024, 1 << 18)
NEW_FLOWS = 1 << 20
ROUNDS = 15
REPEAT = 1 << 18
SIZES = Sizes(services=64, frontends=64, backends=128, slots=1 << 18, flows=1 << 20,
              translated=1 << 20)  # fmt: skip
CONFIG = LoadBalancerConfig("maglev", "snat", table_size=65521)
#: Nanoseconds a packet beyond an empty program.
AT_MOST = {Hook.NATIVE: 150, Hook.TC: 250}
IPV6_OF_IPV4, BYSTANDER = 1.15, 15
FIRST, LAST = 32768, 65535
#: As many as it takes for so many flows, and for new ones some more.
BACKENDS, BACKENDS_OF_NEW = FLOWS[-1] // (LAST - FIRST + 1), 64

Times = dict[str, int]


def figures() -> Iterator[Figure]:
    """Nanoseconds a packet, both hooks, families and directions."""
    place = Place(
        ipaddress.IPv4Address(V4.own), ipaddress.IPv6Address(V6.own), 1500, PortProto(FIRST, LAST)
    )
    with device() as where, one_cpu():
        for hook in (Hook.NATIVE, Hook.TC):
            with load(CONFIG, place, SIZES, hook) as loaded:
                rig = Rig(loaded, *where, CONFIG, hook)
                yield from _known(rig)
                yield from _new(rig)
                yield from _bystanders(rig)


def _known(rig: Rig) -> Iterator[Figure]:
    for back in (False, True):
        for count in FLOWS:
            costs: dict[int, int] = {}
            for family in FAMILIES:
                frame = _fill(rig, family, count)[back]
                with _wrapped(rig, family, frame, count, back=back) as bench:
                    times = _measure(rig, bench, frame, "lru_hit")
                lookup = times["lru_hit"] - times["empty"]
                costs[family.version] = times["balancer"] - times["empty"]
                way = "answer" if back else "to the backend"
                yield Figure(
                    f"SNAT, {rig.hook}, {way}, TCP, {family}, {count:,} flows",
                    costs[family.version], "ns", "the lookup alone", lookup,
                    at_most(AT_MOST[rig.hook]) if count < FLOWS[-1] else None,
                )  # fmt: skip
            yield Figure(
                f"SNAT, {rig.hook}, {way}, {count:,} flows: IPv6", costs[6], "ns", "IPv4",
                costs[4], ratio_at_most(IPV6_OF_IPV4),
            )  # fmt: skip


def _new(rig: Rig) -> Iterator[Figure]:
    for family in FAMILIES:
        rig.reset()
        rig.serve(_service(family, BACKENDS_OF_NEW))
        frame = bytes(Talk(rig, family, FIRST).ends.frame(flags="S", payload=bytes(32)))
        with _wrapped(rig, family, frame, NEW_FLOWS, back=False) as bench:
            times = _measure(rig, bench, frame)
        cost = times["balancer"] - times["empty"]
        yield Figure(f"SNAT, {rig.hook}, new TCP flow, {family}", cost, "ns")


def _bystanders(rig: Rig) -> Iterator[Figure]:
    """Packets for the node itself, at a port below those of flows and at one of theirs."""
    rig.reset()
    rig.serve(_service(V4, 4))
    Talk(rig, V4, FIRST).open()
    for name, port in (("port 22", 22), ("a port that is for flows", LAST)):
        ends = Ends(V4, V4.client, FIRST, V4.own, port)
        frame = bytes(ends.frame(payload=bytes(32)))
        with _wrapped(rig, V4, frame, 1, back=False) as bench:
            times = _measure(rig, bench, frame, sent=False)
        cost = times["balancer"] - times["empty"]
        yield Figure(f"SNAT, {rig.hook}, a packet for the node itself, {name}", cost, "ns", "",
                     None, at_most(BYSTANDER))  # fmt: skip


def _fill(rig: Rig, family: Family, count: int) -> tuple[bytes, bytes]:
    """Make that many flows, copies of one that was really made; a packet of it, and an answer.

    Each client has all ports there are, and a backend of its own.
    """
    rig.reset()
    rig.serve(_service(family, 1))
    talk = Talk(rig, family, FIRST)
    seen = talk.open()
    service = _service(family, BACKENDS)
    rig.serve(service)
    numbers = {backend: number for number, backend in rig.table.backends.items()}
    ids = np.array([numbers[backend] for backend in service.backends])
    flow_number = np.arange(count)
    ports, hosts = FIRST + (flow_number & 0x7FFF), (flow_number >> 15).astype(np.uint8)
    late = (jiffies() + 8000 * hz()) & 0xFFFFFFFF
    flows, nats = (_copies(rig, name, count) for name in ("lb_flows", "lb_nat"))
    for key, flow in ((flows[0], flows[1]), (nats[1]["key"], nats[1]["flow"])):
        key["client_port"], flow["nat_port"], flow["expires"] = ports, ports, late
        key["client"][:, 15] += hosts
        flow["backend"], flow["backend_rev"] = ids[hosts], 1
    nats[0]["nat_port"] = ports
    nats[0]["backend"][:, 15] += hosts
    for name, (keys, values) in (("lb_flows", flows), ("lb_nat", nats)):
        rig.maps[name].clear()
        rig.maps[name].update_batch(np.ascontiguousarray(keys), np.ascontiguousarray(values))
    used = rig.maps["lb_nat_used"]
    uses = np.full(LAST - FIRST + 1, used.lookup_batch()[1][FIRST])
    used.update_batch(np.arange(FIRST, LAST + 1, dtype=used.key_dtype), uses)
    return bytes(talk.ends.frame(payload=bytes(32))), bytes(seen.back.frame(payload=bytes(32)))


def _service(family: Family, count: int) -> Service:
    """With so many backends, behind one router."""
    first = ipaddress.ip_address(family.backends[0])
    backends = [family.at(str(first + n), 8080) for n in range(count)]
    return Service("web", [family.at(family.vip, 80)], backends)


def _copies(rig: Rig, name: str, count: int) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    keys, values = rig.maps[name].lookup_batch()
    return np.repeat(keys, count), np.repeat(values, count)


@contextmanager
def _wrapped(
    rig: Rig, family: Family, frame: bytes, flows_in_use: int, *, back: bool
) -> Iterator[Object]:
    name = "translate_tc" if rig.hook is Hook.TC else "translate"
    spec = ObjectSpec.open(bpf_object(name), name)
    spec.config.update({"flows_in_use": flows_in_use, "ipv6": family.version == 6, "back": back})
    shared = ("lb_flows", "lb_nat")
    for table in shared:
        spec.resize(table, rig.maps[table].max_entries)
    with spec.load(reuse={table: rig.maps[table] for table in shared}) as bench:
        words = np.frombuffer(frame[14 : 14 + 64], np.uint64)
        bench.maps["heads"][0] = {"words": words, "ethernet": frame[:16]}
        yield bench


def _measure(rig: Rig, bench: Object, frame: bytes, *others: str, sent: bool = True) -> Times:
    """The best round of the balancer and of the wrapper's own programs."""
    programs = {name: bench.programs[name] for name in ("empty", *others)}
    programs["balancer"] = rig.program
    best: Times = {}
    for _ in range(ROUNDS):
        for name, program in programs.items():
            bench.maps["under_test"][0] = program
            took = _run(rig, bench, frame, sent or name != "balancer")
            best[name] = min(best.get(name, took), took)
    return best


def _run(rig: Rig, bench: Object, frame: bytes, sent: bool) -> int:
    where = {"ifindex" if rig.hook is Hook.TC else "ingress_ifindex": rig.ifindex}
    with rig.netns.enter():
        result = bench.programs["wrap"].run(frame, where, repeat=REPEAT)
    passed, forwarded = {Hook.TC: (0, 7), Hook.NATIVE: (2, 3)}[rig.hook]
    if result.retval != (forwarded if sent else passed):
        raise AssertionError(f"the program under test answers {result.retval}")
    return result.duration_ns


if __name__ == "__main__":
    for figure in figures():
        print(*figure.cells(), sep=" | ")
