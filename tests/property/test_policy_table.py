"""A policy's tries: the lookup in them, and a map changed in place, which lets nothing through."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pyciliumlib.policy import Direction, Repository, table
from pyciliumlib.policy.entries import (
    KEY_DTYPE,
    VALUE_DTYPE,
    EntryValue,
    PolicyEntries,
    Slot,
)
from pyciliumlib.policy.grouped import GroupedEntries
from pyciliumlib.policy.nodes import NODE_DTYPE, ROOTS_DTYPE, PolicyNodes, visible
from pyciliumlib.policy.table import Hit, PolicyLookup
from pyciliumlib.testing import FakeMap
from pyciliumlib.types import Protocol
from tests.property import strategies
from tests.property.strategies import Target, World

SUBJECT = strategies.pod("default", "a", "fe")
ROWS = 1 << 14


def _grouped(documents: list[dict[str, Any]]) -> GroupedEntries:
    repository = Repository()
    repository.update_identities(strategies.PARSED)
    repository.apply(documents)
    return repository.add_endpoint(1, SUBJECT).grouped()


def _nodes() -> PolicyNodes:
    return PolicyNodes(
        FakeMap("array", "u4", NODE_DTYPE, ROWS), FakeMap("array", "u4", VALUE_DTYPE, ROWS)
    )


def _slots() -> st.SearchStrategy[Slot]:
    def slot(way: Direction, proto: Protocol, port: int, bits: int) -> Slot:
        if proto is Protocol.ANY:
            return Slot(way)
        return Slot(way, proto, port >> (16 - bits) << (16 - bits), bits)

    return st.builds(
        slot,
        st.sampled_from(Direction),
        st.sampled_from(Protocol),
        st.sampled_from([0, 79, 80, 81, 443, 8000, 8080, 0x8000, 65535]),
        st.integers(0, 16),
    )


@settings(max_examples=200, deadline=None)
@given(
    st.dictionaries(
        st.tuples(st.sampled_from([0, 7, 8, 900]), _slots()), st.integers(1, 9), max_size=30
    )
)
def test_the_tries_find_what_the_longest_prefix_is(rows: dict[tuple[int, Slot], int]) -> None:
    """For any entries, whatever their order and nesting: the same entry at every place that one of
    them begins, ends or lies beside; and what is read back is what some packet finds."""
    entries = PolicyEntries.concatenate(
        [PolicyEntries.of([(slot, EntryValue(order << 8 | 1, order))], identity)
         for (identity, slot), order in rows.items()]
        or [PolicyEntries.empty()]
    )  # fmt: skip
    nodes, held = _nodes(), FakeMap("hash", "u4", ROOTS_DTYPE, 64)
    table.sync(GroupedEntries.of(entries), held, nodes)
    wanted, read = PolicyLookup.of(entries), PolicyLookup.of(table.read(held, nodes))
    seen = {
        (way, identity, proto, port & 0xFFFF)
        for (_, slot), way, identity in itertools.product(rows, Direction, (0, 7, 8, 900, 901))
        for proto in (slot.proto, Protocol.TCP, Protocol.GRE)
        for port in (slot.port - 1, slot.port, slot.port + (1 << (16 - slot.bits)))
        if proto
    }
    for where in seen:
        assert wanted.lookup(*where) == read.lookup(*where) == _walk(held, nodes, *where), where
    assert not table.plan(visible(GroupedEntries.of(entries)), table.read(held, nodes))


def _walk(
    held: Any, nodes: PolicyNodes, way: Direction, identity: int, proto: Protocol, port: int
) -> Hit:
    """The steps of the program, on the rows as they are in the maps."""
    row = held.get(identity) or held[0]
    found = []
    for who, cells in ((identity, row.own), (0, row.any)):
        cell, path = cells[way], proto << 16 | port
        for shift in range(20, -4, -4):
            if cell & 0x80000000:
                cell = nodes._nodes.map.lookup(cell & 0x7FFFFFFF).cell[path >> shift & 15]  # type: ignore[union-attr]
        if cell:
            entry = nodes._entries.read(cell)
            bits = entry[3]
            fixed = path >> (24 - bits) << (24 - bits)
            key = np.array([(40 + bits, who, way, fixed >> 16, fixed & 0xFFFF)], KEY_DTYPE)
            found.append(PolicyEntries(key, np.frombuffer(entry, VALUE_DTYPE)))
    entries = PolicyEntries.concatenate(found or [PolicyEntries.empty()])
    return PolicyLookup.of(entries).lookup(way, identity, proto, port)


@settings(max_examples=30, deadline=None)
@given(strategies.worlds(), strategies.worlds())
def test_sync_makes_the_map_what_it_should_be(first: World, second: World) -> None:
    """After `sync` nothing drifts, and a second `sync` has nothing to do."""
    nodes, held = _nodes(), FakeMap("hash", "u4", ROOTS_DTYPE, 16384)
    for documents in (first.documents, second.documents):
        wanted = _grouped(documents)
        table.sync(wanted, held, nodes)
        assert set(held) == {0, *wanted.members.tolist()}
        assert not table.drift(wanted, held, nodes)
        assert not table.sync(wanted, held, nodes)


class _Watched(FakeMap):
    """A policy map that shows every state that it goes through, row by row."""

    def __init__(self) -> None:
        super().__init__("hash", "u4", ROOTS_DTYPE, 16384)
        self.states: list[dict[int, Any]] = []

    def _step(self) -> None:
        self.states.append(dict(self.items()))

    def update_batch(self, keys: Any, values: Any, mode: Any = "any") -> int:
        for at in range(len(keys)):
            super().update_batch(keys[at : at + 1], values[at : at + 1], mode)
            self._step()
        return len(keys)

    def delete_batch(self, keys: Any) -> int:
        for at in range(len(keys)):
            super().delete_batch(keys[at : at + 1])
            self._step()
        return len(keys)


@settings(max_examples=25, deadline=None)
@given(strategies.worlds(), strategies.worlds(), strategies.target_sets())
def test_each_state_between_is_the_old_or_the_new_one_for_each_identity(
    first: World, second: World, targets: list[Target]
) -> None:
    """So none lets a packet pass, or past its proxy, that neither lets."""
    nodes = _nodes()
    watched = _Watched()
    old, new = _grouped(first.documents), _grouped(second.documents)
    table.sync(old, watched, nodes)
    watched.states.clear()
    table.sync(new, watched, nodes)
    ends = PolicyLookup.of(old.spread()), PolicyLookup.of(new.spread())
    for identity in (1, 2, 7, 9, 1000, 1001, 1009, 0x0100_0001, 0x0100_0003):
        places = [
            (Direction[t.direction.upper()], identity, Protocol.parse(t.protocol), t.port)
            for t in targets
        ]
        wholly = [[end.lookup(*place) for place in places] for end in ends]
        rows = {str(state.get(identity, state[0])): state for state in watched.states}
        for state in rows.values():
            assert [_walk(state, nodes, *place) for place in places] in wholly
