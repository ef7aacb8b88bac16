"""Translated connections by test run: every byte both ways, ports, entries and lives."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from attrs import evolve
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6ExtHdrDestOpt, IPv6ExtHdrHopByHop, PadN
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from pyciliumlib.conntrack.program import kernel_clock
from pyciliumlib.flow import DropReason
from pyciliumlib.flow.metrics import Metrics
from pyciliumlib.kernel import wait_for_programs
from pyciliumlib.loadbalancer import Backend, Frontend, LoadBalancerConfig, Service
from pyciliumlib.loadbalancer.collecting import FlowCollector
from pyciliumlib.loadbalancer.program.loading import Hook
from pyciliumlib.net import Netlink, NetNS
from tests.bpf import balancer
from tests.bpf.balancer import (
    CLIENT_MAC,
    DROP,
    FAMILIES,
    OWN_MAC,
    PASS,
    ROUTER_MAC,
    TX,
    V4,
    V6,
    Family,
    Rig,
)
from tests.bpf.balancer_nat import HOPS, Ends, Talk, on_the_way, served

families = pytest.mark.parametrize("family", FAMILIES, ids=str)
kinds = pytest.mark.parametrize("kind", ["TCP", "UDP"])
HOOKS = (Hook.NATIVE, Hook.TC)
SNAT = LoadBalancerConfig("maglev", "snat", table_size=251)
FIRST, LAST = 32768, 65535


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


@pytest.fixture(params=HOOKS, ids=str)
def tiny(request: pytest.FixtureRequest, where: tuple[NetNS, int]) -> Iterator[Rig]:
    """One that has four ports."""
    with balancer.rig(where, SNAT, hook=request.param, nat_ports="50000-50003") as made:
        yield made


def sizes(rig: Rig) -> tuple[int, int, int, int]:
    """Flows known and pending, and their entries for answers."""
    names = ("lb_flows", "lb_pending", "lb_nat", "lb_nat_pending")
    return tuple(len(rig.maps[name]) for name in names)  # type: ignore[return-value]


def age(rig: Rig, table: str, seconds: int) -> None:
    """Let all entries of a table expire that long ago."""
    keys, values = rig.maps[table].lookup_batch()
    flows = values["flow"] if "nat" in table else values
    flows["expires"] = (balancer.jiffies() - seconds * balancer.hz()) & 0xFFFFFFFF
    if len(keys):
        rig.maps[table].update_batch(keys, values)


# ---------------------------------------------------------------------- bytes


@families
@kinds
@pytest.mark.smoke
def test_both_ways(rig: Rig, family: Family, kind: str) -> None:
    """Byte by byte as if it had been sent so: to the backend, and back to the client."""
    rig.serve(served(family, kind, count=1))
    talk = Talk(rig, family, kind=kind)
    seen = Ends(family, family.own, 40000, family.backends[0], 8080, kind)
    for flags in "SAPF":
        sent = talk.send(flags)
        assert sent.data == on_the_way(seen.frame(HOPS - 1, flags)), flags
        back = talk.answer(seen, flags)
        assert back.action == TX
        assert back.data == on_the_way(talk.ends.back.frame(HOPS - 1, flags)), flags


@families
def test_a_datagram_without_checksum(rig: Rig, family: Family) -> None:
    """0 says that there is none, and stays 0."""
    rig.serve(served(family, "UDP", count=1))
    talk = Talk(rig, family, kind="UDP")
    for ends in (talk.ends, talk.seen(talk.send()).back):
        frame = Ether(dst=OWN_MAC) / ends.ip() / ends.l4(chksum=0) / Raw(b"query")
        assert rig.send(frame).packet[UDP].chksum == 0


SHAPES: dict[str, Any] = {
    "IPv4 options": lambda ends: ends.ip(options=[b"\x94\x04\x00\x00"] * 10),
    "IPv6 hop by hop": lambda ends: ends.ip() / IPv6ExtHdrHopByHop(),
    "IPv6 two extensions": lambda ends: ends.ip() / IPv6ExtHdrHopByHop() / IPv6ExtHdrDestOpt(),
}


@pytest.mark.parametrize("shape", SHAPES)
@kinds
def test_headers_that_are_longer(rig: Rig, shape: str, kind: str) -> None:
    """Options and extensions are walked over and kept."""
    family = V4 if "IPv4" in shape else V6
    rig.serve(served(family, kind, count=1))
    talk = Talk(rig, family, kind=kind)
    seen = Ends(family, family.own, 40000, family.backends[0], 8080, kind)
    for before, after in ((talk.ends, seen), (seen.back, talk.ends.back)):
        frame = Ether(dst=OWN_MAC) / SHAPES[shape](before) / before.l4() / Raw(b"hello")
        wanted = Ether() / SHAPES[shape](after) / after.l4() / Raw(b"hello")
        if family.version == 4:
            wanted[IP].ttl -= 1
        else:
            wanted.getlayer(1).hlim -= 1
        assert rig.send(frame).data == on_the_way(wanted)


def test_too_many_extensions(rig: Rig) -> None:
    """Headers so long that the ports are out of reach are dropped with their reason."""
    rig.serve(served(V6))
    ends = Talk(rig, V6).ends
    long = IPv6ExtHdrDestOpt(options=[PadN(optdata=bytes(250))] * 2)
    frame = Ether(dst=OWN_MAC) / ends.ip() / long / ends.l4(flags="S")
    assert rig.send(frame).reason == DropReason.IPV6_EXTENSION


@families
def test_hops_run_out(rig: Rig, family: Family) -> None:
    """The last hop is this one, in both directions."""
    rig.serve(served(family, count=1))
    talk = Talk(rig, family)
    seen = talk.open()
    for hops, reason in ((2, 0), (1, DropReason.TTL_EXCEEDED), (0, DropReason.TTL_EXCEEDED)):
        assert talk.send(hops=hops).reason == reason
        assert talk.answer(seen, hops=hops).reason == reason


# ---------------------------------------------------------------------- ports


@families
@kinds
def test_the_clients_port_is_kept(rig: Rig, family: Family, kind: str) -> None:
    """If it is one that is for flows; else any of those."""
    rig.serve(served(family, kind))
    for port in (FIRST, 40000, LAST):
        assert Talk(rig, family, port, kind).open("S").sport == port
    others = [Talk(rig, family, port, kind).open("S").sport for port in range(1000, 1040)]
    assert all(FIRST <= port <= LAST for port in others)
    assert len(set(others)) > 30


@families
def test_many_clients_with_one_port(rig: Rig, family: Family) -> None:
    """All of them get to the one backend, each by a port of its own, and get their own answers."""
    rig.serve(served(family, count=1))
    clients = [f"198.51.100.{n}" if family.version == 4 else f"2001:db8:c::{n}" for n in range(64)]
    talks = [Talk(rig, family, client=client) for client in clients]
    seen = [talk.open() for talk in talks]
    assert len({ends.sport for ends in seen}) == 64
    for talk, ends in zip(talks, seen, strict=True):
        assert talk.answer(ends).data == on_the_way(talk.ends.back.frame(HOPS - 1))


@families
def test_one_port_at_many_backends(rig: Rig, family: Family) -> None:
    """A port is taken at one backend alone, and of one protocol."""
    rig.serve(*(
        Service(f"s{n}{kind}", [family.at(family.vip, 81 + n, kind)],
                [family.at(family.backends[n], 8080, kind)])
        for n in range(3) for kind in ("TCP", "UDP")
    ))  # fmt: skip
    for n in range(3):
        for kind in ("TCP", "UDP"):
            assert Talk(rig, family, kind=kind, dport=81 + n).open().sport == 40000


@families
def test_ports_run_out_and_come_back(tiny: Rig, family: Family) -> None:
    """The fifth connection at once is dropped and counted; when one has ended, it is let in."""
    tiny.reset()
    tiny.serve(served(family, count=1))
    talks = [Talk(tiny, family, port) for port in (50000, 50001, 1, 2)]
    assert {talk.open().sport for talk in talks} == {50000, 50001, 50002, 50003}
    late = Talk(tiny, family, 3)
    for _ in range(3):
        outcome = late.send("S")
        assert (outcome.action, outcome.reason) == (DROP, DropReason.NAT_NO_MAPPING)
    assert Metrics.read(tiny.maps["metrics"]).packets(DropReason.NAT_NO_MAPPING) == 3
    assert len(tiny.maps["lb_pending"]) == 0
    tiny.maps["lb_flows"].clear()
    age(tiny, "lb_nat", 1)
    assert late.open().sport in range(50000, 50004)


@families
def test_pending_ports_come_back(tiny: Rig, family: Family) -> None:
    """Those of connections that never got further than their first packet."""
    tiny.reset()
    tiny.serve(served(family, count=1))
    for port in (1, 2, 3, 4):
        Talk(tiny, family, port).open("S")
    assert Talk(tiny, family, 5).send("S").reason == DropReason.NAT_NO_MAPPING
    age(tiny, "lb_nat_pending", 1)
    assert Talk(tiny, family, 5).open().sport in range(50000, 50004)


def test_not_a_port_of_the_nodes_sockets(where: tuple[NetNS, int], rig: Rig) -> None:
    """Neither where a socket listens, nor where one is connected to the backend."""
    for family in FAMILIES:
        rig.reset()
        rig.serve(served(family, count=1), served_udp(family))
        version = socket.AF_INET if family.version == 4 else socket.AF_INET6
        with (
            where[0].socket(version, socket.SOCK_STREAM) as listener,
            where[0].socket(version, socket.SOCK_DGRAM) as datagrams,
        ):
            listener.bind((family.own, 40000))
            listener.listen()
            datagrams.bind((family.own, 40001))
            assert Talk(rig, family, 40000).open().sport != 40000
            assert Talk(rig, family, 40001, "UDP").open().sport != 40001
            assert Talk(rig, family, 40001).open().sport == 40001


def served_udp(family: Family) -> Service:
    return evolve(served(family, "UDP", count=1), name="dns")


@families
def test_not_a_port_of_the_nodes_services(rig: Rig, family: Family) -> None:
    """A frontend at the node's own address has its port for itself."""
    own = Frontend(family.own, 40000, type="HostPort")
    rig.serve(served(family, count=1), Service("own", [own], family.served(81)))
    assert Talk(rig, family).open().sport != 40000
    frame = Ends(family, family.client, 40000, family.own, 40000).frame(flags="S")
    assert rig.send(frame).action == TX


