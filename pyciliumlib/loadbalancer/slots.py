"""The slots of services: Maglev tables and lists of backends in rows of one array.

Services with the same backends share their slots. See `bpf/lib/lb.h`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Final

import numpy as np
from attrs import define, evolve

from pyciliumlib.loadbalancer.backend import Backend
from pyciliumlib.loadbalancer.kinds import Algorithm
from pyciliumlib.loadbalancer.maglev import Maglev
from pyciliumlib.loadbalancer.numbers import Clock, Rows
from pyciliumlib.types import MapLike

if TYPE_CHECKING:
    import numpy.typing as npt

ROW: Final = 16
#: Slots that are gathered before they are written, in one batch.
_BATCH: Final = 1 << 22
SlotKey = tuple[Algorithm, tuple[tuple[int, int], ...]]


@define(eq=False)
class Slots:
    """Where slots lie: the first one's number, how many there are, and how many services' it is."""

    key: SlotKey
    first: int
    count: int
    users: int = 1


class SlotTable:
    """Hands out slots with their backends in them; the array is written by `flush`."""

    def __init__(self, rows: MapLike, maglev: Maglev, clock: Clock) -> None:
        self._map = rows
        self._maglev = maglev
        self._rows = Rows(rows.max_entries, clock)
        self._known: dict[SlotKey, Slots] = {}
        self._unwritten: list[tuple[int, npt.NDArray[np.uint32]]] = []
        self._unwritten_slots = 0
        self._found: dict[bytes, list[tuple[int, int]]] = {}

    @property
    def free(self) -> int:
        """Slots that nobody has."""
        return self._rows.free * ROW

    def acquire(self, how: Algorithm, backends: dict[int, Backend]) -> Slots | None:
        """Slots for these backends, by id; None for none. MapFullError if there is no room."""
        if not backends:
            return None
        key = how, tuple(sorted((number, b.weight) for number, b in backends.items()))
        found = self._known.get(key)
        if found is not None:
            found.users += 1
            return found
        if self._unwritten_slots > _BATCH:  # nothing leads to them yet
            self.flush()
        ids = self._ids(how, backends)
        there = self._found.get(ids.tobytes())
        if there:
            start, _ = there.pop()
        else:
            start = self._rows.take(_rows_of(len(ids)))
            self._unwritten.append((start, ids))
            self._unwritten_slots += len(ids)
        found = self._known[key] = Slots(key, start * ROW, len(ids))
        return found

    def load(self, places: Iterable[tuple[int, int]]) -> None:
        """Before the first change: take over slots, by first and count, that are in use.

        Whoever acquires what they hold gets them as they are; nobody else does until `settle`.
        """
        _, rows = self._map.lookup_batch()
        slots = rows.view(np.uint32).reshape(-1)
        for first, count in sorted(set(places)):
            length = _rows_of(count)
            if first % ROW == 0 and self._rows.claim(first // ROW, length):
                content = slots[first : first + count].tobytes()
                self._found.setdefault(content, []).append((first // ROW, length))

    def settle(self) -> None:
        """Give back what `load` found and nobody acquired."""
        for places in self._found.values():
            for place in places:
                self._rows.give_back(*place)
        self._found.clear()

    def differences(self, backends: Mapping[int, Backend]) -> Iterator[str]:
        """How the array differs from what was written, in words; `backends` by their numbers."""
        _, rows = self._map.lookup_batch()
        slots = rows.view(np.uint32).reshape(-1)
        for (how, shares), known in self._known.items():
            wanted = self._ids(how, {n: evolve(backends[n], weight=w) for n, w in shares})
            other = (slots[known.first : known.first + known.count] != wanted).sum()
            if other:
                yield f"slots from {known.first} on: {other} of {known.count} name other backends"

    def release(self, slots: Slots | None) -> None:
        """One service less has them."""
        if slots is None:
            return
        slots.users -= 1
        if not slots.users:
            del self._known[slots.key]
            self._rows.give_back(slots.first // ROW, _rows_of(slots.count))

    def flush(self) -> None:
        """Write the slots that were handed out."""
        count = sum(_rows_of(len(ids)) for _, ids in self._unwritten)
        keys = np.empty(count, self._map.key_dtype)
        rows = np.zeros((count, ROW), np.uint32)
        at = 0
        for start, ids in self._unwritten:
            end = at + _rows_of(len(ids))
            keys[at:end] = np.arange(start, start + end - at)
            rows[at:end].reshape(-1)[: len(ids)] = ids
            at = end
        if count:
            self._map.update_batch(keys, rows.view(self._map.value_dtype).reshape(-1))
        self.forget_unwritten()

    def forget_unwritten(self) -> None:
        """A change was given up; its slots are given back by `release`."""
        self._unwritten.clear()
        self._unwritten_slots = 0

    def _ids(self, how: Algorithm, backends: dict[int, Backend]) -> npt.NDArray[np.uint32]:
        if how is Algorithm.RANDOM:
            return np.array(sorted(backends), np.uint32)
        table = self._maglev.build(backends.values())
        numbers = {backend.key: number for number, backend in backends.items()}
        return table.ids([numbers[backend.key] for backend in table.backends])


def _rows_of(slots: int) -> int:
    return -(-slots // ROW)
