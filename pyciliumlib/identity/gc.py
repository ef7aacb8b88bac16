"""Collects the numbers that no node uses any more; one process of a cluster runs it."""

from __future__ import annotations

import logging

from pyciliumlib.errors import LabelError
from pyciliumlib.identity.labels import Labels
from pyciliumlib.identity.shared import BASE_PATH, slave_prefix
from pyciliumlib.store import Store, locked

_log = logging.getLogger(__name__)


class IdentityCollector:
    """Deletes master keys without users, in two rounds.

    A number goes only if the round before already found it unused and its key has not changed
    since, so a node has at least the time between two rounds to claim it (15 minutes in Cilium).
    `numbers` is the range of the collector's own cluster; others' are left alone.
    """

    def __init__(self, store: Store, numbers: range, base: str = BASE_PATH) -> None:
        self._store = store
        self._numbers = numbers
        self._base = base
        self._marked: dict[str, int] = {}

    def collect(self) -> list[int]:
        """One round; the numbers that were deleted. Raises LockedError if a lock stays held."""
        deleted: list[int] = []
        marked: dict[str, int] = {}
        prefix = f"{self._base}/id/"
        for entry in self._store.entries(prefix):
            number = entry.key.removeprefix(prefix)
            if not number.isdecimal() or int(number) not in self._numbers:
                continue
            try:
                labels = Labels.from_sorted_text(entry.value)
            except LabelError as error:
                _log.warning("store key %r: %s; not collected", entry.key, error)
                continue
            if self._in_use(labels, number):
                continue
            if self._marked.get(entry.key) != entry.revision:
                marked[entry.key] = entry.revision
                continue
            with locked(self._store, f"{self._base}/locks/{entry.value}"):
                if not self._in_use(labels, number) and self._store.delete(
                    entry.key, entry.revision
                ):
                    deleted.append(int(number))
        self._marked = marked
        return deleted

    def _in_use(self, labels: Labels, number: str) -> bool:
        prefix = slave_prefix(self._base, labels)
        return any(
            "/" not in entry.key[len(prefix) :] and entry.value == number
            for entry in self._store.entries(prefix)
        )