@families
def test_a_service_that_takes_a_port_later(rig: Rig, family: Family) -> None:
    """Answers to the connection that has it are known still, and are none of its clients."""
    rig.serve(served(family, count=1))
    talk = Talk(rig, family)
    seen = talk.open()
    own = Frontend(family.own, 40000, type="HostPort")
    rig.serve(served(family, count=1), Service("own", [own], family.served(81)[:1]))
    assert talk.answer(seen).packet.getlayer(1).dst == family.client
    frame = Ends(family, family.client, 40000, family.own, 40000).frame(flags="S")
    assert rig.send(frame).packet[TCP].dport == 81


# ---------------------------------------------------------------------- entries


@families
@kinds
def test_first_packets_wait_apart(rig: Rig, family: Family, kind: str) -> None:
    """Both entries of a flow: pending until the client's next packet, answers or none."""
    rig.serve(served(family, kind))
    talk = Talk(rig, family, kind=kind)
    seen = talk.open("S")
    for _ in range(2):
        assert talk.answer(seen, "SA").action == TX
        assert sizes(rig) == (0, 1, 0, 1)
    if kind == "TCP":
        assert talk.open("S") == seen
        assert sizes(rig) == (0, 1, 0, 1)
    for _ in range(2):
        assert talk.open("A") == seen
        assert sizes(rig) == (1, 0, 1, 0)
    assert talk.answer(seen).action == TX


