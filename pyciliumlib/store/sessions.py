"""A session that renews itself, for the stores of this package."""

from __future__ import annotations

import logging
import threading
import weakref
from typing import Protocol

from pyciliumlib.errors import ClosedError, StateError

_log = logging.getLogger(__name__)
# A renewal may fail twice before the session ends.
_RENEWALS_PER_TTL = 3


class SessionOwner(Protocol):
    """What a store does for its sessions."""

    def renew_session(self, session: str, ttl: float) -> bool: ...

    def session_alive(self, session: str) -> bool: ...

    def end_session(self, session: str) -> None: ...


class StoreSession:
    """A session of `ttl` seconds in a store; made by its `session()`."""

    def __init__(self, owner: SessionOwner, id_: str, ttl: float, keep_alive: bool) -> None:
        self._owner = owner
        self._id = id_
        self._ttl = ttl
        self._closed = threading.Event()
        if keep_alive:
            # Weak, so that the thread does not keep a forgotten store, and its file, alive.
            threading.Thread(
                target=_keep_alive,
                args=(weakref.ref(self), self._closed, ttl / _RENEWALS_PER_TTL),
                name=f"store-session-{id_}",
                daemon=True,
            ).start()

    @property
    def id(self) -> str:
        """The name of the session in its store."""
        return self._id

    @property
    def alive(self) -> bool:
        """Whether the store still knows it."""
        return not self._closed.is_set() and self._owner.session_alive(self._id)

    def renew(self) -> bool:
        """Let it live for another ttl; False if it had ended."""
        return not self._closed.is_set() and self._owner.renew_session(self._id, self._ttl)

    def close(self) -> None:
        """End it and delete its keys; a second call does nothing."""
        if not self._closed.is_set():
            self._closed.set()
            self._owner.end_session(self._id)


def _keep_alive(
    reference: weakref.ref[StoreSession], closed: threading.Event, interval: float
) -> None:
    while not closed.wait(interval):
        session = reference()
        if session is None:
            return
        try:
            renewed = session.renew()
        except ClosedError:
            return
        except StateError as error:
            _log.warning("store session %s could not be renewed: %s", session.id, error)
            continue
        if not renewed:
            _log.warning("store session %s ended: it was not renewed in time", session.id)
            return
        del session
