"""Translation: model, maps and program say the same of every packet of many flows.

The program runs in this kernel, so this property needs root.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from attrs import evolve, frozen
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import ICMP
from scapy.layers.inet6 import ICMPv6DestUnreach
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from pyciliumlib.conntrack import Ends, Nat
from pyciliumlib.conntrack.program import kernel_clock
from pyciliumlib.flow import DropReason
from pyciliumlib.loadbalancer import Balancer, LoadBalancerConfig, Service
from pyciliumlib.loadbalancer.connections import Connections
from pyciliumlib.loadbalancer.program.loading import Hook
from pyciliumlib.types import PortProto, parse_address
from tests.bpf import balancer
from tests.bpf.balancer import DROP, FAMILIES, OWN_MAC, PASS, TX, Family, Rig
from tests.bpf.balancer_nat import HOPS, LAYERS, on_the_way
from tests.bpf.balancer_nat import Ends as Frames
from tests.scale import examples

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: run `sudo make test`")

CONFIG = LoadBalancerConfig("maglev", "snat", table_size=251)
#: Few, so that flows meet each other's ports, and run out of them.
PORTS = PortProto(50000, 50003)


@pytest.fixture(scope="module", params=[Hook.NATIVE, Hook.TC], ids=str)
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    ports = f"{PORTS.first}-{PORTS.last}"
    with (
        balancer.device() as where,
        balancer.rig(where, CONFIG, hook=request.param, nat_ports=ports) as made,
    ):
        yield made


@frozen
class Step:
    """A packet: of a client, an answer to it, or an error about one of both."""

    what: str
    client: int
    sport: int
    dport: int
    kind: str
    payload: bytes


STEPS = st.builds(
    Step,
    st.sampled_from(["send", "send", "answer", "error inside", "error outside"]),
    st.integers(0, 5),
    st.sampled_from([50000, 50001, 1000]),
    st.sampled_from([80, 81]),
    st.sampled_from(["TCP", "UDP", "SCTP"]),
    st.binary(min_size=4, max_size=64),
)


class Scene:
    """The three faces of the flows of one history."""

    def __init__(self, rig: Rig, family: Family) -> None:
        self.rig, self.family = rig, family
        # both ports of a kind have the same two backends, at which their flows meet
        self.services = [
            Service(f"{kind.lower()}{port}", [family.at(family.vip, port, kind)],
                    family.served(8080, kind)[:2])
            for kind in ("TCP", "UDP", "SCTP") for port in (80, 81)
        ]  # fmt: skip
        rig.serve(*self.services)
        self._flows = Connections(
            rig.maps, kernel_clock(), {family.version: parse_address(family.own)}
        )

    def begin(self) -> None:
        """No flows."""
        self.rig.forget_flows()
        self.rig.model = Balancer(self.services, CONFIG, self.rig.node)
        self.nat = Nat(self.family.own, PORTS)

    def flow(self, step: Step) -> Ends:
        client = parse_address(self.family.client) + step.client
        return Ends(client, step.sport, self.family.vip, step.dport, step.kind)

    def frame(self, ends: Ends, step: Step, hops: int = HOPS) -> Packet:
        """The packet between these ends."""
        return self._frames(ends).frame(hops, "A", step.payload)

    def error(self, quoted: Ends, source: str, step: Step, hops: int = HOPS) -> Packet:
        """What is told to the source of a packet about it."""
        about = bytes(self.frame(quoted, step))[14:]
        if step.kind == "SCTP":  # whose CRC is not followed where it is only quoted
            about = about[: (20 if self.family.version == 4 else 40) + 8]
        icmp = ICMP(type=3, code=1) if self.family.version == 4 else ICMPv6DestUnreach(code=0)
        to = evolve(self._frames(quoted), source=source, destination=str(quoted.source))
        return Ether(dst=OWN_MAC) / to.ip(hops) / icmp / Raw(about)

    def _frames(self, ends: Ends) -> Frames:
        return Frames(self.family, str(ends.source), ends.sport, str(ends.destination), ends.dport,
                      ends.protocol.name)  # fmt: skip

    # -------------------------------------------------------------- steps

    def send(self, step: Step) -> None:
        """To the backend of the Maglev table, by a port that is allowed."""
        flow = self.flow(step)
        at = self.family.at
        placed = self.rig.model.connect(
            at(str(flow.source), flow.sport).partition("/")[0],
            at(self.family.vip, step.dport, step.kind),
        )
        assert placed.backend is not None
        backend, port = placed.backend.address, placed.backend.port
        allowed = self.nat.allowed(flow, backend, port)
        outcome = self.rig.send(self.frame(flow, step))
        if not allowed:
            assert (outcome.action, outcome.reason) == (DROP, DropReason.NAT_NO_MAPPING)
            return
        assert outcome.action == TX, outcome
        source = outcome.packet.getlayer(LAYERS[step.kind]).sport
        assert source in allowed
        inside = self.nat.bind(flow, backend, port, source)
        assert outcome.data == on_the_way(self.frame(inside, step, HOPS - 1), outcome.packet.dst)

    def answer(self, step: Step) -> None:
        """Back to the client; what answers nothing is the node's own."""
        inside = self.nat.out(self.flow(step))
        if inside is None:
            return
        back = self.nat.back(inside.reversed)
        assert back is not None
        outcome = self.rig.send(self.frame(inside.reversed, step))
        assert outcome.data == on_the_way(self.frame(back, step, HOPS - 1))
        other = evolve(inside.reversed, sport=9999)
        assert self.rig.send(self.frame(other, step)).action == PASS

    def tell(self, quoted: Ends, source: str, step: Step) -> None:
        """An error about that packet, to where it came from."""
        known = self.nat.quoted(quoted)
        outcome = self.rig.send(self.error(quoted, "192.0.2.77" if self.family.version == 4
                                           else "2001:db8::77", step))  # fmt: skip
        if known is None:
            assert outcome.action == PASS
            return
        wanted = self.error(known, source, step, HOPS - 1)
        assert outcome.data == on_the_way(wanted, outcome.packet.dst)

    def take(self, step: Step) -> None:
        flow = self.flow(step)
        if step.what == "send":
            self.send(step)
        elif step.what == "answer":
            self.answer(step)
        elif step.what == "error outside":
            self.tell(flow.reversed, self.family.own, step)
        else:
            inside = self.nat.out(flow)
            if inside is not None:
                self.tell(inside, self.family.vip, step)

    def check_maps(self) -> None:
        """Exactly the model's flows, with their ports, and for each its entry for answers."""
        found = {
            Ends(c.client.address, c.client.port, c.to.address, c.to.port, c.to.protocol): c
            for c in self._flows.read(self.rig.table.backends)
        }
        assert len(found) == len(self.nat)
        answers = {}
        for name in ("lb_nat", "lb_nat_pending"):
            answers.update(self.rig.maps[name].items())
        assert len(answers) == len(self.nat)
        for key, entry in answers.items():
            inside = Ends(self.family.own, key.nat_port, key.backend, key.backend_port, key.proto)
            of = entry.key
            outside = Ends(of.client, of.client_port, of.service, of.service_port, of.proto)
            assert self.nat.out(outside) == inside
            connection = found[outside]
            assert connection.nat is not None
            assert (connection.nat.address, connection.nat.port) == (inside.source, inside.sport)
            assert connection.backend.address == inside.destination


