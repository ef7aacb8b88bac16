"""What every store must do, asked of each."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pyciliumlib.errors import (
    ClosedError,
    InvalidError,
    LayoutError,
    LockedError,
    StateError,
)
from pyciliumlib.store import Event, MemoryStore, SQLiteStore, Store, locked


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    made = MemoryStore() if request.param == "memory" else SQLiteStore(tmp_path / "store.db")
    with made:
        yield made


def test_create_only_if_absent(store: Store) -> None:
    """The first wins, and a guard must exist."""
    assert store.create("a", "1")
    assert not store.create("a", "2")
    assert not store.create("b", "1", requires="missing")
    assert store.create("b", "1", requires="a")
    assert [entry.key for entry in store.entries("")] == ["a", "b"]


def test_revisions(store: Store) -> None:
    """Each change takes the next; a delete can insist on the one it saw."""
    first = store.put("a", "1")
    second = store.put("a", "2")
    assert first < second == store.revision
    assert not store.delete("a", revision=first)
    assert store.delete("a", revision=second)
    assert not store.delete("a")
    assert store.get("a") is None
    assert store.revision > second


def test_several_changes_at_once(store: Store) -> None:
    """All of them or none; a key that is not there may be deleted."""
    store.put("a", "1")
    store.write({"a": None, "b": "2", "missing": None})
    assert [(entry.key, entry.value) for entry in store.entries("")] == [("b", "2")]
    for bad in ({"c": "3", "": "x"}, {"c": "3", "d": 4}):
        with pytest.raises(InvalidError):
            store.write(bad)
    assert store.get("c") is None


def test_prefixes_are_text_not_patterns(store: Store) -> None:
    """`%`, `_`, `*` mean themselves, and a prefix ends where it ends."""
    for key in ("a/1", "a/2", "ab", "a%", "a_x", "a\U0001f600", "b"):
        store.put(key, key)
    assert [entry.key for entry in store.entries("a/")] == ["a/1", "a/2"]
    assert [entry.key for entry in store.entries("a_")] == ["a_x"]
    assert [entry.key for entry in store.entries("a%")] == ["a%"]
    assert len(store.entries("a")) == 6


def test_watch_begins_with_what_is_there(store: Store) -> None:
    """Then it tells of changes below its prefix, and of nothing else."""
    store.put("a/1", "x")
    store.put("b/1", "x")
    watch = store.watch("a/")
    assert [(e.key, e.value) for e in watch.poll()] == [("a/1", "x")]
    assert watch.poll() == []
    store.put("b/2", "x")
    revision = store.put("a/2", "y")
    store.delete("a/1")
    assert watch.poll() == [Event("a/2", "y", revision), Event("a/1", None, revision + 1)]
    watch.close()


def test_watch_wakes_a_waiter(store: Store) -> None:
    """A poll returns with the change, not after its timeout."""
    watch = store.watch("a")
    timer = threading.Timer(0.1, store.put, ("a", "1"))
    timer.start()
    start = time.monotonic()
    events = watch.poll(timeout=10)
    timer.join()
    assert [event.value for event in events] == ["1"]
    assert time.monotonic() - start < 5
    assert watch.poll(timeout=0.05) == []


def test_sessions_take_their_keys_along(store: Store) -> None:
    """A closed session's keys go; a key that was put again without it stays."""
    session = store.session(60)
    store.put("mine", "1", session)
    store.put("given-up", "1", session)
    store.put("given-up", "2")
    watch = store.watch("")
    watch.poll()
    session.close()
    session.close()
    assert [entry.key for entry in store.entries("")] == ["given-up"]
    assert [(event.key, event.value) for event in watch.poll()] == [("mine", None)]
    assert not session.alive
    assert not session.renew()
    with pytest.raises(StateError, match="ended"):
        store.put("mine", "1", session)
    assert store.get("mine") is None


def test_sessions_end_without_renewal(store: Store) -> None:
    """One that nobody renews ends; one that renews itself does not."""
    silent, renewing = store.session(0.15, keep_alive=False), store.session(0.15)
    store.put("silent", "1", silent)
    store.put("renewing", "1", renewing)
    watch = store.watch("")
    watch.poll()
    events = watch.poll(timeout=5)
    assert [(event.key, event.value) for event in events] == [("silent", None)]
    assert [entry.key for entry in store.entries("")] == ["renewing"]
    time.sleep(0.3)
    assert renewing.renew()
    assert not silent.alive


def test_locks_exclude(store: Store) -> None:
    """One holder at a time; who waits in vain is told."""
    running = 0
    overlaps = []

    def work() -> None:
        nonlocal running
        with locked(store, "lock"):
            running += 1
            overlaps.append(running)
            time.sleep(0.01)
            running -= 1

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert overlaps == [1] * 8
    with locked(store, "lock"), pytest.raises(LockedError), locked(store, "lock", timeout=0.05):
        pass
    with locked(store, "lock", timeout=0):
        pass


def test_bad_input_is_refused(store: Store) -> None:
    """Keys and values that not every store can hold, sessions without a life."""
    for key, value in (("", "x"), ("a\0b", "x"), ("a\U0010ffff", "x"), ("\ud800", "x")):
        with pytest.raises(InvalidError):
            store.put(key, value)
    with pytest.raises(InvalidError):
        store.put("a", "\ud800")
    with pytest.raises(InvalidError):
        store.session(0)
    assert store.entries("") == []


