"""Ring buffers: records produced by real programs through test-run, taken in every way there is."""

from __future__ import annotations

import asyncio
import gc
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyciliumlib import errors
from pyciliumlib.kernel.object import Object
from pyciliumlib.kernel.ring import RingBuffer
from pyciliumlib.kernel.spec import ObjectSpec
from tests.bpf.compiled import compile_bpf
from tests.expect import expect

SOURCE = """
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 64 * 1024);
} events SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} lost SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} serial SEC(".maps");

struct event {
	__u64 number;
	__u32 mark;
	__u32 filler[9];
};

static __always_inline __u64 next(void)
{
	__u32 zero = 0;
	__u64 *number = bpf_map_lookup_elem(&serial, &zero);

	return number ? (*number)++ : 0;
}

static __always_inline void count_lost(void)
{
	__u32 zero = 0;
	__u64 *count = bpf_map_lookup_elem(&lost, &zero);

	if (count)
		(*count)++;
}

SEC("tc") int produce(struct __sk_buff *skb)
{
	struct event *event = bpf_ringbuf_reserve(&events, sizeof(*event), 0);
	__u64 number = next();

	if (!event) {
		count_lost();
		return 0;
	}
	__builtin_memset(event, 0, sizeof(*event));
	event->number = number;
	event->mark = skb->mark;
	bpf_ringbuf_submit(event, 0);
	return 0;
}

/* Every third record is discarded after it was reserved. */
SEC("tc") int produce_some(struct __sk_buff *skb)
{
	struct event *event = bpf_ringbuf_reserve(&events, sizeof(*event), 0);
	__u64 number = next();

	if (!event)
		return 0;
	__builtin_memset(event, 0, sizeof(*event));
	event->number = number;
	if (number % 3 == 0)
		bpf_ringbuf_discard(event, 0);
	else
		bpf_ringbuf_submit(event, 0);
	return 0;
}

/* Records of 1 to 256 bytes, each filled with the low byte of its number. */
SEC("tc") int produce_sizes(struct __sk_buff *skb)
{
	__u64 number = next();
	__u64 word = (number & 0xff) * 0x0101010101010101ULL;
	__u64 data[32];

	for (int i = 0; i < 32; i++)
		data[i] = word;
	bpf_ringbuf_output(&events, data, ((number * 37) & 0xff) + 1, 0);
	return 0;
}
"""

# Apart, since the verifier walks through every turn of its loop.
SLOW_SOURCE = """
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 64 * 1024);
} events SEC(".maps");

struct event {
	__u64 number;
	__u32 mark;
	__u32 filler[9];
};

/* Holds its record reserved for milliseconds. */
SEC("tc") int produce_slowly(struct __sk_buff *skb)
{
	struct event *event = bpf_ringbuf_reserve(&events, sizeof(*event), 0);
	__u32 data[64] = {};

	if (!event)
		return 0;
	__builtin_memset(event, 0, sizeof(*event));
	for (int i = 0; i < 20000; i++)
		data[0] = bpf_csum_diff(0, 0, data, sizeof(data), i);
	event->mark = data[0];
	bpf_ringbuf_submit(event, 0);
	return 0;
}
"""

EVENT = np.dtype([("number", "<u8"), ("mark", "<u4"), ("filler", "<u4", (9,))])
PACKET = bytes(64)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_bpf(SOURCE, tmp_path_factory.mktemp("ring"))


@pytest.fixture
def obj(compiled: Path) -> Iterator[Object]:
    """The programs and maps of SOURCE; serial numbers start at 0."""
    expect("map_ringbuf")
    with ObjectSpec.open(compiled).load() as loaded:
        yield loaded


@pytest.fixture
def ring(obj: Object) -> Iterator[RingBuffer]:
    """The consumer of fixed-size events, with its counter of lost ones."""
    with RingBuffer(obj.maps["events"], EVENT, lost=obj.maps["lost"]) as made:
        yield made


def produce(obj: Object, count: int, program: str = "produce") -> None:
    obj.programs[program].run(PACKET, repeat=count)


def numbers(events: Any) -> list[int]:
    return [int(event["number"]) for event in events]


def test_order_through_wraps(obj: Object, ring: RingBuffer) -> None:
    """Records come out once and in order while the ring wraps around many times."""
    for round_ in range(30):
        produce(obj, 1000)
        events = ring.drain()
        assert events.dtype == EVENT
        assert events["number"].tolist() == list(range(round_ * 1000, round_ * 1000 + 1000))
    assert ring.dropped == 0
    assert ring.pending == 0
    assert len(ring.drain()) == 0