@pytest.fixture(scope="module", params=FAMILIES, ids=str)
def scene(request: pytest.FixtureRequest, rig: Rig) -> Scene:
    rig.reset()
    return Scene(rig, request.param)


@settings(max_examples=examples(60), deadline=None)
@given(steps=st.lists(STEPS, max_size=40))
def test_model_maps_and_program(scene: Scene, steps: list[Step]) -> None:
    """Every packet of every history, byte by byte with scapy's checksums; then the maps."""
    scene.begin()
    for step in steps:
        scene.take(step)
    scene.check_maps()


FEW = st.integers(1, 6)
FLOWS = st.builds(
    lambda host, sport, kind: Ends(f"198.51.100.{host}", sport, "203.0.113.10", 80, kind),
    FEW, st.sampled_from([50000, 50001, 1]), st.sampled_from(["TCP", "UDP"]),
)  # fmt: skip


@settings(deadline=None)
@given(st.lists(st.tuples(FLOWS, FEW, st.integers(0, 3)), max_size=40))
def test_a_port_is_never_two_flows(history: list[tuple[Ends, int, int]]) -> None:
    """Whatever is allowed can be bound, and afterwards both directions lead to each other."""
    nat, bound = Nat("192.0.2.1", PORTS), {}
    for flow, host, choice in history:
        allowed = sorted(nat.allowed(flow, f"10.0.0.{host}", 8080))
        if allowed:
            port = allowed[choice % len(allowed)]
            bound[flow] = nat.bind(flow, f"10.0.0.{host}", 8080, port)
    assert len(nat) == len(bound) == len(set(bound.values()))
    for flow, inside in bound.items():
        assert nat.out(flow) == inside
        assert nat.back(inside.reversed) == flow.reversed
