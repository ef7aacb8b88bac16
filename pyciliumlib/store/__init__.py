"""Where shared state lives: the store protocol, in memory and in an SQLite file."""

from __future__ import annotations

from pyciliumlib.store.lock import locked
from pyciliumlib.store.memory import MemoryStore
from pyciliumlib.store.protocol import Entry, Event, Session, Store, Watch
from pyciliumlib.store.sqlite import SQLiteStore

__all__ = [
    "Entry",
    "Event",
    "MemoryStore",
    "SQLiteStore",
    "Session",
    "Store",
    "Watch",
    "locked",
]