@families
def test_a_flood_does_not_evict_what_is_known(rig: Rig, family: Family) -> None:
    """Ten times as many SYNs as fit: every known connection, idle meanwhile, goes on both ways."""
    rig.serve(served(family))
    talks = [Talk(rig, family, port) for port in range(2000, 2100)]
    seen = [talk.open() for talk in talks]
    frame = bytearray(bytes(Talk(rig, family, client=family.other_client).ends.frame(flags="S")))
    at, port = (28, 34) if family.version == 4 else (36, 54)
    device = "ifindex" if rig.hook is Hook.TC else "ingress_ifindex"
    with rig.netns.enter():
        for number in range(10 * 1024):
            frame[at : at + 2] = number.to_bytes(2, "big")
            frame[port : port + 2] = (number * 7 % 65536).to_bytes(2, "big")
            rig.program.run(bytes(frame), {device: rig.ifindex})
    known, _, answers, _ = sizes(rig)
    assert (known, answers) == (100, 100)
    for talk, ends in zip(talks, seen, strict=True):
        assert talk.open("A") == ends
        assert talk.answer(ends).packet.getlayer(1).dst == family.client


@families
def test_a_missing_entry_for_answers_is_made_again(rig: Rig, family: Family) -> None:
    """By the client's next packet that is a second later, with the port that the flow has."""
    rig.serve(served(family))
    talk = Talk(rig, family, 1000)
    seen = talk.open()
    rig.maps["lb_nat"].clear()
    assert talk.answer(seen).reason == DropReason.NAT_NO_MAPPING
    older(rig, "lb_flows")
    assert talk.open("A") == seen
    assert sizes(rig) == (1, 0, 1, 0)
    assert talk.answer(seen).action == TX


