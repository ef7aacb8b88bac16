"""Both stores against a dict: whatever is called, the answers are the same."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from pyciliumlib.store import MemoryStore, Session, SQLiteStore, Store, Watch

KEYS = st.sampled_from(["a", "a/1", "a/2", "ab", "b%", "b_", "ü/1"])
VALUES = st.sampled_from(["", "x", "y"])
PREFIXES = st.sampled_from(["", "a", "a/", "b", "ü"])


class StoreMachine(RuleBasedStateMachine):
    """Every answer is compared with that of a dict; every watch must end where the dict does."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.stores: list[Store] = [
            MemoryStore(),
            SQLiteStore(Path(self.folder.name) / "store.db"),
        ]
        self.model: dict[str, tuple[str, int | None]] = {}  # value, number of the session
        self.sessions: list[list[Session]] = []
        self.watches: list[tuple[str, list[Watch], list[dict[str, str]]]] = []

    def teardown(self) -> None:
        for store in self.stores:
            store.close()
        self.folder.cleanup()

    def session_of(self, choice: int | None) -> tuple[int | None, list[Session | None]]:
        if choice is None or not self.sessions:
            return None, [None, None]
        number = choice % len(self.sessions)
        return number, list(self.sessions[number])

    @rule(key=KEYS, value=VALUES, choice=st.none() | st.integers(0, 3))
    def put(self, key: str, value: str, choice: int | None) -> None:
        number, sessions = self.session_of(choice)
        for store, session in zip(self.stores, sessions, strict=True):
            before = store.revision
            assert store.put(key, value, session) == before + 1
        self.model[key] = (value, number)

    @rule(key=KEYS, value=VALUES, requires=st.none() | KEYS, choice=st.none() | st.integers(0, 3))
    def create(self, key: str, value: str, requires: str | None, choice: int | None) -> None:
        number, sessions = self.session_of(choice)
        expected = key not in self.model and (requires is None or requires in self.model)
        for store, session in zip(self.stores, sessions, strict=True):
            assert store.create(key, value, session, requires) == expected
        if expected:
            self.model[key] = (value, number)

    @rule(key=KEYS, stale=st.booleans())
    def delete(self, key: str, stale: bool) -> None:
        expected = key in self.model and not stale
        for store in self.stores:
            entry = store.get(key)
            revision = None if entry is None else entry.revision - stale
            assert store.delete(key, revision) == expected
        if expected:
            del self.model[key]

    @rule(changes=st.dictionaries(KEYS, st.none() | VALUES, max_size=4))
    def write(self, changes: dict[str, str | None]) -> None:
        for store in self.stores:
            store.write(changes)
        for key, value in changes.items():
            if value is None:
                self.model.pop(key, None)
            else:
                self.model[key] = (value, None)

    @rule()
    def open_session(self) -> None:
        self.sessions.append([store.session(600, keep_alive=False) for store in self.stores])

    @rule(choice=st.integers(0, 3))
    def close_session(self, choice: int) -> None:
        """A fresh one takes its place, so that the numbers of the others stay."""
        if self.sessions:
            number = choice % len(self.sessions)
            for session in self.sessions[number]:
                session.close()
                assert not session.renew()
            self.sessions[number] = [s.session(600, keep_alive=False) for s in self.stores]
            self.model = {k: v for k, v in self.model.items() if v[1] != number}

    @rule(prefix=PREFIXES)
    def watch(self, prefix: str) -> None:
        watches = [store.watch(prefix) for store in self.stores]
        self.watches.append((prefix, watches, [{} for _ in watches]))

    @rule()
    def poll(self) -> None:
        for prefix, watches, states in self.watches:
            expected = {k: v for k, (v, _) in self.model.items() if k.startswith(prefix)}
            for watch, state in zip(watches, states, strict=True):
                for event in watch.poll():
                    if event.value is None:
                        state.pop(event.key, None)
                    else:
                        state[event.key] = event.value
                assert expected == state
                assert watch.poll() == []

    @invariant()
    def all_agree(self) -> None:
        for store in self.stores:
            for prefix in ("", "a/"):
                found = [(entry.key, entry.value) for entry in store.entries(prefix)]
                assert found == sorted(
                    (k, v) for k, (v, _) in self.model.items() if k.startswith(prefix)
                )
            for entry in store.entries(""):
                assert store.get(entry.key) == entry


TestStores: Any = StoreMachine.TestCase
TestStores.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
