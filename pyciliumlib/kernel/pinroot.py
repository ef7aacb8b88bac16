"""The pin root: where maps and links live on without a process, its lock, and its layout."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
from pathlib import Path
from typing import Final

from attrs import frozen

from pyciliumlib.closeable import Closeable
from pyciliumlib.errors import InvalidError, LayoutError, LockedError, NotFoundError
from pyciliumlib.kernel.bpffs import DEFAULT_BPFFS, ensure_bpffs, is_bpffs

_STATE: Final = Path("/run/pyciliumlib")
_LAYOUT: Final = re.compile(r"([a-z]+-)?v\d+")


@frozen
class PinLayout:
    """Whose pins lie in a root, and which version of them: any other is refused.

    `owner` is the class that pins, `name` that of the directory below the root, such as "v2".
    """

    owner: str
    name: str

    def __str__(self) -> str:
        return f"{self.name} of {self.owner}"


class PinRoot(Closeable):
    """A directory on a bpffs that one process at a time owns.

    Maps are pinned below `maps`, links below `links`; what does not fit a map is in the file
    `state`, outside of the bpffs. The lock goes with the process, however it ends.
    """

    def __init__(self, path: str | os.PathLike[str], layout: PinLayout) -> None:
        """Make or open the directory and lock it.

        Raises InvalidError if it is not on a BPF file system; LockedError if another process, or
        another object of this one, holds it; LayoutError if its pins are of another layout.
        """
        self.path = Path(path)
        self.layout = layout
        _check_bpffs(self.path)
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._lock()
            self._check_layout()
            self.maps = self.directory("maps")
            self.links = self.directory("links")
            if not any(self.maps.iterdir()):
                # the state of maps that are gone, as after a bpffs was unmounted
                shutil.rmtree(self.state.parent, ignore_errors=True)
        except BaseException:
            os.close(self._fd)
            raise

    @classmethod
    def existing(cls, path: str | os.PathLike[str], layout: PinLayout) -> PinRoot:
        """The root that an earlier process left; NotFoundError if there is none."""
        if not _layouts(Path(path)):
            raise NotFoundError(
                f"nothing is pinned at {path}: make a {layout.owner} with this pin_root"
            )
        return cls(path, layout)

    @property
    def state(self) -> Path:
        """The file beside the pins; its directory exists."""
        digest = hashlib.sha256(os.fsencode(self.path.absolute())).hexdigest()[:16]
        directory = _STATE / f"{self.layout.owner.lower()}s" / digest
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        return directory / "state.sqlite"

    def directory(self, name: str) -> Path:
        """A directory of the layout, which is made if it is missing."""
        directory = self.path / self.layout.name / name
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        return directory

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
                f"another process, or another {self.layout.owner} of this one, holds {self.path}: "
                "close that one, or use another pin_root"
            ) from None

    def _check_layout(self) -> None:
        others = [name for name in _layouts(self.path) if name != self.layout.name]
        if others:
            raise LayoutError(
                f"{self.path} holds pins of layout {others[0]}, this version writes {self.layout}: "
                "take another pin_root, run the version that made them, or remove the directory "
                "(connections are decided afresh then)"
            )


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
        return sorted(p.name for p in path.iterdir() if _LAYOUT.fullmatch(p.name))
    return []