def test_content(obj: Object, ring: RingBuffer) -> None:
    """Fields are the program's; a drained array is its own memory."""
    obj.programs["produce"].run(PACKET, ctx={"mark": 0xCAFE})
    (event,) = ring.drain()
    produce(obj, 1100)
    assert (event["number"], event["mark"], event["filler"].tolist()) == (0, 0xCAFE, [0] * 9)


def test_discarded_records_are_passed_over(obj: Object, ring: RingBuffer) -> None:
    """What a program discarded never shows, also as the last of the ring."""
    produce(obj, 301, "produce_some")
    assert numbers(ring.drain()) == [n for n in range(301) if n % 3]
    assert ring.pending == 0


def test_lost_events_are_counted(obj: Object, ring: RingBuffer) -> None:
    """What found the ring full is neither delivered nor forgotten: taken + dropped = produced."""
    produce(obj, 5000)
    taken = len(ring.drain())
    assert taken == ring.size // 56  # 48 bytes of record and 8 of header
    assert ring.dropped == 5000 - taken
    with RingBuffer(obj.maps["events"], EVENT, lost=lambda: 42) as by_call:
        assert by_call.dropped == 42
    with RingBuffer(obj.maps["events"], EVENT) as without:
        with pytest.raises(errors.InvalidError, match="lost="):
            without.dropped  # noqa: B018 - the access is the test


def test_ring_recovers_after_loss(obj: Object, ring: RingBuffer) -> None:
    """After a full ring was drained, new records arrive again in order."""
    produce(obj, 5000)
    ring.drain()
    produce(obj, 10)
    assert numbers(ring.drain()) == list(range(5000, 5010))


def test_drain_max(obj: Object, ring: RingBuffer) -> None:
    """`max` bounds what is taken; the rest stays in the ring."""
    produce(obj, 10)
    assert numbers(ring.drain(max=3)) == [0, 1, 2]
    assert ring.pending == 7 * 56
    assert numbers(ring.drain(max=100)) == list(range(3, 10))
    for bad in (0, -1):
        with pytest.raises(errors.InvalidError):
            ring.drain(max=bad)
        with pytest.raises(errors.InvalidError):
            ring.drain_bytes(max=bad)


def test_iteration_then_drain(obj: Object, ring: RingBuffer) -> None:
    """Records that a broken-off iteration did not get to are still there, in order."""
    produce(obj, 700)
    seen = []
    for event in ring:
        seen.append(int(event["number"]))
        if len(seen) == 5:
            break
    seen += numbers(ring.drain(max=1))
    seen += numbers(ring.drain(max=300))
    seen += [struct.unpack_from("<Q", record)[0] for record in ring.drain_bytes(max=2)]
    seen += numbers(ring.drain())
    assert seen == list(range(700))


def test_records_end_after_silence(obj: Object, ring: RingBuffer) -> None:
    """records(timeout) yields what is there and ends when nothing came for that long."""
    produce(obj, 600)
    started = time.monotonic()
    assert numbers(ring.records(timeout=0.05)) == list(range(600))
    assert 0.05 <= time.monotonic() - started < 5
    assert list(ring.records(timeout=0)) == []


def test_wait(obj: Object, ring: RingBuffer) -> None:
    """wait() says whether there is something; the descriptor polls alike."""
    assert not ring.wait(0)
    assert not ring.wait(0.01)
    produce(obj, 1)
    assert ring.wait()
    assert ring.wait(0)
    with pytest.raises(errors.InvalidError):
        ring.wait(-1)


def sizes_of(first: int, count: int) -> list[bytes]:
    """What produce_sizes makes."""
    return [bytes([n & 0xFF]) * (((n * 37) & 0xFF) + 1) for n in range(first, first + count)]


def test_records_of_any_size(obj: Object) -> None:
    """Without a dtype records are bytes of their own sizes, by every way and through wraps."""
    with RingBuffer(obj.maps["events"]) as ring:
        for round_ in range(30):
            produce(obj, 300, "produce_sizes")
            expected = sizes_of(round_ * 300, 300)
            assert ring.drain_bytes(max=7) == expected[:7]
            assert list(ring.records(timeout=0)) == expected[7:]
        with pytest.raises(errors.InvalidError, match="drain_bytes"):
            ring.drain()