def test_closed_stores_refuse(store: Store) -> None:
    """Every call after `close` fails clearly; closing again does not."""
    watch = store.watch("")
    store.close()
    store.close()
    calls = (
        lambda: store.get("a"),
        lambda: store.put("a", "1"),
        lambda: store.entries(""),
        lambda: store.revision,
        lambda: watch.poll(),
        lambda: store.session(5),
    )
    for call in calls:
        with pytest.raises(ClosedError):
            call()


def test_many_threads(store: Store) -> None:
    """Each of many counters that threads raise by compare-and-swap ends at its number."""
    store.put("n", "0")

    def raise_it() -> None:
        for _ in range(20):
            while True:
                entry = store.get("n")
                if entry is not None and store.delete("n", entry.revision):
                    store.put("n", str(int(entry.value) + 1))
                    break

    threads = [threading.Thread(target=raise_it) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    entry = store.get("n")
    assert entry is not None
    assert entry.value == "80"


# what only the file has

_CHILD = """
import sys
from pyciliumlib.store import SQLiteStore
with SQLiteStore(sys.argv[1]) as store:
    print(sum(store.create(f"n/{i}", sys.argv[2]) for i in range(200)))
"""


def test_processes_share_the_file(tmp_path: Path) -> None:
    """Of several processes that create the same keys, exactly one succeeds for each."""
    path = tmp_path / "store.db"
    with SQLiteStore(path) as store:
        watch = store.watch("n/")
        children = [
            subprocess.Popen(
                [sys.executable, "-c", _CHILD, str(path), str(number)],
                stdout=subprocess.PIPE,
                text=True,
                cwd=Path(__file__).parents[2],
            )
            for number in range(3)
        ]
        won = [int(child.communicate(timeout=60)[0]) for child in children]
        assert sum(won) == 200
        assert len(store.entries("n/")) == 200
        assert len(watch.poll(timeout=1)) == 200


def test_a_file_outlives_its_process(tmp_path: Path) -> None:
    """Keys without a session are there again; a session's are not."""
    path = tmp_path / "store.db"
    with SQLiteStore(path) as store:
        store.put("kept", "1")
        store.put("mine", "1", store.session(60))
    with SQLiteStore(path) as store:
        assert [entry.key for entry in store.entries("")] == ["kept"]


def test_a_watch_that_fell_behind_lists_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When old deletions are pruned, a slow watch still learns of them."""
    monkeypatch.setattr("pyciliumlib.store.sqlite._DELETED_KEPT", 2)
    monkeypatch.setattr("pyciliumlib.store.sqlite._PRUNE_EVERY", 5)
    with SQLiteStore(tmp_path / "store.db") as store:
        for number in range(10):
            store.put(f"k/{number}", "x")
        watch = store.watch("k/")
        watch.poll()
        for number in range(8):
            store.delete(f"k/{number}")
        store.put("k/new", "y")
        state = {f"k/{number}": "x" for number in range(10)}
        for event in watch.poll():
            if event.value is None:
                del state[event.key]
            else:
                state[event.key] = event.value
        assert state == {entry.key: entry.value for entry in store.entries("k/")}
        with sqlite3.connect(store.path) as db:
            kept = db.execute("SELECT count(*) FROM entries WHERE value IS NULL").fetchone()[0]
        db.close()
        assert kept < 8


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    """No folder, no database, another layout: each a clear error that names the file."""
    with pytest.raises(StateError, match=r"store\.db"):
        SQLiteStore(tmp_path / "missing" / "store.db")
    (tmp_path / "text.db").write_text("not a database, but long enough to look like one" * 50)
    with pytest.raises(StateError, match=r"text\.db"):
        SQLiteStore(tmp_path / "text.db")
    with sqlite3.connect(tmp_path / "new.db") as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(LayoutError, match="layout 99"):
        SQLiteStore(tmp_path / "new.db")


class Interrupted(sqlite3.Connection):
    """Meets Ctrl-C right after a statement, once."""

    after = ""

    def execute(self, statement: str, *arguments: Any) -> sqlite3.Cursor:
        cursor = super().execute(statement, *arguments)
        if self.after and statement.startswith(self.after):
            self.after = ""
            raise KeyboardInterrupt
        return cursor


@pytest.mark.parametrize("statement", ["BEGIN", "UPDATE counters", "INSERT OR REPLACE"])
def test_ctrl_c_leaves_no_transaction_open(
    statement: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it cut short is undone, and the store works on."""
    monkeypatch.setattr(sqlite3, "connect", partial(sqlite3.connect, factory=Interrupted))
    with SQLiteStore(tmp_path / "store.db") as store:
        store.put("before", "1")
        assert isinstance(store._db, Interrupted)
        store._db.after = statement
        with pytest.raises(KeyboardInterrupt):
            store.put("cut short", "1")
        assert store.put("after", "1") == 2
        assert [entry.key for entry in store.entries("")] == ["after", "before"]


def test_a_fork_may_not_use_the_parents_file(tmp_path: Path) -> None:
    """SQLite connections do not survive a fork, so the child is refused."""
    with SQLiteStore(tmp_path / "store.db") as store:
        child = os.fork()
        if child == 0:
            try:
                store.get("a")
            except StateError:
                os._exit(0)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_forgotten_store_warns(tmp_path: Path) -> None:
    """The file is closed, but not in silence."""
    store = SQLiteStore(tmp_path / "store.db")
    with pytest.warns(ResourceWarning, match="not closed"):
        store.__del__()
    assert store._db is None
