"""Services as map entries, in memory: every order of writing is safe, and a change is whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from attrs import evolve

from pyciliumlib.errors import (
    ExistsError,
    InvalidError,
    KernelError,
    MapFullError,
    NotFoundError,
)
from pyciliumlib.flow import DropReason
from pyciliumlib.kernel import ObjectSpec
from pyciliumlib.loadbalancer import (
    Backend,
    Frontend,
    LoadBalancerConfig,
    LocalNode,
    Service,
    ServiceKey,
)
from pyciliumlib.loadbalancer.filter import FRAGMENTS, OTHER_PORTS, FilterTable, port_bit
from pyciliumlib.loadbalancer.numbers import Numbers, Rows
from pyciliumlib.loadbalancer.rows import range_rows
from pyciliumlib.loadbalancer.table import ServiceTable
from pyciliumlib.resources import object_path
from pyciliumlib.testing import FakeKernel, FakeMap
from pyciliumlib.types import parse_address, parse_network
from tests.property.service_maps import Reader

CONFIG = LoadBalancerConfig("maglev", "dsr", "ipip", table_size=251)
VIP, OTHER = "203.0.113.10:80", "203.0.113.11:80"
SIZES = {
    "lb_services": 32,
    "lb_backends": 16,
    "lb_revisions": 16,
    "lb_slots": 64,
    "lb_members": 64,
    "lb_filter": 64,
    "lb_frontends": 16,
}


class Time:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def maps(**sizes: int) -> FakeKernel:
    spec = ObjectSpec.open(object_path("endpoint"))
    for name, entries in {**SIZES, **sizes}.items():
        spec.resize(name, entries)
    return FakeKernel(found for name, found in spec.maps.items() if name.startswith("lb_"))


@pytest.fixture
def clock() -> Time:
    return Time()


@pytest.fixture
def kernel() -> FakeKernel:
    return maps()


@pytest.fixture
def table(kernel: FakeKernel, clock: Time) -> ServiceTable:
    return ServiceTable(kernel, CONFIG, LocalNode("n1", ["192.0.2.1"]), clock)


def web(*numbers: int, **options: Any) -> Service:
    frontends = options.pop("frontends", [VIP])
    return Service("web", frontends, [f"10.0.0.{n}:80" for n in numbers], **options)


def serve(table: ServiceTable, *services: Service) -> None:
    table.apply(table.plan(services))


def content(kernel: FakeKernel) -> dict[str, dict[bytes, bytes]]:
    """What counts of the maps: revisions and slots that nobody has do not."""
    found = {}
    for name in ("lb_services", "lb_members", "lb_ranges", "lb_filter"):
        keys, values = kernel[name].lookup_batch()
        rows = zip(keys, values, strict=True)
        found[name] = {k.tobytes(): v.tobytes() for k, v in rows if v.tobytes().strip(b"\0")}
    _, backends = kernel["lb_backends"].lookup_batch()
    alive = backends["revision"] % 2 == 1
    found["lb_backends"] = {bytes([n]): backends[n].tobytes() for n in alive.nonzero()[0]}
    return found


def test_a_change_writes_what_differs(kernel: FakeKernel, table: ServiceTable) -> None:
    """One backend more: its row, its membership, new slots, and the entry that leads to them."""
    serve(table, web(1, 2), Service("other", [OTHER], ["10.0.0.9:80"]))
    written = recorded(kernel)
    serve(table, web(1, 2, 3), Service("other", [OTHER], ["10.0.0.9:80"]))
    assert [(name, rows) for name, _, rows in written if name != "lb_slots"] == [
        ("lb_backends", 1), ("lb_members", 1), ("lb_services", 1),
    ]  # fmt: skip
    assert sum(rows for name, _, rows in written if name == "lb_slots") == 16


def test_nothing_to_do_writes_nothing(kernel: FakeKernel, table: ServiceTable) -> None:
    """The same services again."""
    serve(table, web(1, 2))
    written = recorded(kernel)
    assert not table.plan([web(1, 2)])
    serve(table, web(1, 2))
    assert written == []


def recorded(kernel: FakeKernel) -> list[tuple[str, str, int]]:
    """From now on each call that changes a map: which, how, how many rows."""
    calls: list[tuple[str, str, int]] = []
    for name in ("lb_services", "lb_members", "lb_ranges", "lb_filter", "lb_backends",
                 "lb_revisions", "lb_slots"):  # fmt: skip
        for how in ("update_batch", "delete_batch"):
            spy(kernel[name], how, lambda rows, n=name, h=how: calls.append((n, h, rows)))
    return calls


def spy(map_: FakeMap, how: str, tell: Callable[[int], None]) -> None:
    original = getattr(map_, how)

    def call(keys: Any, *rest: Any) -> Any:
        tell(len(keys))
        return original(keys, *rest)

    setattr(map_, how, call)


def test_the_end_is_written_first(kernel: FakeKernel, table: ServiceTable) -> None:
    """What comes: backends, slots, ranges, members, entry, filter. What goes, the other way."""
    calls = recorded(kernel)
    serve(table, web(1, source_ranges=["10.0.0.0/8"]))
    assert [name for name, _, _ in calls] == [
        "lb_backends", "lb_slots", "lb_ranges", "lb_members", "lb_services", "lb_revisions",
        "lb_filter",
    ]  # fmt: skip
    calls.clear()
    serve(table)
    assert [(name, how) for name, how, _ in calls] == [
        ("lb_revisions", "update_batch"), ("lb_filter", "update_batch"),
        ("lb_services", "delete_batch"), ("lb_members", "delete_batch"),
        ("lb_ranges", "delete_batch"), ("lb_backends", "update_batch"),
    ]  # fmt: skip


CHANGES: dict[str, tuple[list[Service], list[Service]]] = {
    "first": ([], [web(1, 2)]),
    "one more": ([web(1)], [web(1, 2)]),
    "others": ([web(1, 2)], [web(3, 4)]),
    "ranges": ([web(1)], [web(1, source_ranges=["10.0.0.0/8", "::/0"])]),
    "other ranges": (
        [web(1, source_ranges=["10.0.0.0/8"])],
        [web(1, source_ranges=["10.0.0.0/9"], source_ranges_policy="deny")],
    ),
    "a frontend moves": (
        [web(1), Service("other", [OTHER], ["10.0.0.1:80"])],
        [web(1, frontends=[OTHER]), Service("other", [VIP], ["10.0.0.2:80"])],
    ),
    "gone": ([web(1, 2)], []),
    "algorithm": ([web(1, 2)], [web(1, 2, algorithm="random")]),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_failure_at_any_write_changes_nothing(change: str) -> None:
    """Whichever call fails, the maps are what they were, and the change can be done afterwards."""
    before, after = CHANGES[change]
    calls = 0
    while True:
        kernel = maps()
        table = ServiceTable(kernel, CONFIG)
        serve(table, *before)
        was = content(kernel)
        left = [calls]

        def fail(_: int, left: list[int] = left) -> None:
            left[0] -= 1
            if left[0] == -1:
                raise KernelError(5, "broken")

        for name in ("lb_services", "lb_members", "lb_ranges", "lb_filter", "lb_backends",
                     "lb_revisions", "lb_slots"):  # fmt: skip
            for how in ("update_batch", "delete_batch"):
                spy(kernel[name], how, fail)
        try:
            serve(table, *after)
        except KernelError:
            assert content(kernel) == was
            assert set(table.services.values()) == set(before)
        else:
            break
        serve(table, *after)
        Reader(kernel, CONFIG).check(after)
        calls += 1
    assert calls >= 3
    Reader(kernel, CONFIG).check(after)


def test_flows_of_a_failed_change_are_decided_again(
    kernel: FakeKernel, table: ServiceTable
) -> None:
    """What programs decided before it was undone does not count for the next change."""
    serve(table, web(1, source_ranges=["10.0.0.0/8"]))
    spot = next(iter(kernel["lb_services"]))
    seen: list[int] = []

    def fail(_: int) -> None:
        if not seen:
            seen.append(kernel["lb_services"].lookup(spot).revision)
            raise KernelError(5, "broken")

    spy(kernel["lb_revisions"], "update_batch", fail)
    with pytest.raises(KernelError):
        serve(table, web(1))
    serve(table, web(1, source_ranges=["11.0.0.0/8"]))
    assert kernel["lb_revisions"].lookup(1) == kernel["lb_services"].lookup(spot).revision > seen[0]


@pytest.mark.parametrize("change", CHANGES)
def test_at_every_moment_there_is_a_way(
    kernel: FakeKernel, table: ServiceTable, change: str
) -> None:
    """After each single write, an entry leads to slots whose backends are there."""
    before, after = CHANGES[change]
    serve(table, *before)
    reader = Reader(kernel, CONFIG)
    moments = 0

    def look(_: int) -> None:
        nonlocal moments
        moments += 1
        reader.check_links()

    for name in ("lb_services", "lb_members", "lb_ranges", "lb_filter", "lb_backends",
                 "lb_revisions", "lb_slots"):  # fmt: skip
        for how in ("update_batch", "delete_batch"):
            spy(kernel[name], how, look)
    serve(table, *after)
    look(0)
    assert moments > 3


def test_slots_are_shared(kernel: FakeKernel, table: ServiceTable) -> None:
    """Services with the same backends and algorithm have one table, until the last one goes."""
    free = table.free_slots
    serve(table, web(1, 2))
    alone = table.free_slots
    many = [Service(f"s{n}", [f"203.0.113.{n}:80"], ["10.0.0.2:80", "10.0.0.1:80"])
            for n in range(20, 30)]  # fmt: skip
    serve(table, web(1, 2), *many)
    assert table.free_slots == alone == free - 256
    serve(table, web(3), *many[:1])
    assert table.free_slots == free - 512
    serve(table)
    assert table.free_slots == free


def test_many_services_cost_few_calls() -> None:
    """However many there are at once, each map is written in one batch; a change writes its own."""
    kernel = maps(lb_services=4096, lb_frontends=1024, lb_backends=8192, lb_revisions=1024,
                  lb_members=8192, lb_slots=16384)  # fmt: skip
    table = ServiceTable(kernel, CONFIG)
    calls = recorded(kernel)

    def service(number: int, last: int) -> Service:
        backends = [f"10.{number // 256}.{number % 256}.{host}:80" for host in (*range(8), last)]
        frontend = f"198.18.{number // 256}.{number % 256}:80"
        return Service(f"s{number}", [frontend], backends)

    serve(table, *(service(number, 8) for number in range(700)))
    assert len(calls) <= 8
    assert sum(rows for name, _, rows in calls if name == "lb_members") == 700 * 9
    calls.clear()
    table.apply(table.plan([service(300, 9)], whole=False))
    assert len(calls) <= 10
    assert sum(rows for name, _, rows in calls if name != "lb_slots") <= 10


def quarantine(table: ServiceTable, *backends: str, out: bool = False) -> str:
    plan = table.plan_quarantine(map(Backend.parse, backends), out=out)
    table.apply(plan)
    return str(plan)


def test_quarantine(kernel: FakeKernel, table: ServiceTable) -> None:
    """In all services, until it is let out; what was given is what it was."""
    both = [web(1, 2), Service("other", [OTHER], ["10.0.0.2:80"])]
    serve(table, *both)
    assert quarantine(table, "10.0.0.2:80").splitlines() == [
        "~ default/web: 10.0.0.2:80/TCP active to quarantined",
        "~ default/other: 10.0.0.2:80/TCP active to quarantined",
    ]
    assert quarantine(table, "10.0.0.2:80") == "nothing to do"
    assert list(table.services.values()) == both
    assert [str(b.state) for b in table.in_force[web().key].backends] == ["active", "quarantined"]
    reader = Reader(kernel, CONFIG)
    assert reader.ask("198.51.100.7", 1, "203.0.113.10", 80, "TCP") == (0, {"10.0.0.1"})
    assert reader.ask("198.51.100.7", 1, "203.0.113.11", 80, "TCP") == (
        DropReason.NO_SERVICE_BACKEND, set(),
    )  # fmt: skip
    quarantine(table, "10.0.0.2:80", out=True)
    assert dict(table.in_force) == dict(table.services)
    assert reader.ask("198.51.100.7", 1, "203.0.113.11", 80, "TCP") == (0, {"10.0.0.2"})


def test_quarantine_outlasts_what_is_given(table: ServiceTable) -> None:
    """Services given anew do not end it; a backend that has gone and comes back is a new one."""
    serve(table, web(1, 2))
    quarantine(table, "10.0.0.2:80")
    serve(table, web(1, 2, 3))
    assert not table.plan([web(1, 2, 3)])
    assert states(table) == ["active", "quarantined", "active"]
    serve(table, web(1))
    serve(table, web(1, 2))
    assert states(table) == ["active", "active"]


def states(table: ServiceTable) -> list[str]:
    return [str(backend.state) for backend in table.in_force[web().key].backends]


def test_quarantine_is_for_the_active(table: ServiceTable) -> None:
    """One that terminates goes on doing so; a state that was given stays when it is let out."""
    given = [Backend("10.0.0.1", 80, state="terminating"),
             Backend("10.0.0.2", 80, state="quarantined")]  # fmt: skip
    serve(table, web().with_backends(given))
    assert quarantine(table, "10.0.0.1:80", "10.0.0.2:80") == "nothing to do"
    assert quarantine(table, "10.0.0.2:80", out=True) == "nothing to do"
    assert states(table) == ["terminating", "quarantined"]


def test_a_failed_quarantine_is_none(kernel: FakeKernel, table: ServiceTable) -> None:
    """What could not be written is not remembered either."""
    serve(table, web(1, 2))

    def fail(_: int) -> None:
        raise KernelError(5, "broken")

    original = kernel["lb_members"].update_batch
    spy(kernel["lb_members"], "update_batch", fail)
    with pytest.raises(KernelError):
        quarantine(table, "10.0.0.2:80")
    assert states(table) == ["active", "active"]
    kernel["lb_members"].update_batch = original  # type: ignore[method-assign]
    serve(table, web(2, 1))
    assert states(table) == ["active", "active"]


def test_who_is_not_there(table: ServiceTable) -> None:
    """Backends and services that nobody has given are NotFoundError."""
    serve(table, web(1))
    with pytest.raises(NotFoundError, match=r"no service has the backend 10\.0\.0\.9:80/TCP"):
        quarantine(table, "10.0.0.1:80", "10.0.0.9:80")
    assert states(table) == ["active"]
    with pytest.raises(NotFoundError, match=r"default/wbe.*default/web"):
        table.plan_deletion([ServiceKey("default", "wbe")])


def test_numbers_rest_before_they_are_used_again(table: ServiceTable, clock: Time) -> None:
    """A program that just read one must not find somebody else's entry under it."""
    serve(table, web(*range(1, 16)))
    numbers = {backend.port: n for n, backend in table.backends.items()}
    serve(table)
    clock.now += 0.05
    slept: list[float] = []
    free = Numbers(1, 1, "things", clock)
    first = free.take()
    free.give_back(first)
    clock.now += 0.1
    assert free.take() == first and slept == []
    assert numbers


