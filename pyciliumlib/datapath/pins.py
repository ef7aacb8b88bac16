"""The pin root: where a datapath's maps and links live on, its lock, and its layout version."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
from pathlib import Path
from typing import Final

from pyciliumlib.closeable import Closeable
from pyciliumlib.errors import InvalidError, LayoutError, LockedError, NotFoundError
from pyciliumlib.kernel.bpffs import DEFAULT_BPFFS, ensure_bpffs, is_bpffs

#: Counts changes of what is pinned that an older or newer version cannot use.
LAYOUT: Final = 2
_STATE: Final = Path("/run/pyciliumlib/datapaths")


class PinRoot(Closeable):
    """A directory on a bpffs that one process at a time owns.

    Maps are pinned below `maps`, links below `links`, the maps of users' programs below `hooks`;
    what does not fit a map is in the file `state`, outside of the bpffs. The lock goes with the
    process, however it ends.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Make or open the directory and lock it.

        Raises InvalidError if it is not on a BPF file system; LockedError if another process, or
        another object of this one, holds it; LayoutError if its pins are of another layout.
        """
        self.path = Path(path)
        _check_bpffs(self.path)
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._lock()
            self._check_layout()
            self.maps = self._directory("maps")
            self.links = self._directory("links")
            self.hooks = self._directory("hooks")
            if not any(self.maps.iterdir()):
                # the state of maps that are gone, as after a bpffs was unmounted
                shutil.rmtree(self.state.parent, ignore_errors=True)
        except BaseException:
            os.close(self._fd)
            raise

    @classmethod
    def existing(cls, path: str | os.PathLike[str]) -> PinRoot:
        """The root that an earlier process left; NotFoundError if there is none."""
        if not (Path(path) / f"v{LAYOUT}").is_dir() and not _layouts(Path(path)):
            raise NotFoundError(f"nothing is pinned at {path}: make a Datapath with this pin_root")
        return cls(path)

    @property
    def state(self) -> Path:
        """The file beside the pins; its directory exists."""
        digest = hashlib.sha256(os.fsencode(self.path.absolute())).hexdigest()[:16]
        directory = _STATE / digest
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        return directory / "state.sqlite"

    def remove(self) -> None:
        """Unpin everything, delete the state, and give up the lock."""
        state = self.state.parent
        shutil.rmtree(self.path)
        shutil.rmtree(state, ignore_errors=True)
        self.close()

    def close(self) -> None:
        """Give up the lock; the pins stay."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _lock(self) -> None:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LockedError(
                f"another process, or another Datapath of this one, holds {self.path}: "
                "close that one, or use another pin_root"
            ) from None

    def _check_layout(self) -> None:
        others = [name for name in _layouts(self.path) if name != f"v{LAYOUT}"]
        if others:
            raise LayoutError(
                f"{self.path} holds pins of layout {others[0][1:]}, this version writes layout "
                f"{LAYOUT}: run the version that made them, or remove the directory "
                "(connections are decided afresh then)"
            )

    def _directory(self, name: str) -> Path:
        directory = self.path / f"v{LAYOUT}" / name
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        return directory


def _check_bpffs(path: Path) -> None:
    """InvalidError where no pin can be; the usual place is mounted if it is not yet."""
    if path.is_relative_to(DEFAULT_BPFFS):
        ensure_bpffs(DEFAULT_BPFFS)
    there = next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())
    if not is_bpffs(there):
        raise InvalidError(
            f"pin root {path} is not on a BPF file system: take a path below {DEFAULT_BPFFS}"
        )


def _layouts(path: Path) -> list[str]:
    """The layout directories that are there."""
    with contextlib.suppress(FileNotFoundError):
        return sorted(p.name for p in path.iterdir() if p.name[:1] == "v" and p.name[1:].isdigit())
    return []
