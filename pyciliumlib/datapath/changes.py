"""One change of a datapath at a time, and none once it is closed."""

from __future__ import annotations

import threading
from types import TracebackType

from pyciliumlib.errors import ClosedError


class Changes:
    """The lock of all that changes a datapath; entering it after `close()` is a ClosedError.

    A thread that holds it may enter it again.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._closed = False

    def close(self) -> None:
        """Let nobody in any more."""
        with self._lock:
            self._closed = True

    def check(self) -> None:
        """Raise ClosedError after `close()`."""
        if self._closed:
            raise ClosedError("this datapath is closed; make or open another one")

    def __enter__(self) -> None:
        self._lock.acquire()
        try:
            self.check()
        except ClosedError:
            self._lock.release()
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._lock.release()
