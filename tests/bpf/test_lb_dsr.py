"""DSR by option and by Geneve, at both hooks: the bytes that backends get, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from attrs import frozen
from scapy.contrib.geneve import GENEVE
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrHopByHop
from scapy.packet import Raw

from pyciliumlib.flow import DropReason
from pyciliumlib.loadbalancer import LoadBalancerConfig, Service
from pyciliumlib.loadbalancer.program.loading import Hook
from pyciliumlib.net import NetNS
from tests.bpf import balancer, dsr_packets
from tests.bpf.balancer import DROP, FAMILIES, TX, V4, Family, Outcome, Rig
from tests.bpf.card import check_sum
from tests.bpf.dsr_packets import (
    ACK,
    DATAGRAM,
    ERROR,
    ERROR_ABOUT_MORE,
    FRAGMENTS,
    SHAPES,
    SYN,
    Shape,
    received,
    routed,
)

families = pytest.mark.parametrize("family", FAMILIES, ids=str)
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)
PORT, BACKEND_PORT = 80, 8080


@frozen
class Dispatch:
    """A rig whose services are of one dispatch, and that dispatch's bytes."""

    name: str
    rig: Rig

    def serve(self, family: Family, backend: int = 0, protocol: str = "TCP") -> None:
        """The service, with one of the backends."""
        there = family.at(family.backends[backend], BACKEND_PORT, protocol)
        frontend = family.at(family.vip, PORT, protocol)
        self.rig.serve(Service("web", [frontend], [there]))

    def send(self, family: Family, shape: Shape) -> list[Outcome]:
        """The client's packets, as the device gets them."""
        frames = [received(packet) for packet in shape.packets(family, (family.vip, PORT))]
        return [self.rig.send(frame) for frame in frames]

    def expected(
        self, family: Family, shape: Shape, got: list[Outcome], tells: bool, backend: int = 0
    ) -> list[bytes]:
        """What the balancer is to send."""
        to, service = (family.backends[backend], BACKEND_PORT), (family.vip, PORT)
        if self.name == "opt":
            packets = shape.packets(family, to, ttl=dsr_packets.TTL - 1)
            return [routed(dsr_packets.with_option(p, service) if tells else p) for p in packets]
        sources = {outcome.packet[UDP].sport for outcome in got}
        assert len(sources) == 1
        assert min(sources) >= 49152
        flow = {"source": sources.pop(), "label": getattr(got[0].outer, "fl", 0)}
        told = service if tells else None
        return [
            routed(dsr_packets.in_geneve(family, packet, to[0], told, **flow))
            for packet in shape.packets(family, to)
        ]

    def check(self, family: Family, shape: Shape, *, tells: bool, backend: int = 0) -> None:
        """Send the packets, and compare what becomes of them with the model's bytes."""
        got = self.send(family, shape)
        assert {outcome.action for outcome in got} == {TX}, [str(one) for one in got]
        expected = self.expected(family, shape, got, tells, backend)
        assert [outcome.data for outcome in got] == expected
        if self.rig.hook is Hook.TC:
            for packet in shape.packets(family, (family.vip, PORT)):
                with self.rig.netns.enter():
                    check_sum(self.rig.program, received(packet), {"ifindex": self.rig.ifindex})


@pytest.fixture(scope="module")
def where() -> Iterator[tuple[NetNS, int]]:
    with balancer.device() as made:
        yield made


def config(name: str, **options: int) -> LoadBalancerConfig:
    return LoadBalancerConfig("maglev", "dsr", name, table_size=251, **options)


@pytest.fixture(scope="module", params=["opt", "geneve"])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module", params=[Hook.NATIVE, Hook.TC], ids=str)
def hook(request: pytest.FixtureRequest) -> Hook:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def loaded(name: str, hook: Hook, where: tuple[NetNS, int]) -> Iterator[Dispatch]:
    with balancer.rig(where, config(name), hook=hook) as made:
        yield Dispatch(name, made)


@pytest.fixture
def dispatch(loaded: Dispatch) -> Dispatch:
    loaded.rig.reset()
    return loaded


