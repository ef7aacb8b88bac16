"""The store protocol: keys and texts with revisions, sessions, and watches.

It is the part of etcd's model that identities and addresses need. Each change of the store gets
the next revision; an entry carries that of its last change. A key that was put under a session
vanishes with it. Two stores are here (`MemoryStore`, `SQLiteStore`); one over the network can
come behind the same protocol.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from attrs import frozen


@frozen
class Entry:
    """A key, its text, and the revision of the store at its last change."""

    key: str
    value: str
    revision: int


@frozen
class Event:
    """A change: `value` is None where the key was deleted."""

    key: str
    value: str | None
    revision: int


class Session(Protocol):
    """A client's life as the store sees it; the keys that were put under it end with it."""

    @property
    def id(self) -> str: ...

    @property
    def alive(self) -> bool:
        """Whether the store still knows the session: it ends after its ttl without a renewal."""

    def renew(self) -> bool:
        """Let it live for another ttl; False if it had ended, and its keys with it."""

    def close(self) -> None:
        """End it and delete its keys."""


class Watch(Protocol):
    """The changes below a prefix, beginning with a put for every entry that is there already.

    Each poll tells the latest change of every key that changed: what happened to a key in between
    may be left out, what became of it never is.
    """

    def poll(self, timeout: float = 0.0) -> list[Event]:
        """The changes since the last poll, in order; waits `timeout` seconds for the first."""

    def close(self) -> None: ...


class Store(Protocol):
    """What `IdentityAllocator` and its like need of a store. All calls are atomic.

    A call on a closed store raises ClosedError, one under a session that has ended StateError.
    """

    @property
    def revision(self) -> int:
        """That of the latest change; 0 where nothing was ever put."""

    def get(self, key: str) -> Entry | None:
        """The entry of `key`."""

    def entries(self, prefix: str) -> list[Entry]:
        """The entries whose keys begin with `prefix`, sorted by key."""

    def put(self, key: str, value: str, session: Session | None = None) -> int:
        """Create or replace; the new revision. The key then belongs to `session`, or to none."""

    def create(
        self,
        key: str,
        value: str,
        session: Session | None = None,
        requires: str | None = None,
    ) -> bool:
        """Put only if `key` is absent (and `requires`, if given, present); whether it was."""

    def delete(self, key: str, revision: int | None = None) -> bool:
        """Delete, if `revision` is given only an entry not changed since; whether it was."""

    def write(self, changes: Mapping[str, str | None]) -> None:
        """Put these texts, and delete the keys whose text is None: all of them or, on an error,
        none."""

    def session(self, ttl: float, keep_alive: bool = True) -> Session:
        """A new session of `ttl` seconds, renewed by itself until it or the store is closed.

        With `keep_alive` false it is the caller's to renew.
        """

    def watch(self, prefix: str) -> Watch:
        """Watch the keys that begin with `prefix`."""

    def close(self) -> None:
        """Release what the store holds; sessions that this object opened end."""

    def __enter__(self) -> Store: ...

    def __exit__(self, *exc: object) -> None: ...
