"""A table that ends at any moment, and the one that goes on with its maps."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from attrs import frozen
from hypothesis import given, settings
from hypothesis import strategies as st

from pyciliumlib.errors import KernelError
from pyciliumlib.loadbalancer import Backend, Service, ServiceKey
from pyciliumlib.loadbalancer.found import read_backends, read_entries, read_members
from pyciliumlib.loadbalancer.mirror import Mirror
from pyciliumlib.loadbalancer.quarantine import Quarantine
from pyciliumlib.loadbalancer.restore import RestoredTable
from pyciliumlib.loadbalancer.rows import Entry, Spot
from pyciliumlib.loadbalancer.saved import Journal, Saved
from pyciliumlib.loadbalancer.table import ServiceTable
from pyciliumlib.types import address_to_bytes
from tests.property.service_maps import Reader
from tests.property.test_service_table import CONFIG, Clock, kernel, services

MAPS = (
    "lb_services", "lb_members", "lb_ranges", "lb_backends", "lb_revisions", "lb_slots",
    "lb_filter", "lb_frontends",
)  # fmt: skip
HISTORIES = st.lists(services(), min_size=1, max_size=3)


class Killed(BaseException):
    """The process is gone: nothing that it would have done afterwards happens."""


class Mortal:
    """A map whose writer dies after so many entries, in the middle of a batch if need be.

    With `once` a single write fails instead.
    """

    def __init__(self, map_: Any, left: list[int], once: Callable[[], None] | None = None) -> None:
        self._map, self._left, self._once = map_, left, once

    def __getattr__(self, name: str) -> Any:
        return getattr(self._map, name)

    def update_batch(self, keys: Any, values: Any) -> int:
        for index in range(len(keys)):
            self._breathe()
            self._map.update_batch(keys[index : index + 1], values[index : index + 1])
        return len(keys)

    def delete_batch(self, keys: Any) -> int:
        for index in range(len(keys)):
            self._breathe()
            self._map.delete_batch(keys[index : index + 1])
        return len(keys)

    def _breathe(self) -> None:
        self._left[0] -= 1
        if self._left[0] == -1 and self._once is not None:
            self._once()
            raise KernelError(5, "broken")
        if self._left[0] < 0 and self._once is None:
            raise Killed


class Notes(Journal):
    """What the next process finds: the services, and a change that was begun."""

    def __init__(self) -> None:
        self.services: dict[ServiceKey, Saved] = {}
        self.quarantine = Quarantine()
        self._begun: dict[ServiceKey, Saved | None] = {}

    def begin(self, change: Any, quarantine: Quarantine) -> None:
        self._begun, self.quarantine = dict(change), quarantine

    def commit(self) -> None:
        self.services = {saved.service.key: saved for saved in self.after()}
        self._begun = {}

    def after(self) -> list[Saved]:
        """The services with the change carried out."""
        merged = {**self.services, **self._begun}
        return [saved for saved in merged.values() if saved is not None]


def content(maps: Any) -> dict[str, bytes]:
    return {
        name: b"".join(column.tobytes() for column in maps[name].lookup_batch()) for name in MAPS
    }


def restored(maps: Any, saved: list[Saved], quarantine: Quarantine) -> RestoredTable:
    return RestoredTable(maps, saved, CONFIG, quarantine=quarantine, clock=Clock())


def whole(table: ServiceTable, wanted: list[Service], maps: Any) -> None:
    """The maps hold these services and nothing else, as a program and the table itself see them."""
    Reader(maps, CONFIG).check(wanted)
    assert list(table.differences()) == []
    assert dict(table.services) == {one.key: one for one in wanted}


@given(HISTORIES, services())
@settings(deadline=None, max_examples=40)
def test_what_is_in_order_is_left_alone(history: list[list[Service]], later: list[Service]) -> None:
    """Not one byte is written; what comes afterwards is as if nothing had been."""
    maps, twin = kernel(), kernel()
    table, other = (ServiceTable(m, CONFIG, clock=Clock()) for m in (maps, twin))  # type: ignore[arg-type]
    for wanted in history:
        for one in (table, other):
            one.apply(one.plan(wanted))
            one.apply(one.plan_quarantine(some_backends(wanted), out=False))
    before = content(maps)
    again = restored(maps, table.saved(), table.quarantine)
    assert content(maps) == before
    whole(again, history[-1], maps)
    assert again.saved() == table.saved()
    assert again.quarantine == table.quarantine
    assert again.free_slots == table.free_slots
    again.apply(again.plan(later))
    other.apply(other.plan(later))
    whole(again, later, maps)
    kept = {key: number(again, key) for key in (one.key for one in history[-1])}
    assert kept == {key: number(other, key) for key in kept}


def some_backends(services: list[Service]) -> list[Backend]:
    return [backend for one in services for backend in one.backends[:1]]


def number(table: ServiceTable, key: ServiceKey) -> int | None:
    return table.service_id(key) if key in table.services else None


@given(HISTORIES, services(), st.integers(0, 400))
@settings(deadline=None, max_examples=150)
def test_killed_at_any_write(
    history: list[list[Service]], change: list[Service], breath: int
) -> None:
    """The next table carries the change out; flows keep their backends, and none is misjudged."""
    maps, left, notes = kernel(), [1 << 30], Notes()
    mortal: Any = {name: Mortal(maps[name], left) for name in MAPS}
    table = ServiceTable(mortal, CONFIG, clock=Clock())
    for wanted in history:
        table.apply(table.plan(wanted), notes)
        table.apply(table.plan_quarantine(some_backends(wanted), out=False), notes)
    flows = decided(maps)
    left[0] = breath
    with contextlib.suppress(Killed):
        table.apply(table.plan(change), notes)
    flows += decided(maps)
    saved = notes.after()
    services_then = [one.service for one in saved]
    assert set(services_then) in (set(change), set(history[-1]))
    again = restored(maps, saved, notes.quarantine)
    whole(again, services_then, maps)
    served = {address_to_bytes(b.address) for one in services_then for b in one.backends}
    for flow in flows:
        assert is_right(flow, maps)
        assert flow.address not in served or is_alive(flow, maps)
    again.apply(again.plan(change))
    whole(again, change, maps)
    again.apply(again.plan([]))
    whole(again, [], maps)
    assert again.free_slots == ServiceTable(maps, CONFIG).free_slots


@given(HISTORIES, services(), services(), st.integers(0, 400))
@settings(deadline=None, max_examples=100)
def test_failed_at_any_write(
    history: list[list[Service]], change: list[Service], later: list[Service], breath: int
) -> None:
    """What is undone leaves no flow behind that a later change would take for its own."""
    maps, left = kernel(), [1 << 30]
    flows: list[Decided] = []
    mortal: Any = {n: Mortal(maps[n], left, lambda: flows.extend(decided(maps))) for n in MAPS}
    table = ServiceTable(mortal, CONFIG, clock=Clock())
    for wanted in history:
        table.apply(table.plan(wanted))
    left[0] = breath
    with contextlib.suppress(KernelError):
        table.apply(table.plan(change))
    left[0] = 1 << 30
    for wanted in (later, change, []):
        assert all(is_right(flow, maps) for flow in flows)
        table.apply(table.plan(wanted))
        whole(table, wanted, maps)


@frozen
class Decided:
    """What a program notes of a flow: frontend and its entry, backend and its revision."""

    spot: Spot
    entry: Entry
    backend: int
    backend_revision: int
    address: bytes


def decided(maps: Any) -> list[Decided]:
    """Every flow that a program could decide now."""
    _, rows = maps["lb_slots"].lookup_batch()
    slots = rows["backend"].reshape(-1)
    backends = read_backends(Mirror(maps["lb_backends"], "", array=True))
    return [
        Decided(spot, entry, number, backends[number].revision, backends[number].address)
        for found in read_entries(Mirror(maps["lb_services"], "")).values()
        for spot, entry in found.items()
        for number in set(slots[entry.first : entry.first + entry.slots].tolist())
        if number in backends and backends[number].revision % 2
    ]


def is_alive(flow: Decided, maps: Any) -> bool:
    """Whether its backend is still the one that it was given."""
    row = read_backends(Mirror(maps["lb_backends"], "", array=True)).get(flow.backend)
    same = row is not None and row.revision == flow.backend_revision
    assert not same or (row is not None and row.address == flow.address)
    return same


def is_right(flow: Decided, maps: Any) -> bool:
    """Whether a flow that counts as known would be decided so again."""
    cell = int(maps["lb_revisions"].lookup(flow.entry.id))
    if not is_alive(flow, maps) or cell != flow.entry.revision:
        return True
    entries = read_entries(Mirror(maps["lb_services"], ""))
    members = read_members(Mirror(maps["lb_members"], ""))
    now = entries[flow.entry.id].get(flow.spot)
    return (
        now is not None
        and (now.flags, now.ranges) == (flow.entry.flags, flow.entry.ranges)
        and flow.backend in members[flow.entry.id]
    )
