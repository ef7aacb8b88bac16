"""The two maps of flows, read and cleaned from user space."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pyciliumlib.conntrack.model import Clock, FlowEntry, FlowKey, signed32
from pyciliumlib.errors import ExistsError
from pyciliumlib.types import MapLike

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


class Conntrack:
    """The flow table: `flows` of which both sides have spoken, `pending` ones still unreplied.

    Needs only two maps that meet `MapLike` and the kernel's clock; it owns neither map.
    """

    def __init__(self, flows: MapLike, pending: MapLike, clock: Clock) -> None:
        self._flows = flows
        self._pending = pending
        self.clock = clock

    def __iter__(self) -> Iterator[FlowEntry]:
        """All live entries; expired ones are left out."""
        now = self._now()
        for table, replied in self._tables():
            keys, values = table.lookup_batch()
            for key, value in zip(keys, values, strict=True):
                entry = FlowEntry.decode(key, value, self.clock, now, replied)
                if entry.expires_in > 0:
                    yield entry

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def get(self, key: FlowKey) -> FlowEntry | None:
        """The live entry of one flow, or None."""
        row = key.packed(self._flows.key_dtype)
        for table, replied in self._tables():
            keys, values = table.lookup_batch()
            match = (keys == row[0]).nonzero()[0]
            if len(match):
                value = values[match[0]]
                entry = FlowEntry.decode(row[0], value, self.clock, self._now(), replied)
                if entry.expires_in > 0:  # a dead one in `flows` may hide a live pending one
                    return entry
        return None

    def collect(self) -> int:
        """Delete what has expired; how many entries went.

        The programs never use an expired entry, so this only frees memory.
        """
        return sum(self._collect(table) for table, _ in self._tables())

    def flush(self) -> int:
        """Delete every entry, live ones too; their next packet is decided afresh."""
        return sum(table.delete_batch(table.lookup_batch()[0]) for table, _ in self._tables())

    def _tables(self) -> tuple[tuple[MapLike, bool], ...]:
        """Each map, and whether its flows have been replied to."""
        return (self._flows, True), (self._pending, False)

    def _collect(self, table: MapLike) -> int:
        keys, values = table.lookup_batch()
        return sum(self._drop(table, key) for key in keys[self._expired(values)])

    def _drop(self, table: MapLike, key: np.void) -> bool:
        """Delete an entry that had expired, unless it was written anew since it was read."""
        value = table.pop(key, None)
        if value is None or signed32(value.expires - self._now()) <= 0:
            return value is not None
        with contextlib.suppress(ExistsError):  # and once more, since it was taken
            table.update(key, value, "new")
        return False

    def _expired(self, values: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
        import numpy as np

        left = (values["expires"].astype("u4") - np.uint32(self._now())).astype("i4")
        return left <= 0

    def _now(self) -> int:
        return self.clock.jiffies(time.clock_gettime_ns(time.CLOCK_MONOTONIC))
