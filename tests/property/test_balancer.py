"""The balancer over random services and histories, beside what must hold whatever happened."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from pyciliumlib.loadbalancer import (
    Backend,
    BackendState,
    Balancer,
    FlowTuple,
    LoadBalancerConfig,
    Service,
    Why,
)

VIP = "203.0.113.10:80"
CONFIG = LoadBalancerConfig(table_size=251)
STATES = st.sampled_from(BackendState)
BACKENDS = st.dictionaries(st.integers(1, 8), STATES, max_size=6).map(
    lambda states: [Backend(f"10.0.0.{n}", 80, state=state) for n, state in states.items()]
)
CLIENTS = st.builds("192.0.2.{}:{}".format, st.integers(1, 4), st.sampled_from([1000, 1001]))
RANGES = st.lists(st.sampled_from(["192.0.2.1/32", "192.0.2.2/31", "10.0.0.0/8"]), max_size=2)


@st.composite
def services(draw: st.DrawFn) -> Service:
    return Service(
        "web",
        [VIP],
        draw(BACKENDS),
        algorithm=draw(st.sampled_from(["random", "maglev"])),
        affinity_timeout=draw(st.sampled_from([0, 10])),
        source_ranges=draw(RANGES),
        source_ranges_policy=draw(st.sampled_from(["allow", "deny"])),
    )


STEPS = st.lists(
    st.one_of(services(), st.tuples(CLIENTS, st.booleans(), st.integers(0, 8))), max_size=20
)


def due(service: Service) -> list[Backend]:
    """Who takes new connections, said another way than the model does."""
    by_state = {state: [b for b in service.backends if b.state is state] for state in BackendState}
    return by_state[BackendState.ACTIVE] or by_state[BackendState.TERMINATING]


@given(services(), STEPS)
@settings(deadline=None)
def test_histories(first: Service, steps: list[Service | tuple[str, bool, int]]) -> None:
    """Every step of every history: the reason fits, and the backend is one that may be."""
    model, service, now = Balancer([first], CONFIG, seed=1), first, 0
    open_: dict[str, Backend] = {}
    met: dict[str, tuple[Backend, int]] = {}
    for step in steps:
        if isinstance(step, Service):
            service = step
            model.upsert(service)
            there = {backend.key for backend in service.backends}
            open_ = {client: backend for client, backend in open_.items() if backend.key in there}
            met = {host: (last, at) for host, (last, at) in met.items() if last.key in there}
            continue
        client, opening, pause = step
        now += pause
        host, _, port = client.partition(":")
        placed = model.connect(client, VIP, opening=opening, now=now)
        known = {backend.key: backend for backend in service.backends}
        inside = any(host in map(str, network) for network in service.source_ranges
                     if network.num_addresses <= 2)  # fmt: skip
        allowed = not service.source_ranges or inside is (service.source_ranges_policy == "allow")
        before = known.get(open_[client].key) if client in open_ else None
        if not allowed:
            assert placed.why is Why.SOURCE_RANGE
            continue
        if before is not None and (before.state is BackendState.ACTIVE or not opening):
            assert (placed.why, placed.backend) == (Why.CONNECTION, before)
        elif not due(service):
            assert placed.why is Why.NO_BACKEND and placed.backend is None
            continue
        else:
            assert placed.backend in due(service)
            last, at = met.get(host, (None, 0))
            remembered = last is not None and now < at + service.affinity_timeout
            if remembered and last is not None and known.get(last.key) in due(service):
                assert (placed.why, placed.backend) == (Why.AFFINITY, known[last.key])
            elif service.algorithm == "maglev":
                flow = FlowTuple(host, int(port), 80)
                table = CONFIG.maglev().build(due(service))
                affinity = bool(service.affinity_timeout)
                assert placed.backend == table.select(flow, affinity=affinity)
            else:
                assert placed.why is Why.RANDOM
        assert placed.backend is not None
        open_[client] = placed.backend
        if service.affinity_timeout:
            met[host] = placed.backend, now


@given(services(), CLIENTS)
def test_where_changes_nothing(service: Service, client: str) -> None:
    """Asking is free: the second answer is the first."""
    model = Balancer([service], CONFIG)
    assert model.where(client, VIP) == model.where(client, VIP)
    assert list(model.connections()) == []


@given(services(), st.randoms(), CLIENTS)
def test_order_of_backends_does_not_matter(service: Service, random: object, client: str) -> None:
    """Nodes that list a service's backends in another order agree."""
    turned = service.with_backends(reversed(service.backends))
    one = Balancer([service], CONFIG).where(client, VIP)
    other = Balancer([turned], CONFIG).where(client, VIP)
    assert (one.why, one.backend, set(one.candidates)) == (
        other.why, other.backend, set(other.candidates),
    )  # fmt: skip
