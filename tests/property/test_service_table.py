"""The table over random histories of services, beside the model; each plan leaves no trace."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from pyciliumlib.kernel import ObjectSpec
from pyciliumlib.loadbalancer import (
    Backend,
    Balancer,
    Frontend,
    LoadBalancerConfig,
    LocalNode,
    LocalRedirect,
    Service,
    Why,
)
from pyciliumlib.loadbalancer.table import ServiceTable
from pyciliumlib.resources import object_path
from pyciliumlib.testing import FakeKernel
from tests.property.service_maps import Reader

CONFIG = LoadBalancerConfig("maglev", "dsr", "ipip", table_size=251)
VIPS = ("203.0.113.10", "203.0.113.11", "2001:db8::10")
CLIENTS = ("198.51.100.7", "198.51.100.8", "2001:db8:c::7", "10.0.0.1")
STATES = ("active", "terminating", "quarantined")
NODE = LocalNode("n1")
POLICIES = st.sampled_from(["Cluster", "Local"])
#: One state of a backend for all services, as EndpointSlices give it.
STATE_OF = {number: STATES[number % 3] for number in range(1, 10)}
TYPES = ("LoadBalancer", "ClusterIP", "LocalRedirect")


def address(number: int, version: int) -> str:
    return f"10.0.0.{number}" if version == 4 else f"fd00::{number}"


@st.composite
def services(draw: st.DrawFn) -> list[Service]:
    """Up to three services, each with some of the frontends, which no two share."""
    made = []
    places = draw(st.permutations([(vip, port) for vip in VIPS for port in (80, 81)]))
    for number in range(draw(st.integers(0, 3))):
        frontends = [
            Frontend(vip, port, type=draw(st.sampled_from(TYPES)))
            for vip, port in places[2 * number : 2 * number + draw(st.integers(1, 2))]
        ]
        versions = {f.address.version for f in frontends}
        backends = [
            Backend(address(n, version), 80, state=STATE_OF[n], node=f"n{n % 2}")
            for n in draw(st.sets(st.integers(1, 7), max_size=4))
            for version in versions
        ]
        near = draw(st.none() | st.sets(st.integers(5, 9), max_size=3))
        redirect = near if near is None else LocalRedirect(
            "default/local",
            [Backend(address(n, version), 80, state=STATE_OF[n])
             for n in near for version in versions],
        )  # fmt: skip
        ranges = draw(
            st.lists(st.sampled_from(["198.51.100.7/32", "::/0", "0.0.0.0/0"]), max_size=2)
        )
        made.append(
            Service(
                f"s{draw(st.integers(0, 9))}-{number}",
                frontends,
                backends,
                algorithm=draw(st.sampled_from(["random", "maglev"])),
                affinity_timeout=draw(st.sampled_from([0, 60])),
                source_ranges=ranges,
                source_ranges_policy=draw(st.sampled_from(["allow", "deny"])),
                external_policy=draw(POLICIES),
                internal_policy=draw(POLICIES),
                redirect=redirect,
            )
        )
    return made


_SIZES = {
    "lb_backends": 64, "lb_revisions": 64, "lb_slots": 512, "lb_filter": 64, "lb_frontends": 64,
}  # fmt: skip


def kernel() -> FakeKernel:
    spec = ObjectSpec.open(object_path("endpoint"))
    for name, entries in _SIZES.items():
        spec.resize(name, entries)
    return FakeKernel(found for name, found in spec.maps.items() if name.startswith("lb_"))


@given(st.lists(services(), min_size=1, max_size=4), st.integers(1, 65535))
@settings(deadline=None, max_examples=60)
def test_the_table_says_what_the_model_says(history: list[list[Service]], port: int) -> None:
    """For every client and frontend, after every change."""
    maps: Any = kernel()
    table, reader = ServiceTable(maps, CONFIG, NODE, Clock()), Reader(maps, CONFIG)
    for wanted in history:
        table.apply(table.plan(wanted))
        reader.check(wanted)
        model = Balancer(wanted, CONFIG, NODE)
        for client in CLIENTS:
            for vip in VIPS:
                if (":" in client) is not (":" in vip):
                    continue
                for dport in (80, 81, 82):
                    host = f"[{vip}]" if ":" in vip else vip
                    caller = f"[{client}]:{port}" if ":" in client else f"{client}:{port}"
                    placed = model.where(caller, f"{host}:{dport}")
                    reason, met = reader.ask(client, port, vip, dport, "TCP")
                    assert max(reason, 0) == placed.reason
                    wanted_of = {placed.backend} if placed.backend else set(placed.candidates)
                    assert met == {str(b.address) for b in wanted_of}
                    placed = model.where(caller, f"{host}:{dport}", direction="east-west")
                    reason, met = reader.ask_inside(vip, dport, "TCP")
                    assert max(reason, 0) == placed.reason
                    assert met == {str(b.address) for b in placed.candidates}
                    assert (reason == -1) is (placed.why is Why.NO_SERVICE)


class Clock:
    """One that runs, so that nothing has to rest."""

    def __init__(self) -> None:
        self._now = 0.0

    def __call__(self) -> float:
        self._now += 1.0
        return self._now
