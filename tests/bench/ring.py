"""How fast events leave a ring buffer: in bulk and one by one, at rest and while they come.

Beside it libbpf's own consumer in C, which copies each event into an array as `drain()` does. The
producer is a BPF program by test-run. Times are the CPU of the thread that consumes.
"""

from __future__ import annotations

import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from pyciliumlib.flow import decode
from pyciliumlib.flow.program import FlowStream
from pyciliumlib.kernel import Object, ObjectSpec, RingBuffer
from pyciliumlib.resources import object_path
from tests.bench.compiled import bpf_object, c_program
from tests.bench.figure import Figure, at_least

ROUNDS = 7
RESTING = 200_000  # events in a ring of 16 MiB, which holds 233,016 of 72 bytes
LIVE = 2_000_000
FLOWS = 50_000
PACKET = bytes(64)
#: A UDP packet of nobody's: the endpoint program tells of its drop, so one event each run.
_FORGED = bytes.fromhex(
    "0e580af400010a580af400020800"
    "45000028000040004011e4c90af400020af40003" + "30390035" + "00140000" + "00" * 12
)

Rates = dict[str, list[float]]


def figures() -> Iterator[Figure]:
    """Events a second out of a ring buffer, by each way."""
    spec = ObjectSpec.open(bpf_object("ring"))
    with c_program("ring_consume") as consumer, spec.load() as obj:
        dtype = spec.type("event").dtype
        with RingBuffer(obj.maps["events"], dtype, lost=obj.maps["lost"]) as ring:
            rates = _rounds(obj, ring, consumer)
    yield _bulk("ring buffer, drain() of what is there", rates, "drain at rest", "C at rest")
    yield _bulk("ring buffer, drain() while events come", rates, "drain live", "C live")
    peer = statistics.median(rates["C at rest"])
    for way, name in (("bytes", "drain_bytes()"), ("records", "for event in ring.records()")):
        rate = statistics.median(rates[way])
        yield Figure(f"ring buffer, {name}", rate, "M events/s", "libbpf in C, at rest", peer)
    yield from _flows(peer)


def _bulk(name: str, rates: Rates, ours: str, theirs: str) -> Figure:
    return Figure(
        name,
        statistics.median(rates[ours]),
        "M events/s",
        f"libbpf in {theirs}",
        statistics.median(rates[theirs]),
        at_least(8),
    )


def _rounds(obj: Object, ring: RingBuffer, consumer: Path) -> Rates:
    """Million events a second of the consumer's CPU, of each way and round."""
    ways: dict[str, Callable[[], float]] = {
        "drain at rest": lambda: _resting(obj, lambda: len(ring.drain())),
        "C at rest": lambda: _c_resting(obj, consumer),
        "bytes": lambda: _resting(obj, lambda: len(ring.drain_bytes())),
        "records": lambda: _resting(obj, lambda: sum(1 for _ in ring.records(timeout=0))),
        "drain live": lambda: _live(obj, ring),
        "C live": lambda: _c_live(obj, ring, consumer),
    }
    rates: Rates = {way: [] for way in ways}
    for _ in range(ROUNDS):
        for way, measure in ways.items():
            rates[way].append(measure())
    return rates


def _resting(obj: Object, consume: Callable[[], int]) -> float:
    obj.programs["produce"].run(PACKET, repeat=RESTING)
    started = time.thread_time()
    count = consume()
    seconds = time.thread_time() - started
    _expect(count, RESTING)
    return count / seconds / 1e6


def _live(obj: Object, ring: RingBuffer) -> float:
    lost, taken = ring.dropped, 0
    producer = _producer(obj)
    producer.start()
    started = time.thread_time()
    while ring.wait(0.15):
        taken += len(ring.drain())
    seconds = time.thread_time() - started
    producer.join()
    _expect(taken + ring.dropped - lost, LIVE)
    return taken / seconds / 1e6


def _c_resting(obj: Object, consumer: Path) -> float:
    obj.programs["produce"].run(PACKET, repeat=RESTING)
    with _c_consumer(obj, consumer, RESTING) as process:
        taken, rate = _said(process)
    _expect(taken, RESTING)
    return rate


def _c_live(obj: Object, ring: RingBuffer, consumer: Path) -> float:
    lost = ring.dropped
    with _c_consumer(obj, consumer, LIVE) as process:
        producer = _producer(obj)
        producer.start()
        taken, rate = _said(process)
        producer.join()
    _expect(taken + ring.dropped - lost, LIVE)
    return rate


def _producer(obj: Object) -> threading.Thread:
    return threading.Thread(
        target=obj.programs["produce"].run, args=(PACKET,), kwargs={"repeat": LIVE}
    )


def _c_consumer(obj: Object, consumer: Path, room: int) -> subprocess.Popen[str]:
    """The C program, when it has mapped the ring."""
    fd = obj.maps["events"].fd
    process = subprocess.Popen(
        [str(consumer), str(fd), "64", str(room)],
        pass_fds=[fd],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    process.stdout.readline()
    return process


def _said(process: subprocess.Popen[str]) -> tuple[int, float]:
    """How many events the C program took, and million of them a second of its CPU."""
    count, nanoseconds = map(int, process.communicate()[0].split())
    return count, count / nanoseconds * 1e3


def _expect(count: int, wanted: int) -> None:
    if count != wanted:
        raise AssertionError(f"{count} events were read or lost, and {wanted} were sent")


def _flows(peer: float) -> Iterator[Figure]:
    """Real events of the endpoint program as `Flow` objects."""
    spec = ObjectSpec.open(object_path("endpoint"))
    spec.resize("events", 1 << 24)
    with spec.load() as obj:
        dtype = spec.type("event").dtype
        send = obj.programs["from_endpoint"].run
        rates = []
        with RingBuffer(obj.maps["events"], dtype) as ring:
            for _ in range(3):
                send(_FORGED, {"ifindex": 1}, repeat=FLOWS)
                started = time.thread_time()
                count = sum(1 for _ in decode(ring.drain(), 0.0))
                rates.append(count / (time.thread_time() - started) / 1e6)
                _expect(count, FLOWS)
        yield _objects("ring buffer, decoded into Flow objects", rates, peer)
        rates = []
        stream = FlowStream(obj, dtype, lambda address, identity: None)
        for _ in range(3):
            send(_FORGED, {"ifindex": 1}, repeat=FLOWS)
            started = time.thread_time()
            count = len(stream.read())
            rates.append(count / (time.thread_time() - started) / 1e6)
            _expect(count, FLOWS)
        stream.close()
        yield _objects("ring buffer, Datapath.flows()", rates, peer)


def _objects(name: str, rates: list[float], peer: float) -> Figure:
    return Figure(name, statistics.median(rates), "M events/s", "libbpf in C, at rest", peer)