def test_ciliums_bytes() -> None:
    """As Cilium's nodes write the option: 10.0.0.1:80."""
    assert dsr_packets.option(("10.0.0.1", 80)).hex() == "9a0850000100000a"


@families
@shapes
@pytest.mark.smoke
def test_bytes(dispatch: Dispatch, family: Family, shape: Shape) -> None:
    """Each kind of packet, of a flow that is known, to the byte."""
    dispatch.serve(family, protocol=shape.protocol)
    if shape.protocol == "TCP":
        for before in (SYN, ACK):
            dispatch.check(family, before, tells=before is SYN)
    if shape is ERROR_ABOUT_MORE:
        dispatch.check(family, DATAGRAM, tells=True)
    dispatch.check(family, shape, tells=shape.tells)


@families
def test_who_has_to_tell(dispatch: Dispatch, family: Family) -> None:
    """Of TCP each SYN, and the first packet to a backend; of UDP all of them."""
    dispatch.serve(family)
    for shape, tells in ((ACK, True), (ACK, False), (SYN, True), (SYN, True), (ACK, False)):
        dispatch.check(family, shape, tells=tells)
    dispatch.serve(family, backend=1)
    for tells in (True, False):
        dispatch.check(family, ACK, tells=tells, backend=1)
    dispatch.serve(family, protocol="UDP")
    for _ in range(3):
        dispatch.check(family, DATAGRAM, tells=True)


@families
def test_errors_do_not_open_flows(dispatch: Dispatch, family: Family) -> None:
    """An ICMP error about no flow of the service's is not for a backend."""
    dispatch.serve(family)
    assert dispatch.send(family, ERROR)[0].action == balancer.PASS


@families
def test_flags_that_are_kept(dispatch: Dispatch, family: Family) -> None:
    """DSCP and ECN stay in the packet, and Geneve's outer header has them too."""
    dispatch.serve(family)
    marked = bytearray(SYN.packets(family, (family.vip, PORT))[0])
    if family.version == 4:
        marked = bytearray(bytes(IP(src=family.client, dst=family.vip, tos=0xB9)
                                 / IP(bytes(marked)).payload))  # fmt: skip
    else:
        marked[0:2] = b"\x6b\x90"
    outcome = dispatch.rig.send(received(bytes(marked)))
    outer = outcome.outer
    assert (outer.tos if family.version == 4 else outer.tc) == 0xB9


@families
def test_the_last_hop(dispatch: Dispatch, family: Family) -> None:
    """A packet that is routed has one hop less to go, so it needs one; Geneve's frame does not."""
    dispatch.serve(family)
    (packet,) = SYN.packets(family, (family.vip, PORT), ttl=1)
    outcome = dispatch.rig.send(received(packet))
    if dispatch.name == "opt":
        assert (outcome.action, outcome.reason) == (DROP, DropReason.TTL_EXCEEDED)
    else:
        assert outcome.data.endswith(SYN.packets(family, (family.backends[0], 8080), ttl=1)[0])


def test_padding_is_not_carried(dispatch: Dispatch) -> None:
    """A short frame is filled up to 60 bytes; Geneve's lengths are those of the packet."""
    dispatch.serve(V4)
    (packet,) = SYN.packets(V4, (V4.vip, PORT))
    outcome = dispatch.rig.send(received(packet) + bytes(6))
    (whole,) = dispatch.expected(V4, SYN, [outcome], tells=True)
    assert outcome.data == whole + bytes(6)


# ---------------------------------------------------------------------- limits


GROWTH = {("opt", 4): 8, ("opt", 6): 24, ("geneve", 4): 62, ("geneve", 6): 94}


