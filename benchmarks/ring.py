"""How fast events leave a ring buffer: in bulk beside one by one, at rest and while they come.

    python -m benchmarks.ring

Every figure is the median of ROUNDS; the producer is a BPF program by test-run.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sysconfig
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from pyciliumlib.kernel import Object, ObjectSpec, RingBuffer

ROUNDS = 7
RESTING = 200_000  # events in a ring of 16 MiB, which holds 233,016 of 72 bytes
LIVE = 4_000_000
PACKET = bytes(64)
SOURCE = Path(__file__).parent / "bpf" / "ring.bpf.c"


def measure() -> dict[str, float]:
    """Million events a second by name of the figure."""
    with tempfile.TemporaryDirectory() as directory:
        spec = ObjectSpec.open(_compiled(Path(directory)))
    with spec.load() as obj:
        dtype = spec.type("event").dtype
        with RingBuffer(obj.maps["events"], dtype, lost=obj.maps["lost"]) as ring:
            return {
                "drain to numpy": _resting(obj, lambda: len(ring.drain())),
                "drain_bytes": _resting(obj, lambda: len(ring.drain_bytes())),
                "records()": _resting(obj, lambda: sum(1 for _ in ring.records(timeout=0))),
                "drain while events come": _live(obj, ring),
            }


def _resting(obj: Object, consume: Callable[[], int]) -> float:
    rates = []
    for _ in range(ROUNDS):
        obj.programs["produce"].run(PACKET, repeat=RESTING)
        started = time.perf_counter()
        count = consume()
        rates.append(count / (time.perf_counter() - started) / 1e6)
        assert count == RESTING
    return statistics.median(rates)


def _live(obj: Object, ring: RingBuffer) -> float:
    """Events a second of the consumer's own time, with the producer on another CPU."""
    rates = []
    for _ in range(ROUNDS):
        lost = ring.dropped
        producer = threading.Thread(
            target=obj.programs["produce"].run, args=(PACKET,), kwargs={"repeat": LIVE}
        )
        producer.start()
        taken, busy = 0, 0.0
        while producer.is_alive() or ring.pending:
            ring.wait(0.01)
            started = time.perf_counter()
            taken += len(ring.drain())
            busy += time.perf_counter() - started
        producer.join()
        lost = ring.dropped - lost
        assert taken + lost == LIVE, (taken, lost)
        rates.append(taken / busy / 1e6)
    return statistics.median(rates)


def _compiled(directory: Path) -> bytes:
    clang = os.environ.get("CLANG") or shutil.which("clang-19") or shutil.which("clang") or "clang"
    obj = directory / "ring.bpf.o"
    include = f"-I/usr/include/{sysconfig.get_config_var('MULTIARCH')}"
    flags = ["-O2", "-g", "-Wall", "-Werror", "-target", "bpf", "-mcpu=v3", include]
    subprocess.run([clang, *flags, "-c", str(SOURCE), "-o", str(obj)], check=True)
    return obj.read_bytes()


if __name__ == "__main__":
    for name, rate in measure().items():
        print(f"{name:28} {rate:8.2f} M events/s")
