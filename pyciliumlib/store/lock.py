"""A lock in a store: one holder at a time among all its clients."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from pyciliumlib.errors import LockedError
from pyciliumlib.store.protocol import Store

_FIRST_WAIT: Final = 0.001
_LONGEST_WAIT: Final = 0.05


@contextmanager
def locked(store: Store, key: str, ttl: float = 25.0, timeout: float = 30.0) -> Iterator[None]:
    """Hold the lock `key`; a holder that dies loses it after `ttl` seconds.

    Raises LockedError when it is not free within `timeout` seconds.
    """
    session = store.session(ttl)
    try:
        deadline, wait = time.monotonic() + timeout, _FIRST_WAIT
        while not store.create(key, session.id, session):
            if time.monotonic() >= deadline:
                raise LockedError(
                    f"store lock {key!r} was not free within {timeout:g} s; its holder is busy, "
                    f"or died and loses it after {ttl:g} s"
                )
            time.sleep(wait)
            wait = min(2 * wait, _LONGEST_WAIT)
        yield
    finally:
        session.close()
