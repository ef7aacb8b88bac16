"""The owner of one file descriptor of the kernel."""

from __future__ import annotations

import os
import warnings
from typing import TYPE_CHECKING

from pyciliumlib.closeable import Closeable
from pyciliumlib.errors import ClosedError

if TYPE_CHECKING:
    pass


class Resource(Closeable):
    """Holds a file descriptor until `close()`; also a context manager.

    Calls from several threads are fine; close it when none of them uses it any more.
    One that is forgotten is closed by the garbage collector with a `ResourceWarning`.
    """

    __slots__ = ("__weakref__", "_fd", "name")

    def __init__(self, fd: int, name: str) -> None:
        self._fd = fd
        self.name = name

    @property
    def fd(self) -> int:
        """The file descriptor; raises ClosedError after `close()`."""
        if self._fd < 0:
            raise ClosedError(f"{self._what()} was closed; open or load it again")
        return self._fd

    def _check_open(self) -> None:
        """Raise ClosedError after `close()`: what a call on a closed descriptor failed of."""
        _ = self.fd

    @property
    def closed(self) -> bool:
        return self._fd < 0

    def close(self) -> None:
        """Give the descriptor back; what is pinned or attached lives on. Twice is fine."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def release(self) -> int:
        """The descriptor, which the caller owns from now on; this object is closed."""
        fd, self._fd = self.fd, -1
        return fd

    def __del__(self) -> None:
        if getattr(self, "_fd", -1) >= 0:
            warnings.warn(
                f"{self._what()} was never closed", ResourceWarning, stacklevel=2, source=self
            )
            self.close()

    def _what(self) -> str:
        return f"{type(self).__name__.lower()} {self.name!r}"
