"""What `Connections` tells of connections, beside where the programs send their packets."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from scapy.layers.inet import TCP
from scapy.packet import Packet

from pyciliumlib.conntrack.program import kernel_clock
from pyciliumlib.loadbalancer import Service
from pyciliumlib.loadbalancer.connections import Connections
from pyciliumlib.loadbalancer.program.loading import Hook
from tests.bpf import balancer
from tests.bpf.balancer import FAMILIES, Family, Rig

families = pytest.mark.parametrize("family", FAMILIES, ids=str)


@pytest.fixture(scope="module", params=(Hook.NATIVE, Hook.TC), ids=str)
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    with balancer.device() as where, balancer.rig(where, hook=request.param) as made:
        yield made


def tcp(family: Family, flags: str) -> Packet:
    return family.ip(family.client, family.vip) / TCP(sport=40000, dport=80, flags=flags)


@families
def test_a_connection_that_begins_anew(rig: Rig, family: Family) -> None:
    """Its entry has expired and is still there; the programs pass over it, and so does the look."""
    rig.reset()
    rig.serve(Service("web", [family.at(family.vip, 80)], family.served()))
    rig.send(tcp(family, "S"))
    rig.send(tcp(family, "A"))
    look = Connections(rig.maps, kernel_clock(), {4: None, 6: None})
    [old] = look.read(rig.table.backends)
    assert old.known

    keys, flows = rig.maps["lb_flows"].lookup_batch()
    flows["expires"] = (balancer.jiffies() - 5) & 0xFFFFFFFF
    rig.maps["lb_flows"].update_batch(keys, flows)
    assert not list(look.read(rig.table.backends))
    assert look.backend_of(old.client, old.to, rig.table.backends) is None

    to = rig.send(tcp(family, "S")).to
    [new] = look.read(rig.table.backends)
    assert (str(new.backend.address), new.known) == (to, False)
    assert look.backend_of(new.client, new.to, rig.table.backends) == new.backend
