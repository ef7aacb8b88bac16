"""Sockets in a network namespace, for code that runs elsewhere."""

from __future__ import annotations

import collections
import socket
import threading
from typing import Final

from pyciliumlib.closeable import Closeable
from pyciliumlib.net import NetNS, NetNSWorker

#: Sockets that are made at a time: to reach the namespace costs more than a socket.
_BATCH: Final = 32


class NamespaceSockets(Closeable):
    """Makes sockets in a namespace, as `socket.socket` does where it is called.

        with NamespaceSockets(netns) as make_socket:
            async with HealthChecks(balancer, TCPCheck(), make_socket=make_socket) as health:
                ...

    Sockets that were handed out are their users'. Calls from several threads are fine.
    """

    def __init__(self, netns: NetNS) -> None:
        """Start a thread in `netns`, which may be closed afterwards."""
        self._worker = NetNSWorker(netns)
        self._lock = threading.Lock()
        self._ready: dict[tuple[int, int], collections.deque[socket.socket]] = {}

    def __call__(self, family: int, kind: int) -> socket.socket:
        """A socket of this family and kind; raises OSError, ClosedError."""
        with self._lock:
            ready = self._ready.setdefault((family, kind), collections.deque())
            if not ready:
                self._worker.call(lambda: _make(ready, family, kind))
            return ready.popleft()

    def close(self) -> None:
        """End the thread, and close what was made and not asked for; again is no error."""
        with self._lock:
            self._worker.close()
            for ready in self._ready.values():
                while ready:
                    ready.pop().close()


def _make(into: collections.deque[socket.socket], family: int, kind: int) -> None:
    """As many as there can be, and one at least."""
    into.append(socket.socket(family, kind))
    try:
        while len(into) < _BATCH:
            into.append(socket.socket(family, kind))
    except OSError:
        return  # the next call tells, if it is still so
