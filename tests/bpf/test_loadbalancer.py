"""The load balancer's program by test run: what goes where, byte by byte, and what is dropped."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6EchoRequest,
    ICMPv6PacketTooBig,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
)
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.packet import Packet, Raw
from scapy.utils import checksum

from pyciliumlib.conntrack.model import signed32
from pyciliumlib.errors import KernelError
from pyciliumlib.flow import DropReason
from pyciliumlib.flow.metrics import Metrics
from pyciliumlib.loadbalancer import Backend, Frontend, LoadBalancerConfig, Service
from pyciliumlib.loadbalancer.program.loading import Hook
from pyciliumlib.net import Netlink, NetNS
from tests.bench.fastpath import one_cpu
from tests.bpf import balancer
from tests.bpf.balancer import (
    DROP,
    FAMILIES,
    OWN_MAC,
    PASS,
    ROUTER_MAC,
    TX,
    V4,
    V6,
    Family,
    Outcome,
    Rig,
    hz,
)

families = pytest.mark.parametrize("family", FAMILIES, ids=str)
HOOKS = (Hook.NATIVE, Hook.TC)
hooks = pytest.mark.parametrize("hook", HOOKS, ids=str)


@pytest.fixture(scope="module")
def where() -> Iterator[tuple[NetNS, int]]:
    with balancer.device() as made:
        yield made


@pytest.fixture(scope="module", params=HOOKS, ids=str)
def loaded(request: pytest.FixtureRequest, where: tuple[NetNS, int]) -> Iterator[Rig]:
    """The same path at both hooks, held to the same answers."""
    with balancer.rig(where, hook=request.param) as made:
        yield made


@pytest.fixture
def rig(loaded: Rig) -> Rig:
    loaded.reset()
    return loaded


def web(family: Family, backends: list[Any] | None = None, **options: Any) -> Service:
    served = family.served() if backends is None else backends
    return Service("web", [family.at(family.vip, 80)], served, **options)


def tcp(family: Family, flags: str = "S", sport: int = 40000, dport: int = 80, **ip: Any) -> Packet:
    src, dst = ip.pop("src", family.client), ip.pop("dst", family.vip)
    return family.ip(src, dst, **ip) / TCP(sport=sport, dport=dport, flags=flags)


def udp(family: Family, sport: int = 40000, dport: int = 80, payload: bytes = b"query") -> Packet:
    return family.ip(family.client, family.vip) / UDP(sport=sport, dport=dport) / Raw(payload)


def model_choice(rig: Rig, family: Family, sport: int, protocol: str = "TCP") -> Backend:
    client = family.at(family.client, sport).partition("/")[0]
    placed = rig.model.where(client, family.at(family.vip, 80, protocol))
    assert placed.backend is not None
    return placed.backend


# ---------------------------------------------------------------------- bytes


@families
@pytest.mark.smoke
def test_outer_header(rig: Rig, family: Family) -> None:
    """Addresses, lengths, TTL and checksum as scapy computes them; what is inside stays."""
    rig.serve(web(family, family.served()[:1]))
    frame = tcp(family) / Raw(b"hello")
    outcome = rig.send(frame)
    assert outcome.action == TX
    assert (outcome.packet.src, outcome.packet.dst) == (OWN_MAC, ROUTER_MAC)
    header = 20 if family.version == 4 else 40
    assert outcome.data[14 + header :] == bytes(frame)[14:]
    outer = outcome.outer
    assert (outer.src, outcome.to) == (family.own, family.backends[0])
    if family.version == 4:
        expected = IP(src=family.own, dst=family.backends[0], ttl=64, proto=4, id=0, flags="DF")
    else:
        expected = IPv6(src=family.own, dst=family.backends[0], hlim=64, nh=41, fl=outer.fl)
    assert outcome.data[14:] == bytes(expected / Raw(bytes(frame)[14:]))


@families
def test_the_neighbour_of_a_backend_on_the_link(rig: Rig, family: Family) -> None:
    """Next hop by the kernel's routes: the backend itself where it is on the link."""
    rig.serve(web(family, family.served()[3:]))
    assert rig.send(tcp(family)).packet.dst == "0a:00:00:00:00:31"