def test_a_backend_that_comes_back_is_another(kernel: FakeKernel, table: ServiceTable) -> None:
    """Its revision differs, so that flows of its first life do not find it."""
    serve(table, web(1))
    first = kernel["lb_backends"][1].revision
    serve(table)
    assert kernel["lb_backends"][1].revision == first + 1
    for _ in range(20):
        serve(table, web(1))
        serve(table)
    assert kernel["lb_backends"][1].revision % 2 == 0
    assert kernel["lb_backends"][1].revision > first + 1


FULL: dict[str, tuple[dict[str, int], list[Service], str]] = {
    "frontends": ({"lb_services": 3}, [web(1, frontends=[VIP, OTHER])], "frontends"),
    "backends": ({"lb_backends": 3}, [web(1, 2, 3)], "backends"),
    "services": ({"lb_revisions": 2}, [web(1), Service("b", [OTHER], [])], "services"),
    "slots": ({"lb_slots": 15}, [web(1)], "slots"),
    "members": ({"lb_members": 2}, [web(1, 2, 3)], "backends of services"),
    "ranges": (
        {"lb_ranges": 1}, [web(1, source_ranges=["10.0.0.0/8", "11.0.0.0/8"])], "source ranges",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("sizes", "services", "said"), FULL.values(), ids=FULL)
def test_full_maps(sizes: dict[str, int], services: list[Service], said: str) -> None:
    """Told before anything leads to it; what was there is served as before."""
    kernel = maps(**sizes)
    table = ServiceTable(kernel, CONFIG, clock=Time())
    was = content(kernel)
    with pytest.raises(MapFullError, match=said):
        serve(table, *services)
    assert content(kernel) == was and table.services == {}


def test_two_services_of_one_frontend(table: ServiceTable, kernel: FakeKernel) -> None:
    """Refused whole, in one call as in two."""
    serve(table, web(1))
    was = content(kernel)
    with pytest.raises(ExistsError, match="default/web's already"):
        table.apply(table.plan([Service("b", [OTHER, VIP], [])], whole=False))
    with pytest.raises(ExistsError):
        serve(table, Service("c", [OTHER], []), Service("d", [OTHER], []))
    assert content(kernel) == was
    with pytest.raises(InvalidError, match="twice"):
        table.plan([web(1), web(2)])


def test_plans_can_be_read(table: ServiceTable) -> None:
    """One line for each service, with what changes."""
    assert str(table.plan([])) == "nothing to do"
    serve(table, web(1, 2), Service("old", [OTHER], []))
    plan = table.plan([web(2, 3, affinity_timeout=9), Service("new", ["[2001:db8::1]:80"], [])])
    assert str(plan).splitlines() == [
        "~ default/web: +10.0.0.3:80/TCP, -10.0.0.1:80/TCP",
        "+ default/new: 1 frontend(s), 0 backend(s)",
        "- default/old: 1 frontend(s), 0 backend(s)",
    ]
    assert "its options" in str(table.plan([web(1, 2, affinity_timeout=9)], whole=False))


def test_the_filter_counts_users() -> None:
    """A bit stays while anybody needs it, whoever came first."""
    cells = FakeMap("array", "u4", "u8", 8, "lb_filter")
    table = FilterTable(cells)
    address = parse_address("10.0.0.1").packed.rjust(16, b"\0")
    bits = table.bits([(address, OTHER_PORTS), (address, FRAGMENTS), (address, port_bit(80, 6))])
    none = np.empty(0, np.int64)
    table.change(bits, none)
    table.change(bits[:1], none)
    one, three = bits[:1], sum(int(value).bit_count() for value in cells.values())
    assert three == len(set(bits.tolist()))
    table.change(none, bits)
    assert sum(int(value).bit_count() for value in cells.values()) == len(set(one.tolist()))
    table.change(none, one)
    assert not any(cells.values())
    with pytest.raises(InvalidError, match="power of two"):
        FilterTable(FakeMap("array", "u4", "u8", 3))


@pytest.mark.parametrize(
    ("lengths", "starts"), [([3, 4, 5], [0, 3, 7]), ([1] * 12, list(range(12)))]
)
def test_rows_are_joined_again(lengths: list[int], starts: list[int], clock: Time) -> None:
    """Whatever the order of giving back, the whole is free at the end."""
    rows = Rows(12, clock)
    taken = [rows.take(length) for length in lengths]
    assert taken == starts and rows.free == 0
    for start, length in list(zip(taken, lengths, strict=True))[::-2]:
        rows.give_back(start, length)
    for start, length in list(zip(taken, lengths, strict=True))[-2::-2]:
        rows.give_back(start, length)
    clock.now += 1
    assert rows.take(12) == 0
    with pytest.raises(MapFullError, match="side by side"):
        rows.take(1)


def test_ranges_of_both_families() -> None:
    """An IPv6 range that would cover IPv4's place in the key space is kept from it."""
    rows = range_rows([parse_network("::/0")])
    assert [(bits, inside) for bits, _, inside in rows] == [(32 + 96, 0), (32, 1)]
    both = range_rows([parse_network("::/0"), parse_network("0.0.0.0/0")])
    assert sorted((bits, inside) for bits, _, inside in both) == [(32, 1), (32 + 96, 1)]
    assert len(range_rows([parse_network("2001:db8::/32")])) == 1


def test_node_ports(kernel: FakeKernel, table: ServiceTable) -> None:
    """The unspecified address is each of the node's own, whose other ports stay its own."""
    anywhere = Frontend("0.0.0.0", 30080, type="NodePort")
    serve(table, web(1, frontends=[anywhere]))
    keys = {(str(key.addr), key.port, key.scope) for key in kernel["lb_services"]}
    assert keys == {("192.0.2.1", 30080, 0), ("0.0.0.0", 30080, 1)}


def test_two_scopes_where_policies_differ(kernel: FakeKernel, table: ServiceTable) -> None:
    """An entry for clients in the cluster, only where other backends are theirs."""
    here, there = Backend("10.0.0.1", 80, node="n1"), Backend("10.0.0.2", 80, node="n2")
    service = web(frontends=[VIP], algorithm="random").with_backends([here, there])
    serve(table, service, Service("other", [OTHER], [here]))
    assert {key.scope for key in kernel["lb_services"]} == {0}
    serve(table, evolve(service, external_policy="Local"))
    slots = {key.scope: value.slots for key, value in kernel["lb_services"].items() if key.port}
    assert slots == {0: 1, 1: 2}
    takes = {key.backend: value for key, value in kernel["lb_members"].items()}
    assert sorted(takes.values()) == [2, 3]
    serve(table, service)
    assert {key.scope for key in kernel["lb_services"]} == {0}
