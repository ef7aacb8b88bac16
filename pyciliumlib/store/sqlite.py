"""A store in one SQLite file, shared by the processes of a machine.

One table holds the entries; a deleted key stays as a row without value, so that the changes since
a revision are one query. Old rows of that kind are pruned; a watch that is older lists again.
https://www.sqlite.org/wal.html
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
import uuid
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from pyciliumlib.closeable import Closeable
from pyciliumlib.errors import ClosedError, LayoutError, StateError
from pyciliumlib.store.checks import (
    LAST_CHARACTER,
    check_changes,
    check_key,
    check_ttl,
    check_value,
)
from pyciliumlib.store.protocol import Entry, Event, Session
from pyciliumlib.store.sessions import StoreSession

_LAYOUT: Final = 1
_SCHEMA: Final = """
CREATE TABLE entries (
    key TEXT PRIMARY KEY, value TEXT, revision INTEGER NOT NULL, session TEXT
) WITHOUT ROWID;
CREATE UNIQUE INDEX entries_by_revision ON entries (revision);
CREATE INDEX entries_by_session ON entries (session) WHERE session IS NOT NULL;
CREATE INDEX deleted ON entries (revision) WHERE value IS NULL;
CREATE TABLE sessions (id TEXT PRIMARY KEY, ends REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
INSERT INTO counters VALUES ('revision', 0), ('pruned', 0);
"""
_BUSY_SECONDS: Final = 30.0
_DELETED_KEPT: Final = 10_000
_PRUNE_EVERY: Final = 1_000
# How often a waiting watch looks for the changes of other processes; its own wake it at once.
_POLL_SECONDS: Final = 0.05


class SQLiteStore(Closeable):
    """The store protocol over the file `path`, which is made if it is missing.

    Raises StateError if the file cannot be used, LayoutError if another version wrote it.
    Sessions end by the machine's clock.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        self._changed = threading.Condition(threading.RLock())
        self._sessions: dict[str, StoreSession] = {}
        self._pid = os.getpid()
        self._db: sqlite3.Connection | None = None
        try:
            self._db = sqlite3.connect(
                self._path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = NORMAL")
            self._prepare()
        except sqlite3.Error as error:
            self._disconnect()
            raise self._unusable(error) from error
        except StateError:
            self._disconnect()
            raise

    @property
    def path(self) -> Path:
        """The file."""
        return self._path

    @property
    def revision(self) -> int:
        """That of the latest change."""
        with self._reading() as db:
            return _counter(db, "revision")

    def get(self, key: str) -> Entry | None:
        """The entry of `key`."""
        with self._reading() as db:
            row = db.execute(
                "SELECT key, value, revision FROM entries WHERE key = ? AND value IS NOT NULL",
                (key,),
            ).fetchone()
            return Entry(*row) if row else None

    def entries(self, prefix: str) -> list[Entry]:
        """The entries whose keys begin with `prefix`, sorted by key."""
        with self._reading() as db:
            return _list(db, prefix)

    def put(self, key: str, value: str, session: Session | None = None) -> int:
        """Create or replace; the new revision."""
        check_key(key)
        check_value(value)
        with self._writing() as db:
            return _put(db, key, value, session)

    def create(
        self,
        key: str,
        value: str,
        session: Session | None = None,
        requires: str | None = None,
    ) -> bool:
        """Put only if `key` is absent (and `requires`, if given, present)."""
        check_key(key)
        check_value(value)
        with self._writing() as db:
            if _exists(db, key) or (requires is not None and not _exists(db, requires)):
                return False
            _put(db, key, value, session)
            return True

    def delete(self, key: str, revision: int | None = None) -> bool:
        """Delete, if `revision` is given only an entry not changed since."""
        with self._writing() as db:
            row = db.execute(
                "SELECT revision FROM entries WHERE key = ? AND value IS NOT NULL", (key,)
            ).fetchone()
            if row is None or (revision is not None and row[0] != revision):
                return False
            _remove(db, key)
            return True

    def write(self, changes: Mapping[str, str | None]) -> None:
        """Put these texts, and delete the keys whose text is None: one transaction."""
        check_changes(changes)
        with self._writing() as db:
            for key, value in changes.items():
                if value is not None:
                    _put(db, key, value, None)
                elif _exists(db, key):
                    _remove(db, key)

    def session(self, ttl: float, keep_alive: bool = True) -> StoreSession:
        """A new session of `ttl` seconds."""
        check_ttl(ttl)
        name = uuid.uuid4().hex
        with self._writing() as db:
            db.execute("INSERT INTO sessions VALUES (?, ?)", (name, time.time() + ttl))
            session = StoreSession(self, name, ttl, keep_alive)
            self._sessions[name] = session
            return session

    def watch(self, prefix: str) -> _SQLiteWatch:
        """Watch the keys that begin with `prefix`."""
        return _SQLiteWatch(self, prefix)

    def close(self) -> None:
        """End this object's sessions and close the file; a second call does nothing."""
        with self._changed:
            if self._db is None:
                return
            for session in list(self._sessions.values()):
                session.close()
            self._disconnect()
            self._changed.notify_all()

    def __del__(self) -> None:
        if getattr(self, "_db", None) is not None:
            warnings.warn(f"{self!r} was not closed", ResourceWarning, source=self, stacklevel=2)
            self._disconnect()

    def __repr__(self) -> str:
        return f"SQLiteStore({str(self._path)!r})"

    # for sessions and watches

    def renew_session(self, session: str, ttl: float) -> bool:
        """Let the session live for another `ttl` seconds."""
        with self._writing() as db:
            changed = db.execute(
                "UPDATE sessions SET ends = ? WHERE id = ?", (time.time() + ttl, session)
            )
            return changed.rowcount > 0

    def session_alive(self, session: str) -> bool:
        """Whether the session has not ended."""
        with self._reading() as db:
            return _session_known(db, session)

    def end_session(self, session: str) -> None:
        """Delete the session's keys; nothing is left to do on a closed store."""
        with self._changed:
            self._sessions.pop(session, None)
            if self._db is not None:
                with self._writing() as db:
                    _end_session(db, session)

    def changes(
        self, prefix: str, since: int | None, known: set[str], timeout: float
    ) -> tuple[int, list[Event]]:
        """The revision now and what changed since (None: list); waits `timeout` for the first."""
        deadline = time.monotonic() + timeout
        with self._changed:
            while True:
                with self._reading() as db:
                    found = _changes(db, prefix, since, known)
                remaining = deadline - time.monotonic()
                if found[1] or remaining <= 0:
                    return found
                self._changed.wait(min(remaining, _POLL_SECONDS))

    # the connection

    def _prepare(self) -> None:
        with self._transaction(write=True) as db:
            layout = db.execute("PRAGMA user_version").fetchone()[0]
            if layout == 0:
                for statement in _SCHEMA.split(";"):
                    db.execute(statement)
                db.execute(f"PRAGMA user_version = {_LAYOUT}")
            elif layout != _LAYOUT:
                raise LayoutError(
                    f"store {self._path}: layout {layout}, this version reads {_LAYOUT}; "
                    "use the version that wrote it, or start with another file"
                )

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with self._transaction() as db:
            ended = db.execute("SELECT 1 FROM sessions WHERE ends <= ?", (time.time(),)).fetchone()
            if not ended:
                yield db
                return
        with self._writing() as db:
            yield db

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._changed:
            with self._transaction(write=True) as db:
                ended = db.execute("SELECT id FROM sessions WHERE ends <= ?", (time.time(),))
                for (session,) in ended.fetchall():
                    _end_session(db, session)
                yield db
            self._changed.notify_all()

    @contextmanager
    def _transaction(self, write: bool = False) -> Iterator[sqlite3.Connection]:
        with self._changed:
            if self._db is None:
                raise ClosedError(f"store {self._path} was closed")
            if os.getpid() != self._pid:
                raise StateError(f"store {self._path} was opened before a fork; open it again")
            try:
                with self._db as db:  # ends what was begun, also if Ctrl-C comes right after it
                    db.execute("BEGIN IMMEDIATE" if write else "BEGIN")
                    yield db
            except sqlite3.Error as error:
                raise self._unusable(error) from error

    def _unusable(self, error: sqlite3.Error) -> StateError:
        return StateError(
            f"store {self._path}: {error}; check that the folder exists and is writable, that the "
            "disk has room, and that the file is a store"
        )

    def _disconnect(self) -> None:
        if self._db is not None:
            self._db.close()
            self._db = None


class _SQLiteWatch:
    def __init__(self, store: SQLiteStore, prefix: str) -> None:
        self._store = store
        self._prefix = prefix
        self._since: int | None = None
        self._known: set[str] = set()

    def poll(self, timeout: float = 0.0) -> list[Event]:
        self._since, events = self._store.changes(self._prefix, self._since, self._known, timeout)
        for event in events:
            if event.value is None:
                self._known.discard(event.key)
            else:
                self._known.add(event.key)
        return events

    def close(self) -> None:
        self._known.clear()


def _counter(db: sqlite3.Connection, name: str) -> int:
    value: int = db.execute("SELECT value FROM counters WHERE name = ?", (name,)).fetchone()[0]
    return value


def _next_revision(db: sqlite3.Connection) -> int:
    db.execute("UPDATE counters SET value = value + 1 WHERE name = 'revision'")
    revision = _counter(db, "revision")
    if revision % _PRUNE_EVERY == 0:
        _prune(db)
    return revision


def _prune(db: sqlite3.Connection) -> None:
    newest = "SELECT revision FROM entries WHERE value IS NULL ORDER BY revision DESC"
    row = db.execute(f"{newest} LIMIT 1 OFFSET {_DELETED_KEPT}").fetchone()
    if row:
        db.execute("DELETE FROM entries WHERE value IS NULL AND revision <= ?", row)
        db.execute("UPDATE counters SET value = ? WHERE name = 'pruned'", row)


def _exists(db: sqlite3.Connection, key: str) -> bool:
    query = "SELECT 1 FROM entries WHERE key = ? AND value IS NOT NULL"
    return db.execute(query, (key,)).fetchone() is not None


def _list(db: sqlite3.Connection, prefix: str) -> list[Entry]:
    rows = db.execute(
        "SELECT key, value, revision FROM entries "
        "WHERE key >= ? AND key < ? AND value IS NOT NULL ORDER BY key",
        (prefix, prefix + LAST_CHARACTER),
    )
    return [Entry(*row) for row in rows]


def _put(db: sqlite3.Connection, key: str, value: str, session: Session | None) -> int:
    if session is not None and not _session_known(db, session.id):
        raise StateError(f"store key {key!r}: session {session.id} has ended; open another")
    revision = _next_revision(db)
    db.execute(
        "INSERT OR REPLACE INTO entries VALUES (?, ?, ?, ?)",
        (key, value, revision, None if session is None else session.id),
    )
    return revision


def _remove(db: sqlite3.Connection, key: str) -> None:
    db.execute(
        "UPDATE entries SET value = NULL, session = NULL, revision = ? WHERE key = ?",
        (_next_revision(db), key),
    )


def _session_known(db: sqlite3.Connection, session: str) -> bool:
    return db.execute("SELECT 1 FROM sessions WHERE id = ?", (session,)).fetchone() is not None


def _end_session(db: sqlite3.Connection, session: str) -> None:
    db.execute("DELETE FROM sessions WHERE id = ?", (session,))
    for (key,) in db.execute("SELECT key FROM entries WHERE session = ?", (session,)).fetchall():
        _remove(db, key)


def _changes(
    db: sqlite3.Connection, prefix: str, since: int | None, known: set[str]
) -> tuple[int, list[Event]]:
    now = _counter(db, "revision")
    if since is None or since < _counter(db, "pruned"):
        entries = _list(db, prefix)
        gone = known.difference(entry.key for entry in entries)
        return now, [
            *(Event(entry.key, entry.value, entry.revision) for entry in entries),
            *(Event(key, None, now) for key in sorted(gone)),
        ]
    if since == now:
        return now, []
    rows = db.execute(
        "SELECT key, value, revision FROM entries "
        "WHERE revision > ? AND key >= ? AND key < ? ORDER BY revision",
        (since, prefix, prefix + LAST_CHARACTER),
    )
    return now, [Event(*row) for row in rows]
