"""Cgroups for the tests of programs at sockets: one whose sockets are the test's own."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pyciliumlib.kernel import find_cgroup2

_serial = itertools.count()


@contextmanager
def cgroup() -> Iterator[Path]:
    """A new cgroup. A socket belongs to that of the process at its making: see `inside`."""
    path = find_cgroup2() / f"pclC{os.getpid()}-{next(_serial)}"
    path.mkdir()
    try:
        yield path
    finally:
        path.rmdir()


@contextmanager
def inside(path: Path) -> Iterator[Path]:
    """This process, all its threads and those that it starts are in the cgroup meanwhile."""
    before = _own()
    _move(os.getpid(), path)
    try:
        yield path
    finally:
        for pid in (path / "cgroup.procs").read_text().split():
            with contextlib.suppress(ProcessLookupError):  # it ended just now
                _move(int(pid), before)


@contextmanager
def outside() -> Iterator[None]:
    """This process is in no cgroup of the test's meanwhile."""
    before = _own()
    leave()
    try:
        yield
    finally:
        _move(os.getpid(), before)


def seconds_of(path: Path) -> float:
    """CPU time that its tasks have taken, and packets in their time."""
    (line,) = [
        line for line in (path / "cpu.stat").read_text().splitlines() if line.startswith("usage_")
    ]
    return int(line.split()[1]) / 1e6


def leave() -> None:
    """This process goes to where all begin."""
    _move(os.getpid(), find_cgroup2())


def _own() -> Path:
    lines = Path("/proc/self/cgroup").read_text().splitlines()
    (place,) = [line.removeprefix("0::/") for line in lines if line.startswith("0::")]
    return find_cgroup2() / place


def _move(pid: int, path: Path) -> None:
    (path / "cgroup.procs").write_text(f"{pid}\n")
