"""A policy map changed in place: it ends as wanted, and lets nothing through on the way."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from hypothesis import Phase, given, settings

from pyciliumlib.policy import Direction, Repository, Verdict, table
from pyciliumlib.policy.entries import KEY_DTYPE, VALUE_DTYPE, PolicyEntries
from pyciliumlib.policy.table import PolicyLookup
from pyciliumlib.testing import FakeMap
from pyciliumlib.types import Protocol
from tests.property import strategies
from tests.property.strategies import Target, World

SUBJECT = strategies.pod("default", "a", "fe")


def _entries(documents: list[dict[str, Any]]) -> PolicyEntries:
    repository = Repository()
    repository.update_identities(strategies.PARSED)
    repository.apply(documents)
    return repository.add_endpoint(1, SUBJECT).entries()


def _map() -> FakeMap:
    return FakeMap("lpm_trie", KEY_DTYPE, VALUE_DTYPE, max_entries=16384)


@settings(max_examples=30, deadline=None)
@given(strategies.worlds(), strategies.worlds())
def test_sync_makes_the_map_what_it_should_be(first: World, second: World) -> None:
    """After `sync` nothing drifts, and a second `sync` has nothing to do."""
    held = _map()
    for documents in (first.documents, second.documents):
        wanted = _entries(documents)
        table.sync(wanted, held)
        assert len(held) == len(wanted)
        assert not table.drift(wanted, held)
        assert not table.sync(wanted, held)


class _Watched:
    """A policy map that shows every state that it goes through, entry by entry."""

    def __init__(self, entries: PolicyEntries) -> None:
        self.key_dtype, self.value_dtype = KEY_DTYPE, VALUE_DTYPE
        self.rows = dict(zip(map(bytes, entries.keys), entries.values, strict=True))
        self.states: list[PolicyLookup] = []

    def _step(self) -> None:
        keys = np.frombuffer(b"".join(self.rows), KEY_DTYPE)
        values = np.array(list(self.rows.values()), VALUE_DTYPE)
        self.states.append(PolicyLookup.of(PolicyEntries(keys, values)))

    def update_batch(self, keys: Any, values: Any) -> int:
        for key, value in zip(keys, values, strict=True):
            self.rows[bytes(key)] = value
            self._step()
        return len(keys)

    def delete_batch(self, keys: Any) -> int:
        for key in keys:
            del self.rows[bytes(key)]
            self._step()
        return len(keys)


@settings(max_examples=25, deadline=None, phases=[Phase.generate])
@given(strategies.worlds(), strategies.worlds(), strategies.target_sets())
def test_no_state_between_passes_what_neither_end_passes(
    first: World, second: World, targets: list[Target]
) -> None:
    """In each state on the way a packet passes, or passes past its proxy, only if it does so in
    the old entries or in the new ones."""
    old, new = _entries(first.documents), _entries(second.documents)
    watched = _Watched(old)
    table.apply(table.plan(new, old), watched)  # type: ignore[arg-type]  # only what apply needs
    ends = PolicyLookup.of(old), PolicyLookup.of(new)
    openness = {Verdict.DENY: 0, Verdict.REDIRECT: 1, Verdict.ALLOW: 2}
    identities = [1, 2, 7, 9, 1000, 1001, 1009, 0x0100_0001, 0x0100_0003]
    for identity, target in itertools.product(identities, targets):
        what = (
            Direction[target.direction.upper()],
            identity,
            Protocol.parse(target.protocol),
            target.port,
        )
        bound = max(openness[end.lookup(*what).verdict] for end in ends)
        for state in watched.states:
            assert openness[state.lookup(*what).verdict] <= bound, what
