"""What the load balancer's program costs for each packet, known or new, or for no service.

As in `fastpath`: test runs behind one wrapper (`bpf/balancer.bpf.c`), on one CPU, in rounds that
alternate between the programs; the best round counts, less that of an empty program.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from scapy.layers.inet import TCP, UDP
from scapy.packet import Packet

from pyciliumlib.kernel import Object, ObjectSpec, Program
from pyciliumlib.loadbalancer import LoadBalancerConfig, Service
from pyciliumlib.loadbalancer.program.loading import Place, Sizes, load
from pyciliumlib.net import NetNS
from pyciliumlib.types import PortProto
from tests.bench.compiled import bpf_object
from tests.bench.fastpath import one_cpu
from tests.bench.figure import Figure, at_most, ratio_at_most
from tests.bpf.balancer import DROP, FAMILIES, TX, V4, Family, Rig, device, hz, jiffies

FLOWS = (1, 1024, 1 << 18)
NEW_FLOWS = 1 << 20
ROUNDS = 15
REPEAT = 1 << 18
TABLE = 1 << 20
SIZES = Sizes(services=16384, frontends=16384, backends=1024, slots=1 << 20, flows=TABLE)
#: Of the same run's net lookup: where the table is in the cache, and where it is not.
KNOWN, KNOWN_FAR, NEW_FLOW, BYSTANDER = 1.4, 1.1, 520, 15

Times = dict[str, int]


SERVICES = [
    Service(f"{kind}-{family.version}", [family.at(family.vip, 80, kind)], family.served(80, kind))
    for family in FAMILIES
    for kind in ("TCP", "UDP")
]


def figures() -> Iterator[Figure]:
    """Nanoseconds a packet of the load balancer, both families."""
    with device() as where, one_cpu():
        with _balancer(where, SIZES) as rig:
            for family in FAMILIES:
                for kind in ("TCP", "UDP"):
                    for count in FLOWS:
                        yield from _known(rig, family, kind, count)
                yield from _new(rig, family)
            yield from _bystanders(rig)
        with _balancer(where, Sizes()) as rig:
            for family in FAMILIES:
                yield from _new(rig, family)


@contextmanager
def _balancer(where: tuple[NetNS, int], sizes: Sizes) -> Iterator[Rig]:
    config = LoadBalancerConfig("maglev", "dsr", "ipip", table_size=65521)
    ipv4, ipv6 = ipaddress.IPv4Address(V4.own), ipaddress.IPv6Address(FAMILIES[1].own)
    place = Place(ipv4, ipv6, 1500, PortProto(32768, 65535))
    with load(config, place, sizes) as loaded:
        rig = Rig(loaded, *where, config)
        rig.serve(*SERVICES)
        yield rig


def _packet(family: Family, kind: str, flags: str = "A") -> Packet:
    head = family.ip(family.client, family.vip)
    if kind == "TCP":
        return head / TCP(sport=0, dport=80, flags=flags)
    return head / UDP(sport=0, dport=80)


def _known(rig: Rig, family: Family, kind: str, count: int) -> Iterator[Figure]:
    frame = bytes(_packet(family, kind))
    _fill(rig, family, kind, count)
    with _wrapped(rig, family, frame, count) as bench:
        times = _measure(rig, bench, frame, {
            "empty": bench.programs["empty"],
            "lookup": bench.programs["lru_hit"],
            "balancer": rig.program,
        })  # fmt: skip
    lookup, cost = times["lookup"] - times["empty"], times["balancer"] - times["empty"]
    bound = KNOWN if count < FLOWS[-1] else KNOWN_FAR
    yield Figure(
        f"known flow, IP in IP, {kind}, {family}, {count:,} flows", cost, "ns", "the lookup alone",
        lookup, ratio_at_most(bound),
    )  # fmt: skip


def _new(rig: Rig, family: Family) -> Iterator[Figure]:
    """A first packet; the table of pending flows is full, so that one is evicted for each."""
    frame = bytes(_packet(family, "TCP", "S"))
    rig.maps["lb_flows"].clear()
    with _wrapped(rig, family, frame, NEW_FLOWS) as bench:
        times = _measure(rig, bench, frame, {
            "empty": bench.programs["empty"],
            "insert": bench.programs["lru_new"],
            "balancer": rig.program,
        })  # fmt: skip
    insert, cost = times["insert"] - times["empty"], times["balancer"] - times["empty"]
    yield Figure(
        f"new TCP flow, Maglev, {family}, a table of {rig.maps['lb_flows'].max_entries:,}", cost,
        "ns", "lookup and insert alone", insert, at_most(NEW_FLOW),
    )  # fmt: skip


def _bystanders(rig: Rig) -> Iterator[Figure]:
    many = [
        Service(f"many-{n}", [f"10.96.{n >> 8}.{n & 255}:80"], [], algorithm="random")
        for n in range(10000)
    ]
    rig.serve(*SERVICES, *many)
    for name, address in (("another address", V4.other_vip), ("the node's own", V4.own)):
        frame = bytes(V4.ip(V4.client, address) / TCP(dport=22, flags="A"))
        with _wrapped(rig, V4, frame, 1) as bench:
            programs = {"empty": bench.programs["empty"], "balancer": rig.program}
            times = _measure(rig, bench, frame, programs)
        cost = times["balancer"] - times["empty"]
        text = f"a packet for {name}, 10,000 services"
        yield Figure(text, cost, "ns", "", None, at_most(BYSTANDER))


def _fill(rig: Rig, family: Family, kind: str, count: int) -> None:
    """Put that many flows into the table, copies of one that was really made."""
    flows = rig.maps["lb_flows"]
    for name in ("lb_flows", "lb_pending"):
        rig.maps[name].clear()
    for flags in "SA":
        outcome = rig.send(_packet(family, kind, flags))
        assert outcome.action == TX, outcome
    keys, values = (np.repeat(column, count) for column in flows.lookup_batch())
    number = np.arange(count)
    keys["client_port"] = number & 0xFFFF
    keys["client"][:, 15] += (number >> 16).astype(np.uint8)
    values["expires"] = (jiffies() + 3600 * hz()) & 0xFFFFFFFF
    if kind == "TCP":
        values["expires"] = (jiffies() + 8000 * hz()) & 0xFFFFFFFF
    flows.clear()
    flows.update_batch(np.ascontiguousarray(keys), np.ascontiguousarray(values))


@contextmanager
def _wrapped(rig: Rig, family: Family, frame: bytes, flows_in_use: int) -> Iterator[Object]:
    spec = ObjectSpec.open(bpf_object("balancer"), "balancer")
    spec.config.update(
        {
            "flows_in_use": flows_in_use,
            "ipv6": family.version == 6,
            "length": len(frame),
            "client": ipaddress.ip_address(family.client).packed[-1],
        }
    )
    tables = {name: rig.maps[name] for name in ("lb_flows", "lb_pending")}
    for name, table in tables.items():
        spec.resize(name, table.max_entries)
    with spec.load(reuse=tables) as bench:
        yield bench


def _measure(rig: Rig, bench: Object, frame: bytes, programs: dict[str, Program]) -> Times:
    """The best round of each program."""
    rounds = [
        {
            name: _run(rig.netns, rig.ifindex, bench, program, frame)
            for name, program in programs.items()
        }
        for _ in range(ROUNDS)
    ]
    return {name: min(times[name] for times in rounds) for name in programs}


def _run(netns: NetNS, ifindex: int, bench: Object, program: Program, frame: bytes) -> int:
    bench.maps["under_test"][0] = program
    with netns.enter():
        result = bench.programs["wrap"].run(frame, {"ingress_ifindex": ifindex}, repeat=REPEAT)
    if result.retval in (0, DROP):
        raise AssertionError(f"{program!r} dropped the packet")
    return result.duration_ns


if __name__ == "__main__":
    for figure in figures():
        print(*figure.cells(), sep=" | ")
