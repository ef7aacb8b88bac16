"""Building Maglev tables, beside the paper's loop in C over offsets and skips that are given.

Both are the best of their rounds, by the thread's CPU time.
"""

from __future__ import annotations

import ipaddress
import subprocess
import time
from collections.abc import Iterator

from pyciliumlib.loadbalancer import Backend, Maglev
from tests.bench.compiled import c_program
from tests.bench.figure import Figure, ratio_at_most

SIZES = (16381, 65521, 131071)
COUNTS = (100, 1000)
ROUNDS = 15
#: From here on the issue of the load balancer names a target.
_HELD_FROM = 65521


def figures() -> Iterator[Figure]:
    """Milliseconds a table, texts and hashes of the backends included.

    Built first: of values that were never used. Rebuilt: one of them is new.
    """
    with c_program("maglev_fill") as program:
        for size in SIZES:
            for count in COUNTS:
                floor = int(subprocess.check_output([program, str(size), str(count), str(ROUNDS)]))
                target = ratio_at_most(1.5) if size >= _HELD_FROM else None
                for name, first in (("rebuilt", False), ("built first", True)):
                    yield Figure(
                        f"Maglev, {size} slots, {count} backends, {name}",
                        _best(size, count, first) / 1e6,
                        "ms",
                        "C, offsets given",
                        floor / 1e6,
                        target,
                    )


def _best(size: int, count: int, first: bool) -> int:
    """Nanoseconds of the best round; each changes one backend, so that no table is shared."""
    start = ipaddress.IPv4Address("10.0.0.1")
    maglev, best = Maglev(size), 1 << 62
    backends = [Backend(start + number, 8080) for number in range(count)]
    for number in range(ROUNDS):
        if first:
            maglev = Maglev(size)
            backends = [Backend(backend.address, backend.port) for backend in backends]
        backends[-1] = Backend(start + count + number % 2, 8080)
        begin = time.thread_time_ns()
        maglev.build(backends)
        best = min(best, time.thread_time_ns() - begin)
    return best