def test_record_of_another_size(obj: Object, ring: RingBuffer) -> None:
    """A record that is not of the dtype is an error that says both sizes, and is not lost."""
    produce(obj, 2)
    produce(obj, 1, "produce_sizes")
    produce(obj, 1)
    assert numbers(ring.drain()) == [0, 1]
    for _ in range(2):
        with pytest.raises(errors.MismatchError) as caught:
            ring.drain()
        assert caught.value.differences == ("record: 75 bytes", "dtype: 48 bytes")
    assert ring.drain_bytes(max=1) == sizes_of(2, 1)
    assert numbers(ring.drain()) == [3]


def test_record_of_another_size_costs_no_other(obj: Object, ring: RingBuffer) -> None:
    """What an iteration had taken before is delivered before the error, not lost with it."""
    produce(obj, 3)
    produce(obj, 1, "produce_sizes")
    assert next(ring.records())["number"] == 0
    assert numbers(ring.drain(max=1)) == [1]
    assert numbers(ring.drain()) == [2]
    for _ in range(2):
        with pytest.raises(errors.MismatchError):
            next(ring.records())


def test_record_still_being_written(tmp_path: Path) -> None:
    """A reserved record is not delivered before it is submitted."""
    with (
        ObjectSpec.open(compile_bpf(SLOW_SOURCE, tmp_path)).load() as obj,
        RingBuffer(obj.maps["events"], EVENT) as ring,
    ):
        for _ in range(50):
            producer = threading.Thread(target=produce, args=(obj, 1, "produce_slowly"))
            producer.start()
            seen_busy = False
            events: Any = []
            while not len(events):
                pending = ring.pending
                events = ring.drain()
                seen_busy |= pending > 0 and not len(events)
            producer.join()
            assert len(events) == 1
            assert events[0]["mark"] != 0  # written just before the submit
            if seen_busy:
                return
    pytest.fail("in 50 tries no record was seen between its reservation and its submission")


def produce_later(obj: Object, count: int, delay: float = 0.05) -> threading.Timer:
    timer = threading.Timer(delay, produce, args=(obj, count))
    timer.start()
    return timer


def test_waiting_iteration_wakes_up(obj: Object, ring: RingBuffer) -> None:
    """Records that come while an iteration waits reach it."""
    timer = produce_later(obj, 3)
    iterator = iter(ring)
    assert [int(next(iterator)["number"]) for _ in range(3)] == [0, 1, 2]
    timer.join()


@pytest.mark.parametrize("use", [lambda ring: list(ring), lambda ring: ring.wait()])
def test_close_wakes_waiters(obj: Object, use: Callable[[RingBuffer], object]) -> None:
    """close() from another thread ends iterations and waits, which end without an error."""
    ring = RingBuffer(obj.maps["events"], EVENT)
    results: list[object] = []
    waiter = threading.Thread(target=lambda: results.append(use(ring)), daemon=True)
    waiter.start()
    time.sleep(0.05)
    assert waiter.is_alive()
    ring.close()
    waiter.join(timeout=5)
    assert len(results) == 1
    assert not results[0]


