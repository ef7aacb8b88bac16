"""Filling and dumping a map of a million entries from Python, beside a C program.

Both work on the same map with the same entries, by turns, and by turns one or the other first.
Times are the thread's CPU, the kernel's part included, so that a busy machine hardly shows.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pyciliumlib.kernel import Map, MapType
from tests.bench.compiled import c_program
from tests.bench.figure import Figure, ratio_at_least

ENTRIES = 1_000_000
ONE_BY_ONE = 100_000
BATCH = 16384
ROUNDS = 10
KEY = np.dtype(("u1", (20,)))
VALUE = np.dtype(("u1", (16,)))
_STEPS = ("fill", "dump", "delete")

Times = dict[str, list[float]]


def figures() -> Iterator[Figure]:
    """Entries a second, in batches and one at a time."""
    with c_program("map_batch") as program, _hash_map() as table:
        ours, theirs = _rounds(table, program, ENTRIES, BATCH, _in_batches)
        for step in _STEPS:
            yield Figure(
                f"map of 1 M entries, {step} in numpy batches",
                ENTRIES / statistics.median(ours[step]) / 1e6,
                "M entries/s",
                "C, the same batches",
                ENTRIES / statistics.median(theirs[step]) / 1e6,
                ratio_at_least(0.9) if step != "delete" else None,
            )
        ours, theirs = _rounds(table, program, ONE_BY_ONE, 0, _one_by_one)
        for step, name in zip(_STEPS, ("m[k] = v", "m[k]", "del m[k]"), strict=True):
            yield Figure(
                f"map entry by entry, {name}",
                ONE_BY_ONE / statistics.median(ours[step]) / 1e6,
                "M entries/s",
                "C, one system call each",
                ONE_BY_ONE / statistics.median(theirs[step]) / 1e6,
            )
        yield _walk(table)


def _hash_map() -> Map:
    return Map.create(MapType.HASH, KEY, VALUE, ENTRIES, name="bench")


def _entries(count: int) -> tuple[Any, Any]:
    random = np.random.default_rng(1)
    keys = random.integers(0, 256, (count, 20), np.uint8)
    return keys, random.integers(0, 256, (count, 16), np.uint8)


def _rounds(
    table: Map, program: Path, count: int, batch: int, ours: Callable[..., Iterator[float]]
) -> tuple[Times, Times]:
    """Seconds of CPU of each step, ours and C's."""
    keys, values = _entries(count)
    data = os.memfd_create("bench")
    try:
        os.write(data, keys.tobytes() + values.tobytes())
        argv = [program, table.fd, data, count, batch]
        mine: Times = {step: [] for step in _STEPS}
        theirs: Times = {step: [] for step in _STEPS}

        def turn_of_c() -> None:
            done = subprocess.run(
                [*map(str, argv)], pass_fds=[table.fd, data], check=True, stdout=subprocess.PIPE
            )
            for step, nanoseconds in zip(_STEPS, done.stdout.split(), strict=True):
                theirs[step].append(int(nanoseconds) / 1e9)

        def our_turn() -> None:
            for step, seconds in zip(_STEPS, ours(table, keys, values), strict=True):
                mine[step].append(seconds)

        for number in range(ROUNDS):
            for turn in (our_turn, turn_of_c) if number % 2 else (turn_of_c, our_turn):
                turn()
    finally:
        os.close(data)
    return mine, theirs


def _in_batches(table: Map, keys: Any, values: Any) -> Iterator[float]:
    yield _cpu(lambda: table.update_batch(keys, values))
    found: list[Any] = []
    yield _cpu(lambda: found.append(table.lookup_batch()))
    if len(found[0][0]) != len(keys):
        raise AssertionError(f"{len(found[0][0])} of {len(keys)} entries were read")
    yield _cpu(lambda: table.delete_batch(keys))


def _one_by_one(table: Map, keys: Any, values: Any) -> Iterator[float]:
    pairs = list(zip(map(bytes, keys), map(bytes, values), strict=True))

    def fill() -> None:
        for key, value in pairs:
            table[key] = value

    def look_up() -> None:
        for key, _ in pairs:
            table[key]

    def delete() -> None:
        for key, _ in pairs:
            del table[key]

    yield _cpu(fill)
    yield _cpu(look_up)
    yield _cpu(delete)


def _walk(table: Map) -> Figure:
    keys, values = _entries(ENTRIES)
    table.update_batch(keys, values)

    def walk() -> None:
        for _ in table.items():
            pass

    rates = [ENTRIES / _cpu(walk) / 1e6 for _ in range(3)]
    return Figure(
        "map of 1 M entries, for k, v in m.items()", statistics.median(rates), "M entries/s"
    )


def _cpu(work: Callable[[], object]) -> float:
    """Seconds of CPU that this thread spends on `work`."""
    started = time.thread_time()
    work()
    return time.thread_time() - started
