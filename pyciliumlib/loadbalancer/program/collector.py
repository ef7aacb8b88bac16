"""A thread that looks for flows that have expired, as often as it pays."""

from __future__ import annotations

import threading
from collections.abc import Mapping

from pyciliumlib.closeable import Closeable
from pyciliumlib.conntrack.collecting import Pace
from pyciliumlib.conntrack.program import kernel_clock
from pyciliumlib.kernel import Map, wait_for_programs
from pyciliumlib.loadbalancer.collecting import FlowCollector


class CollectingThread(Closeable):
    """Collects every five minutes at first, then more or less often by what it finds."""

    def __init__(self, maps: Mapping[str, Map], pace: Pace | None = None) -> None:
        """`maps` are the program's."""
        self._collector = FlowCollector(maps, kernel_clock(), wait_for_programs)
        self._pace = pace or Pace()
        self._ending = threading.Event()
        self._thread = threading.Thread(
            target=self._keep, name="pyciliumlib-collector", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """End the thread."""
        self._ending.set()
        self._thread.join()

    def _keep(self) -> None:
        while not self._ending.wait(self._pace.seconds):
            self._pace = self._pace.after(self._collector.collect(), self._collector.size)