def test_threads_share_a_ring(obj: Object, ring: RingBuffer) -> None:
    """With several consumers and a producer at work, each record goes to exactly one of them."""
    total = 20_000
    taken: list[list[int]] = [[], [], []]

    def iterate() -> None:
        taken[0].extend(int(event["number"]) for event in ring.records(timeout=0.5))

    def drain(into: list[int]) -> None:
        while ring.wait(0.5):
            into.extend(ring.drain(max=50)["number"].tolist())

    threads = [
        threading.Thread(target=iterate),
        *(threading.Thread(target=drain, args=(into,)) for into in taken[1:]),
    ]
    for thread in threads:
        thread.start()
    for _ in range(total // 500):
        produce(obj, 500)
        while ring.pending > ring.size // 2:
            time.sleep(0.001)
    for thread in threads:
        thread.join()
    assert sorted(n for part in taken for n in part) == list(range(total))
    assert all(part == sorted(part) for part in taken)
    assert ring.dropped == 0


def test_async_for(obj: Object, ring: RingBuffer) -> None:
    """async for yields in order what is there and what comes, and ends on close()."""

    async def consume() -> list[int]:
        seen = []
        async for event in ring:
            seen.append(int(event["number"]))
            if len(seen) == 1000:
                ring.close()
        return seen

    produce(obj, 600)
    timer = produce_later(obj, 400)
    assert asyncio.run(asyncio.wait_for(consume(), 10)) == list(range(1000))
    timer.join()


def test_async_tasks_share_a_ring(obj: Object, ring: RingBuffer) -> None:
    """Two tasks may iterate at once; close() from the loop ends both."""

    async def consume(into: list[int]) -> None:
        async for event in ring:
            into.append(int(event["number"]))

    async def main() -> list[list[int]]:
        taken: list[list[int]] = [[], []]
        tasks = [asyncio.create_task(consume(into)) for into in taken]
        for _ in range(20):
            await asyncio.to_thread(produce, obj, 500)
            while ring.pending:
                await asyncio.sleep(0)
        await asyncio.sleep(0.01)
        ring.close()
        await asyncio.wait_for(asyncio.gather(*tasks), 5)
        return taken

    taken = asyncio.run(main())
    assert sorted(taken[0] + taken[1]) == list(range(10_000))


def test_async_leaves_room_for_others(obj: Object, ring: RingBuffer) -> None:
    """A ring that is never empty does not starve the other tasks of the loop."""

    async def main() -> int:
        turns = 0

        async def other() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        task = asyncio.create_task(other())
        count = 0
        async for _ in ring:
            count += 1
            if count % 500 == 0:
                produce(obj, 500)
            if count == 10_000:
                break
        task.cancel()
        return turns

    produce(obj, 1000)
    assert asyncio.run(main()) >= 10_000 // 256


def test_async_cancel(obj: Object, ring: RingBuffer) -> None:
    """A cancelled wait leaves no reader in the loop and the ring in use."""

    async def main() -> bool:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(ring.readable(), 0.02)
        produce(obj, 1)
        return await ring.readable()

    assert asyncio.run(main())
    assert numbers(ring.drain()) == [0]


def test_ring_outlives_the_map_object(compiled: Path) -> None:
    """The ring keeps the map in the kernel by itself."""
    with ObjectSpec.open(compiled).load() as obj:
        ring = RingBuffer(obj.maps["events"], EVENT)
        produce(obj, 2)
    with ring:
        assert numbers(ring.drain()) == [0, 1]


def test_closed(obj: Object) -> None:
    """close() is idempotent; everything else afterwards is a ClosedError, iteration is empty."""
    ring = RingBuffer(obj.maps["events"], EVENT)
    produce(obj, 300)
    iterator = ring.records()
    first = next(iterator)
    ring.close()
    ring.close()
    for use in (ring.drain, ring.drain_bytes, ring.wait, lambda: ring.fd, lambda: ring.pending):
        with pytest.raises(errors.ClosedError):
            use()
    with pytest.raises(errors.ClosedError):
        asyncio.run(ring.readable())
    # What the iteration had taken out of the ring before is not lost with it.
    assert numbers([first, *iterator]) == list(range(256))
    assert list(ring) == []
    assert repr(ring) == "<RingBuffer closed>"


def test_bad_arguments(obj: Object) -> None:
    """Another map and a dtype that is no layout are refused."""
    with pytest.raises(errors.InvalidError, match="no ring buffer"):
        RingBuffer(obj.maps["lost"], EVENT)
    for dtype in (object, "V0", [("name", object)]):
        with pytest.raises(errors.InvalidError, match="fixed size"):
            RingBuffer(obj.maps["events"], dtype)


def test_forgotten_ring_warns(obj: Object) -> None:
    """A ring that nobody closed is freed with a ResourceWarning."""
    ring = RingBuffer(obj.maps["events"], EVENT)
    with pytest.warns(ResourceWarning, match="never closed"):
        del ring
        gc.collect()


def test_no_leaks(obj: Object) -> None:
    """A thousand rings, some refused, leave no descriptor and no mapping behind."""

    def held() -> tuple[int, int]:
        maps = Path("/proc/self/maps").read_text()
        return len(list(Path("/proc/self/fd").iterdir())), maps.count("bpf-map")

    before = held()
    for _ in range(1000):
        with RingBuffer(obj.maps["events"], EVENT) as ring:
            ring.wait(0)
        with pytest.raises(errors.InvalidError):
            RingBuffer(obj.maps["lost"])
    assert held() == before