def older(rig: Rig, table: str, seconds: int = 2) -> None:
    """Let that time pass since the last packet of each flow of a table."""
    keys, values = rig.maps[table].lookup_batch()
    flows = values["flow"] if "nat" in table else values
    flows["expires"] -= np.uint32(seconds * balancer.hz())
    rig.maps[table].update_batch(keys, values)


@families
def test_a_missing_flow_is_made_again(rig: Rig, family: Family) -> None:
    """By the backend's next answer that is a second later; the client's packets go on as before."""
    rig.serve(evolve(served(family), algorithm="random"))
    talk = Talk(rig, family, 1000)
    seen = talk.open()
    ((key, flow),) = rig.maps["lb_flows"].items()
    rig.maps["lb_flows"].clear()
    older(rig, "lb_nat")
    assert talk.answer(seen).action == TX
    ((again, made),) = rig.maps["lb_flows"].items()
    assert again == key
    assert made._replace(expires=flow.expires) == flow
    assert talk.open("A") == seen


@families
def test_a_flow_is_found_again_by_its_port(rig: Rig, family: Family) -> None:
    """A client whose entry was evicted meets its own port again, where that was its own."""
    rig.serve(served(family))
    talk = Talk(rig, family)
    seen = talk.open()
    rig.maps["lb_flows"].clear()
    assert talk.open("A") == seen
    assert sizes(rig) == (0, 1, 1, 0)
    assert talk.open("A") == seen
    assert sizes(rig) == (1, 0, 1, 0)


@families
def test_the_port_that_was_lost(rig: Rig, family: Family) -> None:
    """Where another flow has it meanwhile, the first gets another, and neither gets the other's."""
    rig.serve(served(family, count=1))
    first, second = Talk(rig, family), Talk(rig, family, client=family.other_client)
    first.open()
    rig.maps["lb_nat"].clear()
    seen = second.open()
    assert seen.sport == 40000
    older(rig, "lb_flows")
    again = first.open("A")
    assert again.sport != 40000
    assert second.answer(seen).packet.getlayer(1).dst == family.other_client
    assert first.answer(again).packet.getlayer(1).dst == family.client