@families
def test_a_neighbour_that_the_kernel_forgot(rig: Rig, family: Family) -> None:
    """It stays where it was until it is found elsewhere; one that was never known is none."""
    rig.serve(web(family, family.served()[3:]))
    address = family.backends[3]
    with Netlink(rig.netns) as netlink, one_cpu():  # each CPU has a memory of its own
        first = rig.send(tcp(family)).packet.dst
        netlink.delete_neighbour("eth0", address)
        try:
            age_hops(rig)
            assert rig.send(tcp(family)).packet.dst == first
            assert rig.send(tcp(family)).packet.dst == first
            netlink.add_neighbour("eth0", address, "0a:00:00:00:00:32")
            age_hops(rig)
            assert rig.send(tcp(family)).packet.dst == "0a:00:00:00:00:32"
            netlink.delete_neighbour("eth0", address)
            rig.maps["lb_hops"].update_batch(*blank(rig.maps["lb_hops"]))
            assert rig.send(tcp(family)).reason == DropReason.FIB
        finally:
            netlink.add_neighbour("eth0", address, first)


@families
def test_a_route_that_is_gone(rig: Rig, family: Family) -> None:
    """Counts within a second, whatever was known before."""
    rig.serve(web(family, family.served()[:1]))
    behind, router = {4: ("10.0.0.0/24", "192.0.2.254"), 6: ("fd00::/64", "2001:db8::254")}[
        family.version
    ]
    assert rig.send(tcp(family)).action == TX
    with Netlink(rig.netns) as netlink:
        netlink.delete_route(behind, dev="eth0", via=router)
        try:
            age_hops(rig)
            assert rig.send(tcp(family)).reason == DropReason.FIB
        finally:
            netlink.add_route(behind, dev="eth0", via=router)


def age_hops(rig: Rig) -> None:
    """A second later."""
    keys, hops = rig.maps["lb_hops"].lookup_batch()
    hops["resolved"] -= np.uint32(hz())
    rig.maps["lb_hops"].update_batch(keys, np.ascontiguousarray(hops))


def blank(map_: Any) -> tuple[Any, Any]:
    keys, values = map_.lookup_batch()
    return keys, np.zeros(values.shape, values.dtype)


@families
@pytest.mark.parametrize("tos", [0, 0x2E << 2, 3])
def test_traffic_class_is_copied(rig: Rig, family: Family, tos: int) -> None:
    """DSCP and ECN, so that the way to the backend treats the packet as it is."""
    rig.serve(web(family))
    field = {"tos": tos} if family.version == 4 else {"tc": tos}
    outer = rig.send(tcp(family, **field)).outer
    assert (outer.tos if family.version == 4 else outer.tc) == tos


def test_flow_labels_differ_by_flow(rig: Rig) -> None:
    """So that routers spread flows although all of them are between the same two nodes."""
    rig.serve(web(V6, V6.served()[:1]))
    labels = {rig.send(tcp(V6, sport=port)).outer.fl for port in range(4000, 4016)}
    assert len(labels) > 8


