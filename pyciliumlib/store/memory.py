"""A store within the process: for one node by itself, for tests and notebooks."""

from __future__ import annotations

import bisect
import itertools
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from pyciliumlib.closeable import Closeable
from pyciliumlib.errors import ClosedError, StateError
from pyciliumlib.store.checks import (
    LAST_CHARACTER,
    check_changes,
    check_key,
    check_ttl,
    check_value,
)
from pyciliumlib.store.protocol import Entry, Event, Session
from pyciliumlib.store.sessions import StoreSession


class MemoryStore(Closeable):
    """The store protocol over a dict; what it holds ends with the process.

    >>> with MemoryStore() as store:
    ...     store.create("a/1", "one"), store.create("a/1", "two"), store.get("a/1").value
    (True, False, 'one')
    """

    def __init__(self) -> None:
        self._changed = threading.Condition(threading.RLock())
        self._entries: dict[str, Entry] = {}
        self._keys: list[str] = []  # sorted, so that a prefix is found without a walk
        self._owners: dict[str, str] = {}  # key -> session
        self._owned: dict[str, set[str]] = {}  # session -> keys
        self._sessions: dict[str, float] = {}  # session -> time of its end
        self._handles: dict[str, StoreSession] = {}
        self._numbers = itertools.count(1)
        self._watches: set[_MemoryWatch] = set()
        self._revision = 0
        self._closed = False

    @property
    def revision(self) -> int:
        """That of the latest change."""
        with self._locked():
            return self._revision

    def get(self, key: str) -> Entry | None:
        """The entry of `key`."""
        with self._locked():
            return self._entries.get(key)

    def entries(self, prefix: str) -> list[Entry]:
        """The entries whose keys begin with `prefix`, sorted by key."""
        with self._locked():
            begin = bisect.bisect_left(self._keys, prefix)
            end = bisect.bisect_left(self._keys, prefix + LAST_CHARACTER, begin)
            return [self._entries[key] for key in self._keys[begin:end]]

    def put(self, key: str, value: str, session: Session | None = None) -> int:
        """Create or replace; the new revision."""
        check_key(key)
        check_value(value)
        with self._locked():
            if session is not None and session.id not in self._sessions:
                raise StateError(f"store key {key!r}: session {session.id} has ended; open another")
            if key not in self._entries:
                bisect.insort(self._keys, key)
            self._revision += 1
            self._entries[key] = Entry(key, value, self._revision)
            self._disown(key)
            if session is not None:
                self._owners[key] = session.id
                self._owned.setdefault(session.id, set()).add(key)
            self._publish(Event(key, value, self._revision))
            return self._revision

    def create(
        self,
        key: str,
        value: str,
        session: Session | None = None,
        requires: str | None = None,
    ) -> bool:
        """Put only if `key` is absent (and `requires`, if given, present)."""
        with self._locked():
            if key in self._entries or (requires is not None and requires not in self._entries):
                return False
            self.put(key, value, session)
            return True

    def delete(self, key: str, revision: int | None = None) -> bool:
        """Delete, if `revision` is given only an entry not changed since."""
        with self._locked():
            entry = self._entries.get(key)
            if entry is None or (revision is not None and entry.revision != revision):
                return False
            self._remove(key)
            return True

    def write(self, changes: Mapping[str, str | None]) -> None:
        """Put these texts, and delete the keys whose text is None."""
        check_changes(changes)
        with self._locked():
            for key, value in changes.items():
                if value is None:
                    self.delete(key)
                else:
                    self.put(key, value)

    def session(self, ttl: float, keep_alive: bool = True) -> StoreSession:
        """A new session of `ttl` seconds."""
        check_ttl(ttl)
        with self._locked():
            name = f"memory-{next(self._numbers)}"
            self._sessions[name] = time.monotonic() + ttl
            session = StoreSession(self, name, ttl, keep_alive)
            self._handles[name] = session
            return session

    def watch(self, prefix: str) -> _MemoryWatch:
        """Watch the keys that begin with `prefix`."""
        with self._locked():
            watch = _MemoryWatch(self, prefix)
            for entry in self.entries(prefix):
                watch.pending[entry.key] = Event(entry.key, entry.value, entry.revision)
            self._watches.add(watch)
            return watch

    def close(self) -> None:
        """Drop everything; a second call does nothing."""
        with self._changed:
            for session in list(self._handles.values()):
                session.close()
            self._closed = True
            self._entries.clear()
            self._watches.clear()
            self._changed.notify_all()

    # --- for sessions and watches

    def renew_session(self, session: str, ttl: float) -> bool:
        """Let the session live for another `ttl` seconds."""
        with self._locked():
            if session not in self._sessions:
                return False
            self._sessions[session] = time.monotonic() + ttl
            return True

    def session_alive(self, session: str) -> bool:
        """Whether the session has not ended."""
        with self._locked():
            return session in self._sessions

    def end_session(self, session: str) -> None:
        """Delete the session's keys."""
        with self._changed:
            self._handles.pop(session, None)
            if self._sessions.pop(session, None) is not None:
                self._drop_keys_of(session)

    def poll_watch(self, watch: _MemoryWatch, timeout: float) -> list[Event]:
        """Hand over the pending events of `watch`."""
        deadline = time.monotonic() + timeout
        with self._locked():
            while not watch.pending and (remaining := deadline - time.monotonic()) > 0:
                self._changed.wait(min(remaining, self._until_next_end()))
                self._settle()
            events = list(watch.pending.values())
            watch.pending.clear()
            return events

    def drop_watch(self, watch: _MemoryWatch) -> None:
        """Forget a watch."""
        with self._changed:
            self._watches.discard(watch)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with self._changed:
            self._settle()
            yield

    # All below are called with the lock held.

    def _settle(self) -> None:
        """Refuse a closed store, and end the sessions whose time is over."""
        if self._closed:
            raise ClosedError("the store was closed")
        now = time.monotonic()
        for name in [name for name, end in self._sessions.items() if end <= now]:
            del self._sessions[name]
            self._drop_keys_of(name)

    def _until_next_end(self) -> float:
        ends = self._sessions.values()
        return max(min(ends) - time.monotonic(), 0.0) if ends else threading.TIMEOUT_MAX

    def _drop_keys_of(self, session: str) -> None:
        for key in sorted(self._owned.pop(session, ())):
            self._remove(key)

    def _disown(self, key: str) -> None:
        owner = self._owners.pop(key, None)
        if owner in self._owned:
            self._owned[owner].discard(key)

    def _remove(self, key: str) -> None:
        del self._entries[key]
        del self._keys[bisect.bisect_left(self._keys, key)]
        self._disown(key)
        self._revision += 1
        self._publish(Event(key, None, self._revision))

    def _publish(self, event: Event) -> None:
        for watch in self._watches:
            if event.key.startswith(watch.prefix):
                # Only the latest change of a key counts, so a watch nobody polls stays small.
                watch.pending.pop(event.key, None)
                watch.pending[event.key] = event
        self._changed.notify_all()


class _MemoryWatch:
    def __init__(self, store: MemoryStore, prefix: str) -> None:
        self._store = store
        self.prefix = prefix
        self.pending: dict[str, Event] = {}

    def poll(self, timeout: float = 0.0) -> list[Event]:
        return self._store.poll_watch(self, timeout)

    def close(self) -> None:
        self._store.drop_watch(self)