@families
def test_answers_of_another_flow_are_not_the_clients(rig: Rig, family: Family) -> None:
    """An entry for answers whose flow has gone to another backend does not let them through."""
    service = served(family, count=2)
    rig.serve(service)
    talk = Talk(rig, family)
    seen = talk.open()
    rest = [b for b in service.backends if str(b.address) != seen.destination]
    gone = [b for b in service.backends if str(b.address) == seen.destination]
    rig.serve(service.with_backends([*rest, gone[0].in_state("terminating")]))
    moved = talk.open("SA")
    assert moved.destination != seen.destination
    older(rig, "lb_nat")
    assert talk.answer(seen).reason == DropReason.NAT_NO_MAPPING
    assert talk.answer(moved).action == TX


@families
def test_what_comes_to_the_node_itself(rig: Rig, family: Family) -> None:
    """Passes untouched: ports that no flow had, other senders at one that a flow has."""
    rig.serve(served(family, count=1))
    seen = Talk(rig, family).open()
    for ends in (
        Ends(family, family.client, 1234, family.own, 22),
        Ends(family, family.client, 1234, family.own, 50000),
        Ends(family, family.client, 1234, family.own, seen.sport),
        evolve(seen.back, sport=8081),
        evolve(seen.back, source=family.backends[1]),
        evolve(seen.back, kind="UDP"),
    ):
        outcome = rig.send(ends.frame())
        assert (outcome.action, outcome.data) == (PASS, bytes(ends.frame())), ends


@families
def test_late_answers_are_the_sockets(rig: Rig, family: Family) -> None:
    """Where the node has a socket at the port of a flow that is gone, the packet is its own."""
    rig.serve(served(family, count=1))
    talk = Talk(rig, family)
    seen = talk.open()
    rig.maps["lb_nat"].clear()
    version = socket.AF_INET if family.version == 4 else socket.AF_INET6
    with rig.netns.socket(version, socket.SOCK_STREAM) as listener:
        listener.bind((family.own, seen.sport))
        listener.listen()
        assert talk.answer(seen).action == PASS
    assert talk.answer(seen).reason == DropReason.NAT_NO_MAPPING


# ---------------------------------------------------------------------- what changes


@families
def test_withdrawing_bites_on_the_next_answer(rig: Rig, family: Family) -> None:
    """Ranges that close, a backend that is removed, a service that goes."""
    service = served(family)
    for change, reason in (
        ([evolve(service, source_ranges=[family.other_client])], DropReason.LB_SOURCE_RANGE),
        ([service.with_backends([])], DropReason.NO_SERVICE_BACKEND),
        ([], DropReason.NO_SERVICE_BACKEND),
    ):
        rig.reset()
        rig.serve(service)
        talk = Talk(rig, family)
        seen = talk.open()
        rig.serve(*change)
        assert talk.answer(seen).reason == reason


@families
def test_answers_outlive_other_changes(rig: Rig, family: Family) -> None:
    """Of other backends, of the ranges that have the client still, and of the flow's own state."""
    service = served(family)
    rig.serve(service)
    talk = Talk(rig, family)
    seen = talk.open()
    home = [b for b in service.backends if str(b.address) == seen.destination]
    for changed in (
        service.with_backends(home),
        service.with_backends([home[0].in_state("terminating"), *service.backends[1:2]]),
        evolve(service.with_backends(home), source_ranges=[family.client]),
    ):
        rig.serve(changed)
        assert talk.answer(seen).action == TX
        assert talk.open("A") == seen
        assert talk.answer(seen).action == TX


