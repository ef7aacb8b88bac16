"""What lets a lab be removed after its process was killed.

Each lab has a directory below `STATE_DIR` with a file that its process holds locked. The kernel
drops the lock when the process ends, however it ends; so a lab whose lock can be had is nobody's.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from pyciliumlib.errors import PrivilegeError
from pyciliumlib.lab.names import netns_prefix, new_lab_id
from pyciliumlib.lab.processes import kill_all_in
from pyciliumlib.net import delete_netns, netns_names
from pyciliumlib.net.netns import RUN_DIR

STATE_DIR = Path("/run/pyciliumlib/labs")


class LabState:
    """The directory and the lock of one live lab."""

    def __init__(self) -> None:
        """Make them, under a new id."""
        with _all_locked():
            self.id = new_lab_id()
            self._dir = STATE_DIR / self.id
            self._dir.mkdir()
            # closed on exec; a fork shares the lock, and its lab then counts as alive
            self._lock = os.open(_lock_file(self._dir), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
            fcntl.flock(self._lock, fcntl.LOCK_EX)

    def remove(self) -> None:
        """Remove what is left of the lab: processes, namespaces, the directory; then unlock."""
        if self._lock < 0:
            return
        with _all_locked():
            _destroy(self._dir)
            os.close(self._lock)
            self._lock = -1

    def abandon(self) -> None:
        """Close the lock and leave the rest to `remove_stale`, or to the process that shares it."""
        lock, self._lock = self._lock, -1
        if lock >= 0:
            os.close(lock)


def remove_stale() -> tuple[str, ...]:
    """Remove every lab whose process is gone; returns their ids."""
    removed = []
    with _all_locked():
        for directory in sorted(STATE_DIR.iterdir()):
            if not _is_alive(directory):
                _destroy(directory)
                removed.append(directory.name)
    return tuple(removed)


def _lock_file(directory: Path) -> Path:
    return directory / "lock"


def _is_alive(directory: Path) -> bool:
    try:
        fd = os.open(_lock_file(directory), os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False  # killed between mkdir and open
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def _destroy(directory: Path) -> None:
    names = netns_names(netns_prefix(directory.name))
    inodes = set()
    for name in names:
        with contextlib.suppress(FileNotFoundError):
            inodes.add((RUN_DIR / name).stat().st_ino)
    kill_all_in(inodes)
    for name in names:
        delete_netns(name)
    _lock_file(directory).unlink(missing_ok=True)
    directory.rmdir()


@contextlib.contextmanager
def _all_locked() -> Iterator[None]:
    """Keep a lab that is being made from looking like one whose process is gone."""
    try:
        STATE_DIR.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(STATE_DIR, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except PermissionError as error:
        raise PrivilegeError(
            error.errno or 1, f"a lab keeps its state in {STATE_DIR} and needs root"
        ) from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