SHAPES: dict[str, Any] = {
    "IPv4 options": lambda: V4.ip(V4.client, V4.vip, options=[b"\x94\x04\x00\x00"] * 10),
    "IPv6 hop by hop": lambda: V6.ip(V6.client, V6.vip) / IPv6ExtHdrHopByHop(),
    "IPv6 two extensions": lambda: (
        V6.ip(V6.client, V6.vip) / IPv6ExtHdrHopByHop() / IPv6ExtHdrDestOpt()
    ),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_headers_that_are_longer(rig: Rig, shape: str) -> None:
    """Options and extensions are walked over and kept."""
    family = V4 if "IPv4" in shape else V6
    rig.serve(web(family))
    frame = SHAPES[shape]() / TCP(sport=40000, dport=80, flags="S")
    outcome = rig.send(frame)
    assert rig.backend_of(web(family), outcome) == model_choice(rig, family, 40000)
    assert outcome.data.endswith(bytes(frame)[14:])


# ---------------------------------------------------------------------- who gets what


@families
@pytest.mark.parametrize("protocol", ["TCP", "UDP"])
def test_maglev_as_the_model(rig: Rig, family: Family, protocol: str) -> None:
    """The program's table and hash choose as the model's do."""
    service = Service("web", [family.at(family.vip, 80, protocol)], family.served(80, protocol))
    rig.serve(service)
    chosen = set()
    for port in range(1000, 1064):
        frame = tcp(family, sport=port) if protocol == "TCP" else udp(family, sport=port)
        backend = rig.backend_of(service, rig.send(frame))
        assert backend == model_choice(rig, family, port, protocol)
        chosen.add(backend)
    assert len(chosen) == 4


@families
def test_random_takes_them_all(rig: Rig, family: Family) -> None:
    """Each backend has its share, and a connection stays where it is."""
    rig.serve(web(family, algorithm="random"))
    first = [rig.send(tcp(family, sport=port)).to for port in range(1000, 1200)]
    assert min(first.count(address) for address in family.backends) > 20
    again = [rig.send(tcp(family, "A", sport=port)).to for port in range(1000, 1200)]
    assert again == first


@families
def test_bystanders(rig: Rig, family: Family) -> None:
    """What is for no service passes untouched: other addresses, and other ports of the node's."""
    node_port = Frontend(family.own, 30080, type="NodePort")
    rig.serve(web(family), Service("node", [node_port], family.served(30080)))
    for frame in (
        tcp(family, dst=family.other_vip),
        tcp(family, dst=family.own),
        tcp(family, dst=family.own, dport=30081),
        Ether(src=OWN_MAC, dst=OWN_MAC) / ARP(),
        Ether(src=OWN_MAC, dst=OWN_MAC) / Dot1Q(vlan=5) / tcp(family).getlayer(1),
        family.ip(family.client, family.vip)
        / (ICMP() if family.version == 4 else ICMPv6EchoRequest()),
    ):
        outcome = rig.send(frame)
        assert (outcome.action, outcome.data) == (PASS, bytes(frame)), frame.summary()
    assert rig.send(tcp(family, dst=family.own, dport=30080)).action == TX


def test_v4_mapped_addresses_are_no_ipv4(rig: Rig) -> None:
    """An IPv6 packet that says so must not reach an IPv4 service by it."""
    rig.serve(web(V4))
    frame = V6.ip("::ffff:198.51.100.7", f"::ffff:{V4.vip}") / TCP(dport=80, flags="S")
    assert rig.send(frame).action == PASS


DROPS = [
    (81, "TCP", {}, DropReason.NO_SERVICE_BACKEND),
    (80, "UDP", {}, DropReason.NO_SERVICE_BACKEND),
    (80, "TCP", {"ranges": "other"}, DropReason.LB_SOURCE_RANGE),
    (80, "TCP", {"ranges": "own", "policy": "deny"}, DropReason.LB_SOURCE_RANGE),
    (80, "TCP", {"type": "ClusterIP"}, DropReason.IS_CLUSTER_IP),
    (80, "TCP", {"backends": "unroutable"}, DropReason.FIB),
]


@families
@pytest.mark.parametrize(("port", "protocol", "options", "reason"), DROPS)
def test_drops(
    rig: Rig,
    family: Family,
    port: int,
    protocol: str,
    options: dict[str, Any],
    reason: DropReason,
) -> None:
    """Each with its reason, and the packet is counted under it."""
    backends: list[Any] = family.served()
    if options.get("backends") == "unroutable":
        backends = [family.at(family.unroutable, 80)]
    ranges = {"other": [family.other_client], "own": [family.client]}
    rig.serve(
        Service(
            "web",
            [Frontend(family.vip, 80, type=options.get("type", "LoadBalancer"))],
            backends,
            source_ranges=ranges.get(options.get("ranges", ""), []),
            source_ranges_policy=options.get("policy", "allow"),
        )
    )
    frame = tcp(family, dport=port) if protocol == "TCP" else udp(family, dport=port)
    outcome = rig.send(frame)
    assert (outcome.action, outcome.reason) == (DROP, reason)
    assert rig.send(tcp(family, dst=family.other_vip)).action == PASS


@families
@pytest.mark.parametrize(
    ("ranges", "policy", "let_in"),
    [
        (["198.51.100.0/24", "2001:db8:c::/64"], "allow", True),
        (["198.51.100.8/32", "2001:db8:c::8/128"], "allow", False),
        (["198.51.100.8/32", "2001:db8:c::8/128"], "deny", True),
        (["0.0.0.0/0", "::/0"], "allow", True),
        (["0.0.0.0/0", "::/0"], "deny", False),
    ],
)
def test_source_ranges(
    rig: Rig, family: Family, ranges: list[str], policy: str, let_in: bool
) -> None:
    """The longest and the shortest ranges of both families, side by side."""
    rig.serve(web(family, source_ranges=ranges, source_ranges_policy=policy))
    assert (rig.send(tcp(family)).action == TX) is let_in


@pytest.mark.parametrize("range_", ["::/0", "::/64", "0.0.0.0/0"])
def test_a_range_of_one_family_is_not_the_others(rig: Rig, range_: str) -> None:
    """IPv4 lies inside the 16-byte IPv6 space of the keys, and yet ::/0 is not about it."""
    for family in FAMILIES:
        rig.serve(web(family, source_ranges=[range_]))
        expected = ipaddress.ip_address(family.client) in ipaddress.ip_network(range_)
        assert (rig.send(tcp(family)).action == TX) is expected


# ---------------------------------------------------------------------- flows


@families
def test_a_connection_keeps_its_backend(rig: Rig, family: Family) -> None:
    """While others come and go, and while it drains; not when it is gone."""
    service = web(family, algorithm="random")
    rig.serve(service)
    home = rig.backend_of(service, rig.send(tcp(family)))
    rest = [b for b in service.backends if b != home]
    for backends in (
        [home],
        [home, *rest],
        [home.in_state("terminating"), *rest],
        [home.in_state("quarantined"), *rest],
    ):
        rig.serve(service.with_backends(backends))
        for _ in range(3):
            assert rig.send(tcp(family, "A")).to == str(home.address)
    rig.serve(service.with_backends(rest))
    assert rig.send(tcp(family, "A")).to != str(home.address)


@families
def test_a_syn_leaves_a_backend_that_drains(rig: Rig, family: Family) -> None:
    """The same ports again, while the backend takes nothing new."""
    service = web(family)
    rig.serve(service)
    home = rig.backend_of(service, rig.send(tcp(family)))
    rest = [b for b in service.backends if b != home]
    rig.serve(service.with_backends([home.in_state("terminating"), *rest]))
    assert rig.send(tcp(family)).to != str(home.address)


@families
def test_shared_backends_are_left_with_the_service(rig: Rig, family: Family) -> None:
    """A connection leaves a backend that its service gave up, though another service has it."""
    service = web(family)
    other = Service("other", [family.at(family.other_vip, 80)], family.served())
    rig.serve(service, other)
    home = rig.backend_of(service, rig.send(tcp(family)))
    rest = [b for b in service.backends if b != home]
    rig.serve(service.with_backends(rest), other)
    assert rig.send(tcp(family, "A")).to != str(home.address)


@families
def test_withdrawing_bites_on_the_next_packet(rig: Rig, family: Family) -> None:
    """A service that goes, and ranges that close, end the connections that are known."""
    rig.serve(web(family))
    for flags in "SAA":
        assert rig.send(tcp(family, flags)).action == TX
    rig.serve(web(family, source_ranges=[family.other_client]))
    assert rig.send(tcp(family, "A")).reason == DropReason.LB_SOURCE_RANGE
    rig.serve(web(family))
    assert rig.send(tcp(family, "A")).action == TX
    rig.serve()
    assert rig.send(tcp(family, "A")).action == PASS


def flows(rig: Rig) -> tuple[int, int]:
    return len(rig.maps["lb_flows"]), len(rig.maps["lb_pending"])


@families
def test_first_packets_wait_apart(rig: Rig, family: Family) -> None:
    """A SYN is pending, however often it comes; the next packet makes the flow known."""
    rig.serve(web(family))
    for flags, expected in (("S", (0, 1)), ("S", (0, 1)), ("A", (1, 0)), ("S", (1, 0))):
        rig.send(tcp(family, flags))
        assert flows(rig) == expected


def test_a_flood_does_not_evict_what_is_known(rig: Rig) -> None:
    """Ten times as many SYNs as fit; every known connection, idle all the while, is kept."""
    rig.serve(web(V4, algorithm="random"))
    homes = {}
    for port in range(2000, 2100):
        rig.send(tcp(V4, sport=port))
        homes[port] = rig.send(tcp(V4, "A", sport=port)).to
    known = flows(rig)[0]
    frame = bytearray(bytes(tcp(V4, src="198.18.0.0")))
    with rig.netns.enter():
        for number in range(10 * 1024):
            frame[28:30] = number.to_bytes(2, "big")
            rig.program.run(bytes(frame), {"ingress_ifindex": rig.ifindex})
    assert flows(rig)[0] == known == 100
    assert {port: rig.send(tcp(V4, "A", sport=port)).to for port in homes} == homes


LIVES = [("S", "pending", 60), ("SA", "flows", 8000), ("SAF", "flows", 10), ("SAR", "flows", 10)]


@pytest.mark.parametrize(("packets", "table", "seconds"), LIVES)
def test_lives(rig: Rig, packets: str, table: str, seconds: int) -> None:
    """As long as Cilium's: before the handshake, open, and after a FIN or RST."""
    rig.serve(web(V4))
    for flags in packets:
        rig.send(tcp(V4, flags))
    ((_, flow),) = rig.maps[f"lb_{table}"].items()
    left = signed32(flow.expires - balancer.jiffies()) / balancer.hz()
    assert seconds - 3 < left <= seconds + 1


def test_an_expired_flow_is_forgotten(rig: Rig) -> None:
    """Its backend may be another the next time."""
    rig.serve(web(V4, algorithm="random"))
    for flags in "SA":
        rig.send(tcp(V4, flags))
    keys, values = rig.maps["lb_flows"].lookup_batch()
    seen = set()
    for _ in range(40):
        values["expires"] = (balancer.jiffies() - 5) & 0xFFFFFFFF
        rig.maps["lb_flows"].update_batch(keys, values)
        seen.add(rig.send(tcp(V4, "A")).to)
    assert len(seen) > 1


@families
def test_affinity(rig: Rig, family: Family) -> None:
    """Other ports of the client meet the same backend, another client need not; until it drains."""
    service = web(family, algorithm="random", affinity_timeout=60)
    rig.serve(service)
    home = rig.backend_of(service, rig.send(tcp(family)))
    for port in range(3000, 3040):
        assert rig.send(tcp(family, sport=port)).to == str(home.address)
    rest = [b for b in service.backends if b != home]
    rig.serve(service.with_backends([home.in_state("terminating"), *rest]))
    moved = rig.send(tcp(family, sport=5000)).to
    assert moved != str(home.address)
    assert rig.send(tcp(family, sport=5001)).to == moved


def test_affinity_ends(rig: Rig) -> None:
    """A client that was silent for the timeout is nobody's."""
    rig.serve(web(V4, algorithm="random", affinity_timeout=60))
    rig.send(tcp(V4))
    keys, values = rig.maps["lb_affinity"].lookup_batch()
    seen = set()
    for port in range(4000, 4040):
        values["last_used"] = (balancer.jiffies() - 61 * balancer.hz()) & 0xFFFFFFFF
        rig.maps["lb_affinity"].update_batch(keys, values)
        seen.add(rig.send(tcp(V4, sport=port)).to)
    assert len(seen) > 1


# ---------------------------------------------------------------------- fragments, ICMP, sizes


def fragments(family: Family, size: int = 3000) -> list[Packet]:
    """The fragments of one datagram."""
    head = family.ip(family.client, family.vip)
    body = bytes(UDP(sport=40000, dport=80) / Raw(b"x" * size))
    whole = bytes(head / UDP(sport=40000, dport=80) / Raw(b"x" * size))[14:]
    del body
    cut, made = 1200, []
    start = 20 if family.version == 4 else 40
    payload = whole[start:]
    for at in range(0, len(payload), cut):
        more = at + cut < len(payload)
        part = Raw(payload[at : at + cut])
        if family.version == 4:
            fields = {"flags": "MF" if more else 0, "frag": at // 8, "id": 77, "proto": 17}
            made.append(family.ip(family.client, family.vip, **fields) / part)
        else:
            extension = IPv6ExtHdrFragment(offset=at // 8, m=int(more), id=77, nh=17)
            made.append(head.copy() / extension / part)
    return made


@families
def test_fragments_follow_the_first(rig: Rig, family: Family) -> None:
    """All of them go to one backend, the one that the ports choose."""
    service = Service("web", [family.at(family.vip, 80, "UDP")], family.served(80, "UDP"))
    rig.serve(service)
    outcomes = [rig.send(fragment) for fragment in fragments(family)]
    assert len(outcomes) == 3
    chosen = {rig.backend_of(service, outcome) for outcome in outcomes}
    assert chosen == {model_choice(rig, family, 40000, "UDP")}


@families
def test_a_fragment_without_its_first(rig: Rig, family: Family) -> None:
    """Dropped at a service's address, and none of our business at another."""
    rig.serve(Service("web", [family.at(family.vip, 80, "UDP")], family.served(80, "UDP")))
    later = fragments(family)[1]
    assert rig.send(later).reason == DropReason.FRAGMENT_NOT_FOUND
    later.getlayer(1).dst = family.other_vip
    assert rig.send(later).action == PASS


def icmp_error(family: Family, sport: int, dport: int = 80) -> Packet:
    """What a router on the way back tells: a packet of the service to the client was too large."""
    quoted = (IP if family.version == 4 else IPv6)(src=family.vip, dst=family.client)
    quoted = quoted / TCP(sport=dport, dport=sport, flags="A")
    if family.version == 4:
        return family.ip("198.51.100.254", family.vip) / ICMP(type=3, code=4) / quoted
    return family.ip("2001:db8:c::254", family.vip) / ICMPv6DestUnreach() / quoted


@families
def test_icmp_errors_go_to_the_backend(rig: Rig, family: Family) -> None:
    """The quoted packet's flow says to which; those about no flow pass."""
    service = web(family, algorithm="random")
    rig.serve(service)
    home = rig.send(tcp(family)).to
    for _ in range(3):
        assert rig.send(icmp_error(family, 40000)).to == home
    assert rig.send(icmp_error(family, 40001)).action == PASS
    assert flows(rig) == (0, 1)


@hooks
@families
def test_too_big(where: tuple[NetNS, int], family: Family, hook: Hook) -> None:
    """The sender is told which size fits, in the service's name; scapy's checksums agree."""
    outer = 20 if family.version == 4 else 40
    with balancer.rig(where, mtu=1400, hook=hook) as made:
        made.serve(web(family, family.served()[:1]))
        headers = outer + 20
        fits = tcp(family) / Raw(b"x" * (1400 - outer - headers))
        assert made.send(fits).action == TX
        frame = fits / Raw(b"x")
        outcome = made.send(frame)
        assert (outcome.action, outcome.reason) == (TX, DropReason.FRAG_NEEDED)
        answer = outcome.packet
        assert (answer.src, answer.dst) == (OWN_MAC, balancer.CLIENT_MAC)
        assert (answer.getlayer(1).src, answer.getlayer(1).dst) == (family.vip, family.client)
        if family.version == 4:
            icmp = ICMP(type=3, code=4, nexthopmtu=1400 - outer)
            head = IP(src=family.vip, dst=family.client, ttl=64, id=0)
        else:
            icmp = ICMPv6PacketTooBig(mtu=1400 - outer)
            head = IPv6(src=family.vip, dst=family.client, hlim=64)
        quote = bytes(frame)[14 : 14 + 96]
        if hook is Hook.TC:  # where the last two bytes are for the checksum's sake
            quote = quote[:94] + outcome.data[-2:]
        assert outcome.data[14:] == bytes(head / icmp / Raw(quote))


LEFT_OUT = {
    "TCP": lambda family, head: head / TCP(sport=40000, dport=80, flags="A"),
    "UDP": lambda family, head: head / UDP(sport=40000, dport=80),
    "UDP behind options": lambda family, head: (
        (
            family.ip(family.client, family.vip, options=[b"\x94\x04\0\0"] * 10)
            if family.version == 4
            else head / IPv6ExtHdrDestOpt()
        )
        / UDP(sport=40000, dport=80)
    ),
}


@families
@pytest.mark.parametrize("kind", LEFT_OUT)
def test_too_big_with_a_checksum_left_out(
    where: tuple[NetNS, int], family: Family, kind: str
) -> None:
    """A device that fills in the checksum of what is quoted writes what is there already."""
    with balancer.rig(where, mtu=1400, hook=Hook.TC) as made:
        protocol = kind[:3]
        frontend = family.at(family.vip, 80, protocol)
        made.serve(Service("web", [frontend], family.served(80, protocol)[:1]))
        head = family.ip(family.client, family.vip)
        whole = bytearray(bytes(LEFT_OUT[kind](family, head) / Raw(bytes(range(256)) * 6)))
        begin = len(whole) - 1536 - (20 if protocol == "TCP" else 8)
        place = begin + (16 if protocol == "TCP" else 6)
        for left in (b"\x12\x34", bytes(whole[place : place + 2])):
            whole[place : place + 2] = left
            answer = made.send(bytes(whole)).data
            quoted = answer[len(answer) - 96 + begin - 14 :]
            assert checksum(quoted) == int.from_bytes(left, "big")


def test_answers_are_limited(where: tuple[NetNS, int]) -> None:
    """No more than a thousand a second, so that one flood makes no other."""
    with balancer.rig(where, mtu=1400) as made:
        made.serve(web(V4))
        frame = tcp(V4) / Raw(b"x" * 1400)
        answers = made.maps["lb_answers"]
        keys, values = answers.lookup_batch()
        for age, action in ((0, DROP), (balancer.hz(), TX)):
            values["since"], values["count"] = balancer.jiffies() - age, 1000
            answers.update_batch(keys, values)
            outcome = made.send(frame)
            assert (outcome.action, outcome.reason) == (action, DropReason.FRAG_NEEDED)


CUT = [14, 20, 33, 34, 36, 53, 54, 60, 73]


@families
@pytest.mark.parametrize("length", CUT)
def test_short_packets_do_no_harm(rig: Rig, family: Family, length: int) -> None:
    """Whatever is cut off, nothing is sent on that was not understood."""
    rig.serve(web(family))
    frame = bytes(tcp(family))[:length]
    headers = 54 if family.version == 4 else 74
    if rig.hook is Hook.TC and length < headers - 20:
        with pytest.raises(KernelError):  # no such frame gets as far as tc
            rig.send(frame)
        return
    assert rig.send(frame).action == (TX if length >= headers else PASS)


@pytest.mark.parametrize("ihl", [0, 4, 15])
def test_false_lengths(rig: Rig, ihl: int) -> None:
    """A header length that cannot be, or that the packet does not have."""
    rig.serve(web(V4))
    frame = bytearray(bytes(tcp(V4)))
    frame[14] = 0x40 | ihl
    assert rig.send(bytes(frame)).action == PASS


# ---------------------------------------------------------------------- counters, randomness


@families
def test_counters(rig: Rig, family: Family) -> None:
    """Packets and bytes of the service, of each backend, and in all."""
    service = web(family, family.served()[:1])
    rig.serve(service)
    size = len(bytes(tcp(family))) - 14
    for flags in "SAAF":
        rig.send(tcp(family, flags))
    for name, number in (
        ("lb_service_counters", rig.table.service_id(service.key)),
        ("lb_backend_counters", next(iter(rig.table.backends))),
    ):
        _, values = rig.maps[name].lookup_batch()
        found = values[number]
        assert (found["packets"].sum(), found["bytes"].sum()) == (4, 4 * size)
    assert Metrics.read(rig.maps["metrics"]).packets() == 4


@families
def test_the_models_answers(rig: Rig, family: Family) -> None:
    """A thousand random packets of random clients at a few services, beside the model."""
    random = np.random.default_rng(family.version)
    services = [
        Service("web", [family.at(family.vip, 80)], family.served(), affinity_timeout=0),
        Service("dns", [family.at(family.vip, 53, "UDP")], family.served(53, "UDP")[:3]),
        Service("shut", [family.at(family.vip, 22)], family.served(22)[:2],
                source_ranges=[f"{family.client}/{31 if family.version == 4 else 127}"]),
        Service("sticky", [family.at(family.other_vip, 80)], family.served(), affinity_timeout=99),
        Service("inside", [Frontend(family.other_vip, 81, type="ClusterIP")], family.served(81)),
    ]  # fmt: skip
    rig.serve(*services)
    clients = [str(ipaddress.ip_address(family.client) + n) for n in range(4)]
    for _ in range(1000):
        client, sport = clients[random.integers(4)], int(random.integers(1, 65536))
        vip = (family.vip, family.other_vip, family.own)[random.integers(3)]
        dport, kind = int(random.choice([22, 53, 80, 81])), ("TCP", "UDP")[random.integers(2)]
        head = family.ip(client, vip)
        frame = head / (TCP if kind == "TCP" else UDP)(sport=sport, dport=dport)
        outcome = rig.send(frame)
        caller = family.at(client, sport).partition("/")[0]
        placed = rig.model.connect(caller, family.at(vip, dport, kind))
        described = f"{frame.summary()}: {outcome}, but {placed}"
        assert outcome.reason == placed.reason, described
        if placed.backend is None:
            assert outcome.action == (DROP if placed.dropped else PASS), described
        else:
            assert outcome.to == str(placed.backend.address), described


def test_config_is_in_force(where: tuple[NetNS, int]) -> None:
    """Another seed and size are another table, in the program as in the model."""
    seed = "AAECAwQFBgcICQoL"
    config = LoadBalancerConfig("maglev", "dsr", "ipip", table_size=509, hash_seed=seed)
    with balancer.rig(where, config) as made:
        for family in FAMILIES:
            made.serve(web(family))
            for port in range(1000, 1032):
                sent = made.backend_of(web(family), made.send(tcp(family, sport=port)))
                assert sent == model_choice(made, family, port)


def test_outcomes_can_be_read(rig: Rig) -> None:
    """The harness says what it saw."""
    assert "Forwarded" in str(Outcome(PASS, bytes(tcp(V4)), 0))
