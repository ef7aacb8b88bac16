"""DSR's bytes in three forms: the model in plain Python, the balancer's program, the backend's.

For any packet of any client the balancer sends what the model says, and the backend's side makes of
that what the client had sent, with the backend's address and port.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from attrs import frozen
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import UDP

from pyciliumlib.flow import DropReason
from pyciliumlib.loadbalancer import LoadBalancerConfig, Service
from pyciliumlib.loadbalancer.program.loading import Hook
from tests.bpf import balancer, dsr_packets, dsr_side
from tests.bpf.balancer import FAMILIES, TX, Family, Rig
from tests.bpf.dsr_packets import DATAGRAM, SHAPES, SYN, End, Shape, Way, received, routed
from tests.bpf.dsr_side import Side
from tests.scale import examples

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: run `sudo make test`")

PORTS = st.integers(1, 0xFFFF)
HOOKS = (Hook.NATIVE, Hook.TC)


@frozen
class Case:
    """One packet, or the fragments of one, and the service that it is for."""

    family: Family
    shape: Shape
    client: End
    port: int
    backend_port: int
    ttl: int
    payload: bytes

    def way(self, to: End, ttl: int) -> Way:
        return Way(self.family, self.client, to, ttl, self.payload)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    family = draw(st.sampled_from(FAMILIES))
    address = draw(st.ip_addresses(v=family.version).filter(_is_no_ipv4))
    return Case(
        family,
        draw(st.sampled_from(SHAPES)),
        (str(address), draw(PORTS)),
        draw(PORTS),
        draw(PORTS),
        draw(st.integers(2, 255)),
        draw(st.binary(max_size=600)),
    )


def _is_no_ipv4(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    return not getattr(address, "ipv4_mapped", None)


@pytest.fixture(scope="module")
def rigs() -> Iterator[dict[tuple[str, Hook], Rig]]:
    """The balancer's programs by dispatch and hook."""
    with ExitStack() as stack:
        where = stack.enter_context(balancer.device())
        yield {
            (name, hook): stack.enter_context(
                balancer.rig(where, LoadBalancerConfig("maglev", "dsr", name, table_size=251),
                             hook=hook)
            )
            for name in ("opt", "geneve") for hook in HOOKS
        }  # fmt: skip


@pytest.fixture(scope="module")
def sides() -> Iterator[dict[Hook, Side]]:
    """The backend's programs by hook."""
    with ExitStack() as stack:
        yield {hook: stack.enter_context(dsr_side.side(hook)) for hook in HOOKS}


@pytest.mark.parametrize("hook", HOOKS, ids=str)
@pytest.mark.parametrize("name", ["opt", "geneve"])
@settings(max_examples=examples(120), deadline=None)
@given(case=cases())
def test_there_and_off_again(
    rigs: dict[tuple[str, Hook], Rig],
    sides: dict[Hook, Side],
    name: str,
    hook: Hook,
    case: Case,
) -> None:
    """What the balancer sends is the model's, and what the backend's side makes of it, too."""
    rig, side = rigs[name, hook], sides[hook]
    family, shape = case.family, case.shape
    service = (family.vip, case.port)
    backend = (family.backends[0], case.backend_port)
    rig.reset()
    side.reset([family.vip])
    frontend = family.at(*service, shape.protocol)
    rig.serve(Service("any", [frontend], [family.at(*backend, shape.protocol)]))
    if not shape.tells:  # such a packet is of a flow that is known
        first = SYN if shape.protocol == "TCP" else DATAGRAM
        for packet in first.on(case.way(service, case.ttl)):
            assert rig.send(received(packet)).action == TX
    ttl = case.ttl - 1 if name == "opt" else case.ttl
    wanted = shape.on(case.way(backend, ttl))
    for packet, inner in zip(shape.on(case.way(service, case.ttl)), wanted, strict=True):
        outcome = rig.send(received(packet))
        assert outcome.action == TX
        told = service if shape.tells else None
        if name == "opt":
            model = dsr_packets.with_option(inner, service) if told else inner
        else:
            flow = {"source": outcome.packet[UDP].sport, "label": getattr(outcome.outer, "fl", 0)}
            model = dsr_packets.in_geneve(family, inner, backend[0], told, **flow)
        assert outcome.data == routed(model)
        taken = side.take(outcome.data)
        assert taken.data == routed(inner)
        assert taken.reason == (None if name == "opt" and not told else DropReason.FORWARDED)
