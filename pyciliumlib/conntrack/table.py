"""The two maps of flows, read and cleaned from user space."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from attrs import define, evolve

from pyciliumlib.conntrack.model import (
    BY_BACKEND,
    BY_SERVICE,
    Clock,
    FlowEntry,
    FlowKey,
    jiffies_left,
    sent_by,
)
from pyciliumlib.errors import ExistsError
from pyciliumlib.types import MapLike, address_from_bytes

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


class Conntrack:
    """The flow table: `flows` of which both sides have spoken, `pending` ones still unreplied.

    Needs only two maps that meet `MapLike` and the kernel's clock; it owns neither map. A flow that
    goes by a service has two entries in the maps and is shown as one.
    """

    def __init__(
        self, flows: MapLike, pending: MapLike, clock: Clock, frontends: MapLike | None = None
    ) -> None:
        """`frontends` is `lb_frontends`, where flows may be translated."""
        self._flows = flows
        self._pending = pending
        self._frontends = frontends
        self.clock = clock

    def __iter__(self) -> Iterator[FlowEntry]:
        """All live entries; expired ones are left out."""
        found = _Found(self)
        for rows in found.tables:
            yield from found.entries(rows, rows.values["state"] & BY_SERVICE == 0)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def get(self, key: FlowKey) -> FlowEntry | None:
        """The live entry of one flow, or None; of a translated one by either of its two keys."""
        found = _Found(self)
        row = key.packed(self._flows.key_dtype)
        by = found.by_service.get(row.tobytes())
        for rows in found.tables:
            state, frontend = rows.values["state"], rows.values["frontend"]
            mine = (rows.keys == row[0]) & (state & BY_SERVICE == 0)
            if by is not None:  # its other entry is the one that tells all
                mine |= (state & BY_BACKEND != 0) & (frontend == by["frontend"])
            for entry in found.entries(rows, mine):
                # a dead one in `flows` may hide a live pending one
                if key in (entry.key, entry.service_key):
                    return entry
        return None

    def collect(self) -> int:
        """Delete what has expired; how many entries went.

        This frees memory, which another flow would also get. An expired entry opens nothing
        however long it lies there, but for one thing: where nobody collects, packets of just that
        flow may pass within the last 8192 jiffies before these wrap in 32 bits, counted from when
        the flow was last looked at (8 s in 50 days at 1000 Hz), if nothing has changed since.
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
        if value is None or jiffies_left(value.expires, value.expires_high, self._now()) <= 0:
            return value is not None
        with contextlib.suppress(ExistsError):  # and once more, since it was taken
            table.update(key, value, "new")
        return False

    def _expired(self, values: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
        expires, high = values["expires"].astype("i8"), values["expires_high"].astype("i8")
        return jiffies_left(expires, high, self._now()) <= 0

    def _now(self) -> int:
        return self.clock.jiffies64(time.clock_gettime_ns(time.CLOCK_MONOTONIC))


@define
class _Rows:
    """What one of the tables held."""

    keys: npt.NDArray[Any]
    values: npt.NDArray[Any]
    replied: bool


class _Found:
    """Both tables at one moment, and the frontends by number."""

    def __init__(self, conntrack: Conntrack) -> None:
        frontends = conntrack._frontends
        self.tables = [
            _Rows(*table.lookup_batch(), replied) for table, replied in conntrack._tables()
        ]
        self._now = conntrack._now()
        self._clock = conntrack.clock
        self._frontends: Any = frontends.lookup_batch()[1] if frontends is not None else None
        self.by_service = {
            rows.keys[at].tobytes(): rows.values[at]
            for rows in self.tables
            for at in (rows.values["state"] & BY_SERVICE).nonzero()[0]
        }

    def entries(self, rows: _Rows, wanted: npt.NDArray[np.bool_]) -> Iterator[FlowEntry]:
        """The live ones of a table's rows that are wanted."""
        for at in wanted.nonzero()[0]:
            key, value = rows.keys[at], rows.values[at]
            entry = FlowEntry.decode(key, value, self._clock, self._now, rows.replied)
            if entry.expires_in <= 0:
                continue
            if self._frontends is not None and value["state"] & BY_BACKEND:
                entry = self._complete(entry, value, rows.keys.dtype)
            yield entry

    def _complete(self, entry: FlowEntry, value: Any, dtype: Any) -> FlowEntry:
        """The entry with its service, and with what the opener has sent by the other entry."""
        row = self._frontends[int(value["frontend"])]
        service = address_from_bytes(row["addr"].tobytes()), int(row["port"])
        entry = evolve(entry, service=service)
        assert entry.service_key is not None
        other = self.by_service.get(entry.service_key.packed(dtype).tobytes())
        if other is None:
            return entry
        packets, size = sent_by(other, int(other["opener"]))
        return evolve(
            entry,
            packets=(entry.packets[0] + packets, entry.packets[1]),
            bytes=(entry.bytes[0] + size, entry.bytes[1]),
        )
