"""Waiting until what a program may have read before is read no more."""

from __future__ import annotations

import time
from typing import Final

from pyciliumlib.kernel._binding import lib

#: Longer than any program runs.
_LONG: Final = 1.0


def wait_for_programs() -> None:
    """Returns when every BPF program that runs at the call has ended, about 20 ms later.

    Programs that a process runs by `Program.run` count too. Where the kernel cannot say (a CPU
    without ticks, `nohz_full`, or a sandbox), this waits a second, which no program takes.
    """
    if lib.pcl_wait_for_programs():
        time.sleep(_LONG)