@families
def test_a_connection_keeps_its_way(rig: Rig, family: Family) -> None:
    """One that is translated stays so when its service turns to DSR, and the other way round."""
    # the backends have the frontend's port, so that IP in IP can be
    service = evolve(served(family, port=80), dispatch="ipip")
    rig.serve(service)
    talk = Talk(rig, family)
    seen = talk.open()
    rig.serve(evolve(service, forwarding="dsr"))
    assert talk.open("A") == seen
    assert talk.answer(seen).action == TX
    encapsulated = Talk(rig, family, 40001)
    for flags in "SA":
        assert encapsulated.send(flags).outer.src == family.own
    rig.serve(service)
    inner = bytes(encapsulated.ends.frame(flags="A"))[14:]
    assert encapsulated.send("A").data.endswith(inner)


def test_hybrid(where: tuple[NetNS, int]) -> None:
    """TCP in an outer header, datagrams translated."""
    config = LoadBalancerConfig("maglev", "hybrid", "ipip", table_size=251)
    for hook in HOOKS:
        with balancer.rig(where, config, hook=hook) as rig:
            for family in FAMILIES:
                rig.serve(served(family, port=80), served_udp(family))
                tcp = Talk(rig, family)
                inner = bytes(tcp.ends.frame(flags="S"))[14:]
                assert tcp.send("S").data.endswith(inner)
                udp = Talk(rig, family, kind="UDP")
                assert udp.open("A").dport == 8080


# ---------------------------------------------------------------------- who gets what


@families
@kinds
def test_choices_are_the_models(rig: Rig, family: Family, kind: str) -> None:
    """The Maglev table's, all through a connection."""
    rig.serve(served(family, kind))
    met = set()
    for port in range(1000, 1064):
        talk = Talk(rig, family, port, kind)
        seen = talk.open()
        client = family.at(family.client, port).partition("/")[0]
        placed = rig.model.where(client, family.at(family.vip, 80, kind))
        assert placed.backend is not None
        assert seen.destination == str(placed.backend.address)
        assert talk.open("A") == seen
        met.add(seen.destination)
    assert len(met) == 4


@families
def test_random_affinity_and_draining(rig: Rig, family: Family) -> None:
    """All of them are met by chance; a client by affinity meets one, until that drains."""
    rig.serve(evolve(served(family), algorithm="random"))
    met = [Talk(rig, family, port).open().destination for port in range(1000, 1100)]
    assert min(met.count(address) for address in family.backends) > 8
    service = evolve(served(family), algorithm="random", affinity_timeout=60)
    rig.reset()
    rig.serve(service)
    first = Talk(rig, family, 1000)
    home = first.open()
    for port in range(2000, 2040):
        assert Talk(rig, family, port).open().destination == home.destination
    drained = [
        b.in_state("terminating") if str(b.address) == home.destination else b
        for b in service.backends
    ]
    rig.serve(service.with_backends(drained))
    assert Talk(rig, family, 3000).open().destination != home.destination
    assert first.open("A") == home
    assert first.answer(home).action == TX


@families
def test_backends_of_this_node_alone(rig: Rig, family: Family) -> None:
    """External policy Local: those that say they are on it, else none."""
    backends = [
        Backend(address, 8080, node=node)
        for address, node in zip(family.backends, ("n1", "n2", "", "n2"), strict=True)
    ]
    service = Service("web", [family.at(family.vip, 80)], backends, external_policy="Local")
    rig.serve(service)
    for port in range(1000, 1020):
        assert Talk(rig, family, port).open().destination == family.backends[0]
    rig.serve(service.with_backends(backends[1:]))
    assert Talk(rig, family, 2000).send("S").reason == DropReason.NO_SERVICE_BACKEND


@families
def test_source_ranges(rig: Rig, family: Family) -> None:
    """Others than these are dropped, and no port is spent on them."""
    rig.serve(evolve(served(family), source_ranges=[family.other_client]))
    assert Talk(rig, family).send("S").reason == DropReason.LB_SOURCE_RANGE
    assert Talk(rig, family, client=family.other_client).open().sport == 40000
    assert sizes(rig) == (1, 0, 1, 0)


# ---------------------------------------------------------------------- lives


