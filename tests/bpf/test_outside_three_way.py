"""For random histories of services the three faces agree on where packets from outside go."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from scapy.layers.l2 import Ether

from pyciliumlib.flow import DropReason
from pyciliumlib.loadbalancer import Balancer, Direction, Service
from tests.bpf.harness import HOST, SERVER, Devices
from tests.bpf.packets import ACK, FAMILIES, SYN, Family
from tests.bpf.services import ServiceRig, device_rig
from tests.bpf.test_service_three_way import (
    CONFIG,
    NODE,
    STEPS,
    Probe,
    check_table,
    connect,
    ends,
    told,
    update,
)
from tests.property.service_maps import Reader
from tests.property.test_service_table import address
from tests.scale import examples


@pytest.fixture(scope="module")
def loaded(where: Devices) -> Iterator[ServiceRig]:
    with device_rig(where) as made:
        yield made


def ask(rig: ServiceRig, family: Family, probe: Probe) -> tuple[int, str | None, int]:
    """The drop reason, and the packet's destination as it left; the client stays who it is."""
    flags = SYN if probe.opening else ACK
    frame = family.tcp(family.world, probe.vip, probe.port, flags, probe.sport)
    outcome = rig.rig.send("to_host", HOST, frame)
    if outcome.drop:
        return outcome.drop, None, 0
    packet = Ether(outcome.packet).payload
    assert packet.src == family.world
    return 0, str(packet.dst), packet.payload.dport


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
    for number in range(1, 8):  # all backends are pods of the node
        loaded.rig.place(SERVER, address(number, family.version))
    model, reader = Balancer((), CONFIG, NODE), Reader(loaded.maps, CONFIG)
    outside = Direction.NORTH_SOUTH
    for wanted, probes in steps:
        loaded.only(*wanted)
        update(model, wanted)
        for probe in probes:
            if (":" in probe.vip) is not (family.version == 6):
                continue
            both = ends(family.world, probe)
            was = model.where(*both, direction=outside, opening=probe.opening)
            reason, met = reader.ask(family.world, probe.sport, probe.vip, probe.port, "TCP")
            seen = ask(loaded, family, probe)
            placed = connect(model, both, probe, seen[1], outside)
            assert seen == told(placed, probe), (probe, placed)
            check_table(was, placed, reason, met)
    assert DropReason.POLICY not in {reason for _, reason in loaded.rig.metrics()}
