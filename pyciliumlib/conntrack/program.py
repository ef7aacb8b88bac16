"""The kernel's clock, learned from the kernel."""

from __future__ import annotations

import functools

from pyciliumlib.conntrack.model import Clock
from pyciliumlib.kernel import ObjectSpec
from pyciliumlib.resources import object_path


@functools.cache
def kernel_clock() -> Clock:
    """The running kernel's jiffies against CLOCK_MONOTONIC, by one test run of `clock.bpf.c`."""
    with ObjectSpec.open(object_path("clock")).load() as loaded:
        loaded.programs["clock_sample"].run(bytes(64))
        sample = loaded.maps["clock_samples"][0]
    return Clock.calibrate(sample.jiffies, sample.monotonic_ns)