@families
def test_too_big(where: tuple[NetNS, int], name: str, hook: Hook, family: Family) -> None:
    """The largest that fits goes, one byte more is answered with the size that would."""
    mtu, growth = 1400, GROWTH[name, family.version]
    header = 28 if family.version == 4 else 48
    with balancer.rig(where, config(name), mtu=mtu, hook=hook) as made:
        there = family.at(family.backends[0], BACKEND_PORT, "UDP")
        made.serve(Service("web", [family.at(family.vip, PORT, "UDP")], [there]))
        head = family.ip(family.client, family.vip)
        fits = head / UDP(sport=1, dport=PORT) / Raw(bytes(mtu - growth - header))
        sent = made.send(fits)
        assert (sent.action, len(sent.data)) == (TX, 14 + mtu)
        answer = made.send(fits / Raw(b"x"))
        assert (answer.action, answer.reason) == (TX, DropReason.FRAG_NEEDED)
        assert (answer.outer.src, answer.outer.dst) == (family.vip, family.client)
        message = answer.outer.payload
        assert (message.nexthopmtu if family.version == 4 else message.mtu) == mtu - growth


def test_options_that_leave_no_room(dispatch: Dispatch) -> None:
    """An IPv4 header has 40 bytes for options; with more than 32 in use the packet is dropped."""
    dispatch.serve(V4, protocol="UDP")
    for length, fits in ((32, True), (36, False)):
        datagram = UDP(sport=1, dport=PORT)
        head = V4.ip(V4.client, V4.vip, options=[b"\x94\x04\0\0"] * (length // 4))
        outcome = dispatch.rig.send(head / datagram)
        if fits or dispatch.name == "geneve":
            assert outcome.action == TX
        else:
            assert (outcome.action, outcome.reason) == (DROP, DropReason.DSR_UNSUPPORTED)
    if dispatch.name == "opt":
        dispatch.serve(V4)
        dispatch.send(V4, SYN)
        head = V4.ip(V4.client, V4.vip, options=[b"\x94\x04\0\0"] * 10)
        plain = head / IP(ACK.packets(V4, (V4.vip, PORT))[0]).payload
        assert dispatch.rig.send(plain).action == TX  # it need not tell


def test_hop_by_hop_options(dispatch: Dispatch) -> None:
    """They have the place where the option would be looked for: dropped where one is needed."""
    family = FAMILIES[1]
    dispatch.serve(family)
    for shape, reason in ((SYN, DropReason.DSR_UNSUPPORTED), (ACK, 0)):
        segment = IPv6(shape.packets(family, (family.vip, PORT))[0]).payload
        frame = family.ip(family.client, family.vip) / IPv6ExtHdrHopByHop() / segment
        outcome = dispatch.rig.send(frame)
        assert outcome.reason == (reason if dispatch.name == "opt" else 0)


@families
def test_a_fragment_without_its_first(dispatch: Dispatch, family: Family) -> None:
    """Dropped: it cannot be known for which backend it is."""
    dispatch.serve(family, protocol="UDP")
    packets = FRAGMENTS.packets(family, (family.vip, PORT))
    outcome = dispatch.rig.send(received(packets[1]))
    assert (outcome.action, outcome.reason) == (DROP, DropReason.FRAGMENT_NOT_FOUND)


@families
def test_geneve_at_another_port(where: tuple[NetNS, int], hook: Hook, family: Family) -> None:
    """By the config's `geneve_port`, Cilium's `tunnel-port`."""
    with balancer.rig(where, config("geneve", geneve_port=8472), hook=hook) as made:
        Dispatch("geneve", made).serve(family)
        (outcome,) = Dispatch("geneve", made).send(family, SYN)
        assert GENEVE(bytes(outcome.packet[UDP].payload)).vni == 2
        assert outcome.packet[UDP].dport == 8472


def test_flows_are_spread(dispatch: Dispatch) -> None:
    """Geneve's outer source port differs by flow."""
    if dispatch.name == "opt":
        return
    dispatch.serve(V4)
    ports = set()
    for sport in range(4000, 4064):
        segment = SYN.packets(V4, (V4.vip, PORT))[0]
        packet = IP(segment)
        packet.payload.sport = sport
        ports.add(dispatch.rig.send(V4.ip(V4.client, V4.vip) / packet.payload).packet[UDP].sport)
    assert len(ports) > 48