LIVES = [
    ("S", "", "pending", 60),
    ("SA", "", "known", 8000),
    ("SA", "AF", "known", 8000),
    ("SAF", "A", "known", 8000),
    ("SAF", "F", "known", 10),
    ("SAR", "", "known", 10),
    ("SA", "R", "known", 10),
    ("SAS", "", "known", 8000),
]


@families
@pytest.mark.parametrize(("sent", "answered", "where_", "seconds"), LIVES)
def test_lives_of_tcp(
    rig: Rig, family: Family, sent: str, answered: str, where_: str, seconds: int
) -> None:
    """Before the handshake, open, half closed, and when both have closed or one broke off."""
    rig.serve(served(family))
    talk = Talk(rig, family)
    seen = talk.open(sent)
    for flags in answered:
        assert talk.answer(seen, flags).action == TX
    for name in ("lb_flows", "lb_nat") if where_ == "known" else ("lb_pending", "lb_nat_pending"):
        ((_, entry),) = rig.maps[name].items()
        flow = entry.flow if "nat" in name else entry
        left = (flow.expires - balancer.jiffies()) / balancer.hz()
        assert seconds - 3 < left <= seconds + 1, name


@families
def test_answers_lengthen_the_flows_life(rig: Rig, family: Family) -> None:
    """And what the client sends that of its answers."""
    rig.serve(served(family, "UDP"))
    talk = Talk(rig, family, kind="UDP")
    seen = talk.open()
    for say, other in ((lambda: talk.answer(seen), "lb_flows"), (talk.send, "lb_nat")):
        for name in ("lb_flows", "lb_nat"):
            older(rig, name, 30)
        assert say().action == TX
        ((_, entry),) = rig.maps[other].items()
        flow = entry.flow if other == "lb_nat" else entry
        assert 55 < (flow.expires - balancer.jiffies()) / balancer.hz() <= 61


@families
def test_what_has_expired(rig: Rig, family: Family) -> None:
    """Is nobody's: the next packet begins anew, and late answers are dropped."""
    rig.serve(served(family, "UDP"))
    talk = Talk(rig, family, 1000, kind="UDP")
    seen = talk.open()
    for name in ("lb_flows", "lb_nat"):
        age(rig, name, 5)
    assert talk.answer(seen).reason == DropReason.NAT_NO_MAPPING
    again = talk.open("A")
    assert sizes(rig) == (1, 1, 1, 1)
    assert talk.answer(again).action == TX


@families
def test_a_port_is_used_again(rig: Rig, family: Family) -> None:
    """A client that opens the connection anew gets its port again, and a whole life."""
    rig.serve(served(family))
    talk = Talk(rig, family)
    seen = talk.open("SAF")
    talk.answer(seen, "F")
    again = talk.open("S")
    assert again.sport == seen.sport
    assert talk.open("A") == again
    assert talk.answer(again).action == TX
    for name in ("lb_flows", "lb_nat"):
        ((_, entry),) = rig.maps[name].items()
        flow = entry.flow if name == "lb_nat" else entry
        assert (flow.expires - balancer.jiffies()) / balancer.hz() > 7900, name


@families
def test_nothing_becomes_known_while_it_is_collected(rig: Rig, family: Family) -> None:
    """What user space may delete by its key is not made anew meanwhile; packets go on.

    One that died at it holds nobody up for long.
    """
    rig.serve(served(family))
    talk, other = Talk(rig, family), Talk(rig, family, 41000)
    seen = other.open()
    rig.maps["lb_collecting"][0] = (balancer.jiffies() + 60 * balancer.hz()) & 0xFFFFFFFF
    for _ in range(3):
        ends = talk.open("A")
        assert talk.answer(ends).action == TX
    assert sizes(rig) == (1, 1, 1, 1)
    rig.maps["lb_flows"].clear()
    older(rig, "lb_nat")
    assert other.answer(seen).action == TX
    assert sizes(rig) == (0, 1, 1, 1)
    rig.maps["lb_collecting"][0] = (balancer.jiffies() - balancer.hz()) & 0xFFFFFFFF
    assert talk.open("A") == ends
    assert sizes(rig) == (1, 0, 2, 0)


