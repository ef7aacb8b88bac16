"""Ring buffers: events from BPF programs, one by one or by the million.

ring = RingBuffer(obj.maps["events"], dtype)
array = ring.drain()                   # all there is, as one structured array
for event in ring.records(timeout=1):  # waits; ends after a second of silence
    ...
async for event in ring:               # ends when the ring is closed
    ...
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import select
import threading
import time
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from pyciliumlib.closeable import Closeable
from pyciliumlib.errors import ClosedError, InvalidError, MismatchError
from pyciliumlib.kernel._binding import ffi, lib
from pyciliumlib.kernel.failures import raise_for
from pyciliumlib.kernel.link import HasFd

HEADER = 8
"""Bytes that the kernel puts before each record (BPF_RINGBUF_HDR_SZ)."""

BATCH = 256
"""Records that iteration takes out of the ring at a time."""

BUSY_PAUSE = 50e-6
"""Seconds to pause when the ring polls readable and no record is complete: the producer of the
next one has reserved it and is still writing."""


class CounterMap(Protocol):
    """A map whose entry 0 counts the events that found the ring full, per CPU or in all."""

    def lookup(self, key: Any) -> Any: ...


class RingBuffer(Closeable):
    """The consumer of a BPF_MAP_TYPE_RINGBUF; there must be only one for each map.

    `dtype` is the layout of the records, all of one size; without it records are `bytes`.
    `lost` tells how many events were lost because the ring was full: a counter map that the
    programs write, or a function. The ring holds its own reference to the map.

    Calls from several threads are fine: each record goes to exactly one of them, and `close()`
    wakes those that wait. Least kernel: 5.8.
    """

    def __init__(
        self,
        map: HasFd,
        dtype: npt.DTypeLike | None = None,
        *,
        lost: CounterMap | Callable[[], int] | None = None,
    ) -> None:
        self._closed = True  # for __del__, until everything is there
        self.dtype = None if dtype is None else _checked(np.dtype(dtype))
        self._lost = lost
        handle = ffi.new("struct pcl_ring **")
        err = lib.pcl_ring_open(map.fd, handle)
        if err == -errno.EINVAL:
            raise InvalidError(f"{map!r} is no ring buffer: give a map of type RINGBUF")
        if err:
            raise_for(err, f"map the memory of {map!r}")
        self._ring = handle[0]
        self._fd = fcntl.fcntl(map.fd, fcntl.F_DUPFD_CLOEXEC, 0)
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._lock = threading.Lock()
        self._users = 0  # calls that wait: the last one out frees a closed ring
        self._batch: list[Any] = []  # taken out for iteration, which got to index _at
        self._at = 0
        self._closed = False

    @property
    def fd(self) -> int:
        """A descriptor that polls readable when there are records, for an event loop of your own.

        Raises ClosedError after `close()`.
        """
        self._check_open()
        return self._fd

    @property
    def closed(self) -> bool:
        return self._closed

    @property
    def size(self) -> int:
        """The ring's capacity in bytes, headers of 8 bytes a record included."""
        with self._open() as ring:
            return int(lib.pcl_ring_size(ring))

    @property
    def pending(self) -> int:
        """Bytes in the ring that are not consumed, headers included."""
        with self._open() as ring:
            return int(lib.pcl_ring_pending(ring))

    @property
    def dropped(self) -> int:
        """How many events found the ring full, by the counter given as `lost`.

        Raises InvalidError if none was given: the kernel itself does not count them.
        """
        if self._lost is None:
            raise InvalidError(
                "this ring has no counter of lost events: count failed reservations in a map, and "
                "give it as RingBuffer(..., lost=map)"
            )
        if callable(self._lost):
            return int(self._lost())
        return int(np.sum(self._lost.lookup(0)))

    def drain(self, max: int | None = None) -> npt.NDArray[Any]:
        """Take the records that are there, at most `max`, as one array of `dtype`; never waits.

        Raises MismatchError when the next record is not of the dtype's size (it stays in the
        ring: `drain_bytes()` gets it), InvalidError if the ring was made without a dtype.
        """
        if self.dtype is None:
            raise InvalidError("this ring has no dtype: give one, or use drain_bytes()")
        _check_max(max)
        with self._open():
            before = self._take_batch(max)
            rest = None if max is None else max - len(before)
            if rest == 0:
                return np.array(before, self.dtype)
            after = self._take_array(rest, refuse_odd=not before)
            return np.concatenate([np.array(before, self.dtype), after]) if before else after

    def drain_bytes(self, max: int | None = None) -> list[bytes]:
        """Take the records that are there, at most `max`, of whatever size; never waits."""
        _check_max(max)
        with self._open():
            before = [bytes(record) for record in self._take_batch(max)]
            rest = None if max is None else max - len(before)
            return before if rest == 0 else before + self._take_list(rest)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until there are records: True, or False after `timeout` seconds or on `close()`."""
        if timeout is not None and timeout < 0:
            raise InvalidError(f"timeout {timeout} is negative: give seconds, or None for ever")
        with self._waiting():
            if self._at < len(self._batch):
                return True
            poller = select.poll()
            poller.register(self._fd, select.POLLIN)
            poller.register(self._wake, select.POLLIN)
            ready = poller.poll(None if timeout is None else timeout * 1000)
            return bool(ready) and not self._closed

    async def readable(self) -> bool:
        """Wait in the running event loop until there are records; False on `close()`."""
        loop = asyncio.get_running_loop()
        with self._waiting(), select.epoll() as poller:
            if self._at < len(self._batch):
                return True
            poller.register(self._fd, select.EPOLLIN)
            poller.register(self._wake, select.EPOLLIN)
            ready = loop.create_future()
            loop.add_reader(poller.fileno(), _settle, ready)
            try:
                await ready
            finally:
                loop.remove_reader(poller.fileno())
            return not self._closed

    def records(self, timeout: float | None = None) -> Iterator[Any]:
        """Records as they come, `np.void` of `dtype` or `bytes`.

        Ends on `close()`, or after `timeout` seconds in which none came.
        """
        while True:
            found = False
            for record in self._ready_records():
                found = True
                yield record
            try:
                if not self.wait(timeout):
                    return
            except ClosedError:
                return
            if not found:
                time.sleep(BUSY_PAUSE)

    def __iter__(self) -> Iterator[Any]:
        return self.records()

    async def __aiter__(self) -> AsyncIterator[Any]:
        while True:
            count = 0
            for count, record in enumerate(self._ready_records(), 1):
                yield record
                if count % BATCH == 0:  # let others run, however fast the records come
                    await asyncio.sleep(0)
            try:
                if not await self.readable():
                    return
            except ClosedError:
                return
            if not count:
                await asyncio.sleep(BUSY_PAUSE)

    def close(self) -> None:
        """End all iterations, wake all that wait, and free the ring. Idempotent."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            os.eventfd_write(self._wake, 1)
            self._free_if_unused()

    def __del__(self) -> None:
        if not getattr(self, "_closed", True):
            warnings.warn(f"{self!r} was never closed", ResourceWarning, stacklevel=2, source=self)
            self.close()

    def __repr__(self) -> str:
        if self._closed:
            return "<RingBuffer closed>"
        layout = "bytes" if self.dtype is None else f"{self.dtype.itemsize}-byte records"
        return f"<RingBuffer {layout}, {self.pending} of {self.size} bytes pending>"

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError("this ring buffer was closed; make a new RingBuffer of the map")

    @contextmanager
    def _open(self) -> Iterator[Any]:
        """The ring, for one call into C at a time."""
        with self._lock:
            self._check_open()
            yield self._ring

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        """Keeps the descriptors open, without the lock, while somebody waits on them."""
        with self._lock:
            self._check_open()
            self._users += 1
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                self._free_if_unused()

    def _free_if_unused(self) -> None:
        if self._closed and not self._users:
            lib.pcl_ring_close(self._ring)
            os.close(self._fd)
            os.close(self._wake)

    def _ready_records(self) -> Iterator[Any]:
        """Records until there are none; what was taken out of the ring outlives `close()`."""
        while True:
            with self._lock:
                if self._at == len(self._batch) and not self._closed:
                    self._refill()
                if self._at == len(self._batch):
                    return
                record = self._batch[self._at]
                self._at += 1
            yield record

    def _refill(self) -> None:
        self._at = 0
        self._batch = []  # should taking fail
        self._batch = self._take_list(BATCH) if self.dtype is None else [*self._take_array(BATCH)]

    def _take_batch(self, max: int | None) -> list[Any]:
        """What iteration took out of the ring and did not get to."""
        end = len(self._batch) if max is None else min(len(self._batch), self._at + max)
        taken = self._batch[self._at : end]
        self._at = end
        return taken

    def _take_array(self, max: int | None, *, refuse_odd: bool = True) -> npt.NDArray[Any]:
        assert self.dtype is not None
        room = (self.dtype.itemsize + HEADER + 7) & ~7
        most = int(lib.pcl_ring_pending(self._ring)) // room + 1
        out = np.empty(most if max is None else min(max, most), self.dtype)
        odd = ffi.new("size_t *")
        count = lib.pcl_ring_take(
            self._ring, ffi.from_buffer(out.view(np.uint8)), self.dtype.itemsize, len(out), odd
        )
        if odd[0] and not count and refuse_odd:
            raise MismatchError(
                "the next record of the ring does not fit the dtype; drain_bytes() gets it",
                [f"record: {odd[0]} bytes", f"dtype: {self.dtype.itemsize} bytes"],
            )
        return out[:count]

    def _take_list(self, max: int | None) -> list[bytes]:
        pending = int(lib.pcl_ring_pending(self._ring))
        most = pending // HEADER + 1
        sizes = np.empty(most if max is None else min(max, most), np.uint32)
        out = np.empty(pending, np.uint8)
        odd = ffi.new("size_t *")
        count = lib.pcl_ring_take_any(
            self._ring,
            ffi.from_buffer(out),
            len(out),
            ffi.from_buffer("uint32_t[]", sizes),
            len(sizes),
            odd,
        )
        ends = np.cumsum(sizes[:count], dtype=np.uint64).tolist()
        data = out[: ends[-1]].tobytes() if ends else b""
        return [data[a:b] for a, b in zip([0, *ends], ends, strict=False)]


def _checked(dtype: np.dtype[Any]) -> np.dtype[Any]:
    if dtype.hasobject or not dtype.itemsize:
        raise InvalidError(f"{dtype} is no layout of a record: it has no fixed size in memory")
    return dtype


def _settle(ready: asyncio.Future[None]) -> None:
    if not ready.done():  # the descriptor stays readable until the waiter has run
        ready.set_result(None)


def _check_max(max: int | None) -> None:
    if max is not None and max < 1:
        raise InvalidError(f"max is {max}: give a positive number, or None for all records")
