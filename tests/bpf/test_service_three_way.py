"""For random histories of services the three faces agree on where a pod's packets go.

The model, the table as plain Python reads it, and the program over the same maps. Where chance
chooses, the program does, and the model is told; from then on both know the connection.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from attrs import evolve, frozen
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scapy.layers.l2 import Ether

from pyciliumlib.flow import DropReason
from pyciliumlib.loadbalancer import (
    Backend,
    Balancer,
    Direction,
    Frontend,
    LoadBalancerConfig,
    LocalNode,
    Placement,
    Service,
    Why,
)
from tests.bpf.harness import Devices
from tests.bpf.packets import ACK, FAMILIES, SYN, Family
from tests.bpf.services import LOOPBACK, ServiceRig, service_rig
from tests.property.service_maps import Reader
from tests.property.test_service_table import VIPS, services
from tests.scale import examples

CONFIG = LoadBalancerConfig("maglev", table_size=251, algorithm_annotation=True)
NODE = LocalNode("n1")


@frozen
class Probe:
    """A packet of the client: a new connection's first, or another."""

    vip: str
    port: int
    sport: int
    opening: bool


PROBES = st.lists(
    st.builds(
        Probe,
        st.sampled_from([*VIPS, "203.0.113.99", "2001:db8::99"]),
        st.sampled_from([80, 81, 82]),
        st.sampled_from([1000, 1001]),
        st.booleans(),
    ),
    min_size=1,
    max_size=12,
)
#: The same names in every step, so that services change.
NAMED = services().map(
    lambda found: [evolve(service, name=f"s{number}") for number, service in enumerate(found)]
)
STEPS = st.lists(st.tuples(NAMED, PROBES), min_size=1, max_size=4)


@pytest.fixture(scope="module")
def loaded(where: Devices) -> Iterator[ServiceRig]:
    with service_rig(where) as made:
        yield made


class Told:
    """A chance that has been taken already."""

    def __init__(self, address: str) -> None:
        self._address = address

    def choice(self, candidates: Sequence[Any]) -> Any:
        (found,) = [one for one in candidates if str(one.address) == self._address]
        return found


def ask(rig: ServiceRig, family: Family, probe: Probe) -> tuple[int, str | None, int]:
    """The drop reason, and the packet's destination as it left."""
    flags = SYN if probe.opening else ACK
    frame = family.tcp(family.client, probe.vip, probe.port, flags, probe.sport)
    outcome = rig.from_client(frame)
    if outcome.drop:
        return outcome.drop, None, 0
    packet = Ether(outcome.packet).payload
    if packet.dst == family.client:  # whoever meets himself is told so by another address
        assert packet.src == LOOPBACK[family.version]
    else:
        assert packet.src == family.client
    return 0, str(packet.dst), packet.payload.dport


def told(placed: Placement, probe: Probe) -> tuple[int, str | None, int]:
    """The same as the model says it."""
    if placed.dropped:
        return int(placed.reason), None, 0
    if placed.why is Why.NO_SERVICE:
        return 0, probe.vip, probe.port
    assert placed.backend is not None
    return 0, str(placed.backend.address), placed.backend.port


def connect(
    model: Balancer,
    ends: tuple[str, str],
    probe: Probe,
    chosen: str | None,
    direction: Direction = Direction.EAST_WEST,
) -> Placement:
    """What the model makes of the probe, with the program's word for chance."""
    model._random = Told(chosen or "")  # type: ignore[assignment]
    return model.connect(*ends, direction=direction, opening=probe.opening)


@pytest.mark.parametrize("family", FAMILIES, ids=str)
@settings(
    max_examples=examples(60),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(steps=STEPS)
def test_model_table_and_program_agree(
    loaded: ServiceRig, family: Family, steps: list[tuple[list[Service], list[Probe]]]
) -> None:
    """After every change of services, for new connections and for those that are known."""
    loaded.reset(CONFIG, NODE)
    loaded.rig.allow_all()
    model, reader = Balancer((), CONFIG, NODE), Reader(loaded.maps, CONFIG)
    for wanted, probes in steps:
        loaded.only(*wanted)
        update(model, wanted)
        reader.check(wanted)
        for probe in probes:
            if (":" in probe.vip) is not (family.version == 6):
                continue
            was = model.where(
                *ends(family.client, probe), direction=Direction.EAST_WEST, opening=probe.opening
            )
            reason, met = reader.ask_inside(
                probe.vip, probe.port, "TCP", (family.client, probe.sport)
            )
            seen = ask(loaded, family, probe)
            placed = connect(model, ends(family.client, probe), probe, seen[1])
            assert seen == told(placed, probe), (probe, placed)
            check_table(was, placed, reason, met)
    assert DropReason.POLICY not in {reason for _, reason in loaded.rig.metrics()}


def check_table(was: Placement, placed: Placement, reason: int, met: set[str]) -> None:
    """The table's answer against the model's, before and after the packet."""
    assert max(reason, 0) == (placed.reason if was.why is not Why.CONNECTION else reason)
    if was.why in (Why.RANDOM, Why.MAGLEV):
        allowed = {was.backend} if was.backend else set(was.candidates)
        assert met == {str(backend.address) for backend in allowed}


def ends(client: str, probe: Probe) -> tuple[str, str]:
    """Client and target as the model reads them."""
    host = "[{}]" if ":" in client else "{}"
    return f"{host.format(client)}:{probe.sport}", f"{host.format(probe.vip)}:{probe.port}"


def update(model: Balancer, wanted: list[Service]) -> None:
    """Let the model hold these services; first those go that are not among them."""
    keys = {service.key for service in wanted}
    for key in [key for key in model.services if key not in keys]:
        model.delete(key)
    for service in wanted:  # a frontend may move between two of them
        known = model.services.get(service.key)
        if known is not None:
            stay = [frontend for frontend in known.frontends if frontend in service.frontends]
            model.upsert(only_at(service, stay))
    for service in wanted:
        model.upsert(service)


def only_at(service: Service, frontends: Sequence[Frontend]) -> Service:
    """The service with these frontends alone, and the backends of their IP versions."""
    versions = {frontend.address.version for frontend in frontends} or {4, 6}

    def fitting(backends: Sequence[Backend]) -> list[Backend]:
        return [one for one in backends if one.address.version in versions]

    redirect = service.redirect
    if redirect is not None:
        redirect = evolve(redirect, backends=fitting(redirect.backends))
    backends = fitting(service.backends)
    return evolve(service, frontends=frontends, backends=backends, redirect=redirect)
