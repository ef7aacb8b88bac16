"""The end of sockets whose backend is gone."""

from __future__ import annotations

import logging
import threading
from typing import Final

from pyciliumlib.errors import PyCiliumError
from pyciliumlib.loadbalancer.sockets import Orphan, Sockets
from pyciliumlib.net import SocketDiag, every_netns

_log = logging.getLogger(__name__)
#: Seconds after a change, each after the one before. A socket that was translated just when its
#: backend went is found by a later look, as the kernel lists it only when its connect() goes on.
_LOOKS: Final = (0.0, 0.1, 1.0)


class SocketTerminator:
    """A thread that ends sockets whose backend is gone, after each change that may leave some.

    An application that waits for such a socket would wait in vain: nobody is left who could send a
    reset. It gets ECONNABORTED and connects again, to a backend that is there. The sockets are
    looked for in every network namespace, and must have been connected by our programs to just
    that backend.
    """

    def __init__(self, sockets: Sockets) -> None:
        self._sockets = sockets
        self._woken = threading.Event()
        self._ending = False
        self.ended = 0
        """How many sockets were ended so far."""
        self._thread = threading.Thread(
            target=self._run, name="pyciliumlib-socket-terminator", daemon=True
        )
        self._thread.start()

    def wake(self) -> None:
        """Backends have gone."""
        self._woken.set()

    def close(self) -> None:
        """End the thread."""
        self._ending = True
        self._woken.set()
        self._thread.join()

    def _run(self) -> None:
        while self._woken.wait() and not self._ending:
            self._woken.clear()
            for pause in _LOOKS:
                if self._woken.wait(pause):
                    break  # another change: begin anew
                self._look(last=pause == _LOOKS[-1])

    def _look(self, *, last: bool) -> None:
        try:
            orphans = self._sockets.orphans()
            if orphans:
                self._end(orphans)
            if last:
                self._sockets.forget(orphans)
        except PyCiliumError as error:
            _log.warning("sockets whose backend is gone cannot be read: %s", error)

    def _end(self, orphans: list[Orphan]) -> None:
        """End the sockets that are connected to the backend that they got."""
        wanted = {(orphan.cookie, orphan.peer) for orphan in orphans}
        protocols = {orphan.protocol for orphan in orphans}
        for netns in every_netns():
            try:
                with SocketDiag(netns) as diag:
                    found = [one for protocol in protocols for one in diag.connected(protocol)]
                    for one in found:
                        if (one.cookie, one.peer) in wanted:
                            self.ended += diag.destroy(one)
            except (PyCiliumError, OSError) as error:
                _log.warning("sockets whose backend is gone stay in %s: %s", netns, error)
