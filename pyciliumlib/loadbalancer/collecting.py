"""Flows that have expired are deleted, so that they evict none that live.

The programs pass over what has expired, but the kernel evicts by last use alone: after many short
connections it would rather keep these than one that idles.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from pyciliumlib.conntrack.model import Clock
from pyciliumlib.types import MapLike

if TYPE_CHECKING:
    import numpy.typing as npt

#: Seconds that a program may take from reading that an entry lives to writing that it lives on.
_RUN: Final = 2
#: Seconds for which the programs are asked to make no entry, and after which none is deleted.
_ASKED: Final = 60
_WORKING: Final = 30
_AT_ONCE: Final = 4096


class FlowCollector:
    """Deletes what has expired of the flows and their entries for answers (`bpf/lib/lb_nat.h`).

    The programs make no entry of these maps meanwhile, and nothing that lives is ever deleted:
    what had expired when it was read cannot come to life before it is deleted.
    """

    def __init__(
        self,
        maps: Mapping[str, MapLike],
        clock: Clock,
        wait: Callable[[], None],
        now: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        """`wait` returns when no program runs that ran before; `now` is the monotonic clock."""
        self._tables = maps["lb_flows"], maps["lb_nat"]
        self._asking, self._clock, self._wait, self._now = maps["lb_collecting"], clock, wait, now

    @property
    def size(self) -> int:
        """How many entries fit."""
        return sum(table.max_entries for table in self._tables)

    def collect(self) -> int:
        """How many entries were deleted; if it takes too long, the next time goes on."""
        until = self._now() + _WORKING * 1_000_000_000
        self._asking.update(0, (self._jiffies() + _ASKED * self._clock.hz) & 0xFFFFFFFF or 1)
        try:
            self._wait()
            return sum(self._collect(table, until) for table in self._tables)
        finally:
            self._asking.update(0, 0)

    def _collect(self, table: MapLike, until: int) -> int:
        keys, values = table.lookup_batch()
        dead, deleted = keys[self._expired(values)], 0
        for first in range(0, len(dead), _AT_ONCE):
            if self._now() > until:
                break
            deleted += table.delete_batch(dead[first : first + _AT_ONCE])
        return deleted

    def _expired(self, values: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
        flows = values["flow"] if "flow" in (values.dtype.names or ()) else values
        left = (flows["expires"].astype("u4") - np.uint32(self._jiffies())).astype("i4")
        expired: npt.NDArray[np.bool_] = left < -_RUN * self._clock.hz
        return expired

    def _jiffies(self) -> int:
        return self._clock.jiffies(self._now())
