"""The kernel's clock, learned from the kernel."""

from __future__ import annotations

import functools
import time

from pyciliumlib.conntrack.model import Clock
from pyciliumlib.kernel import ObjectSpec
from pyciliumlib.resources import object_path


@functools.cache
def kernel_clock() -> Clock:
    """The running kernel's jiffies against CLOCK_MONOTONIC, by test runs of `clock.bpf.c`."""
    with ObjectSpec.open(object_path("clock")).load() as loaded:

        def sample() -> tuple[int, int]:
            loaded.programs["clock_sample"].run(bytes(64))
            seen = loaded.maps["clock_samples"][0]
            return seen.jiffies, seen.monotonic_ns

        first = sample()
        clocks = Clock.fitting(*first)
        if len(clocks) == 1:
            return clocks[0]
        time.sleep(0.25)
        return Clock.calibrate(first, sample())