def test_collecting_takes_nothing_that_lives(rig: Rig) -> None:
    """While somebody collects all the time, flows that come back at once keep all they have."""
    rig.serve(served(V4))

    def slowly() -> int:
        time.sleep(0.003)  # between reading and deleting, too
        return time.monotonic_ns()

    collector = FlowCollector(rig.maps, kernel_clock(), wait_for_programs, slowly)
    ending, deleted = threading.Event(), []

    def collect() -> None:
        while not ending.is_set():
            deleted.append(collector.collect())

    thread = threading.Thread(target=collect)
    thread.start()
    try:
        talks = [Talk(rig, V4, port) for port in range(40000, 40010)]
        for _ in range(15):
            for name in ("lb_flows", "lb_nat", "lb_pending", "lb_nat_pending"):
                age(rig, name, 10)
            seen = [talk.open("SAAA") for talk in talks]
            for talk, ends in zip(talks, seen, strict=True):
                assert talk.answer(ends).action == TX
                assert talk.open("A") == ends
    finally:
        ending.set()
        thread.join()
    assert sum(deleted) > 5


# ---------------------------------------------------------------------- ways, counters


@families
def test_the_way_to_the_client(where: tuple[NetNS, int], rig: Rig, family: Family) -> None:
    """By the kernel's routes, asked once a second; if it does not know the neighbour, by the last.

    As long as it never did, to whom the client's packets came from.
    """
    rig.serve(Service("web", [family.at(family.vip, 80)], [family.at(family.backends[3], 8080)]))
    gateway = "192.0.2.254" if family.version == 4 else "2001:db8::254"
    first, second = Talk(rig, family), Talk(rig, family, 41000)
    met = {first: first.open(), second: second.open()}
    assert first.answer(met[first]).packet.dst == ROUTER_MAC
    with Netlink(where[0]) as netlink:
        netlink.delete_neighbour("eth0", gateway)
        try:
            assert second.answer(met[second]).packet.dst == CLIENT_MAC
            ask_again(rig)
            assert first.answer(met[first]).packet.dst == ROUTER_MAC
        finally:
            netlink.add_neighbour("eth0", gateway, ROUTER_MAC)
    ask_again(rig)
    assert second.answer(met[second]).packet.dst == ROUTER_MAC


def ask_again(rig: Rig) -> None:
    """Let the second pass for which the ways to clients are kept."""
    keys, values = rig.maps["lb_nat"].lookup_batch()
    values["hop"]["resolved"] -= np.uint32(2 * balancer.hz())
    rig.maps["lb_nat"].update_batch(keys, values)


@families
def test_a_client_that_has_no_route(rig: Rig, family: Family) -> None:
    """Is not answered, and it is counted why."""
    rig.serve(served(family))
    far = "100.64.0.7" if family.version == 4 else "2001:db8:ff::7"
    talk = Talk(rig, family, client=far)
    assert talk.answer(talk.open()).reason == DropReason.FIB


@families
def test_counters(rig: Rig, family: Family) -> None:
    """What clients send by service and backend; answers in the other direction."""
    service = served(family, count=1)
    rig.serve(service)
    talk = Talk(rig, family)
    seen = talk.open("SA")
    for _ in range(3):
        talk.answer(seen)
    size = len(bytes(talk.ends.frame())) - 14
    for name, number in (
        ("lb_service_counters", rig.table.service_id(service.key)),
        ("lb_backend_counters", next(iter(rig.table.backends))),
    ):
        _, values = rig.maps[name].lookup_batch()
        found = values[number]
        assert (found["packets"].sum(), found["bytes"].sum()) == (2, 2 * size)
    rows = {
        row.direction.name: (row.packets, row.bytes) for row in Metrics.read(rig.maps["metrics"])
    }
    assert rows == {"INGRESS": (2, 2 * size), "EGRESS": (3, 3 * size)}
