"""The stream of flows that loaded programs tell."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any

from pyciliumlib.flow.flow import Flow, Namer, ServiceNamer, decode
from pyciliumlib.kernel import Object
from pyciliumlib.kernel.ring import RingBuffer

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


class FlowStream:
    """Flows from the ring buffer of loaded programs; each is told to one reader."""

    def __init__(
        self,
        programs: Object,
        event: np.dtype[Any],
        namer: Namer,
        services: ServiceNamer | None = None,
    ) -> None:
        """`event` is the layout of `struct event`; the others are those of `decode`."""
        self._ring = RingBuffer(programs.maps["events"], event, lost=programs.maps["events_lost"])
        self._namer = namer
        self._services = services
        #: Events that were read and passed over, as of a kind that is not known here.
        self.unknown = 0

    @property
    def lost(self) -> int:
        """Events that found the ring full since the maps were made."""
        return self._ring.dropped

    def read(self, timeout: float = 0.0) -> list[Flow]:
        """What is there now; waits up to `timeout` seconds if there is nothing."""
        if timeout > 0 and not self._ring.wait(timeout):
            return []
        return self._decode(self._ring.drain())

    def follow(self, timeout: float | None = None) -> Iterator[Flow]:
        """Flows as they come, until `timeout` seconds bring none (None: until it is closed)."""
        while self._ring.wait(timeout):
            yield from self._decode(self._ring.drain())

    async def __aiter__(self) -> AsyncIterator[Flow]:
        while await self._ring.readable():
            for flow in self._decode(self._ring.drain()):
                yield flow

    def close(self) -> None:
        """End every reader."""
        self._ring.close()

    def _decode(self, events: npt.NDArray[Any]) -> list[Flow]:
        flows = list(decode(events, boot_time(), self._namer, self._services))
        self.unknown += len(events) - len(flows)
        return flows


def boot_time() -> float:
    """The Unix time, in seconds, at which CLOCK_MONOTONIC was zero."""
    return time.time() - time.monotonic()
