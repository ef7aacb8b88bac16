"""Numbers and ranges of slots: who has which, and when one may be used again.

A program that is just running may still hold a number that was given back. So one is not handed
out again for a tenth of a second, which no run of a program lasts.
"""

from __future__ import annotations

import errno
import time
from bisect import insort
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final

from pyciliumlib.errors import MapFullError

_REST: Final = 0.1
Clock = Callable[[], float]


class Numbers:
    """The numbers `first` to `last`, each had by one at a time; the longest unused goes first."""

    def __init__(self, first: int, last: int, what: str, clock: Clock = time.monotonic) -> None:
        self._next, self._last = first, last
        self._what = what
        self._clock = clock
        self._resting: deque[tuple[float, int]] = deque()

    @property
    def free(self) -> int:
        """How many are left."""
        return self._last - self._next + 1 + len(self._resting)

    def take(self) -> int:
        """One that is free; MapFullError if none is."""
        if self._next <= self._last:
            self._next += 1
            return self._next - 1
        if not self._resting:
            raise MapFullError(errno.ENOSPC, f"all {self._last} {self._what} are taken")
        until, number = self._resting.popleft()
        time.sleep(max(0.0, until - self._clock()))
        return number

    def give_back(self, number: int) -> None:
        """It is nobody's any more."""
        self._resting.append((self._clock() + _REST, number))

    def claim(self, taken: Iterable[int]) -> None:
        """Before the first is taken: these are, since before this object was made."""
        had = set(taken)
        first, self._next = self._next, max(had, default=self._next - 1) + 1
        for number in range(first, self._next):
            if number not in had:
                self.give_back(number)


class Rows:
    """Ranges of rows in one array: the first one that is large enough is taken."""

    def __init__(self, count: int, clock: Clock = time.monotonic) -> None:
        self._free: list[tuple[int, int]] = [(0, count)]
        self._count = count
        self._clock = clock
        self._resting: deque[tuple[float, int, int]] = deque()

    @property
    def free(self) -> int:
        """Rows that are not taken, in however many pieces."""
        return sum(length for _, length in self._free) + sum(r[2] for r in self._resting)

    def take(self, length: int) -> int:
        """The first row of a range that is free; MapFullError if none is so long."""
        now = self._clock()
        while True:
            self._wake(now)
            for index, (start, free) in enumerate(self._free):
                if free >= length:
                    if free == length:
                        del self._free[index]
                    else:
                        self._free[index] = start + length, free - length
                    return start
            if not self._resting:
                raise MapFullError(
                    errno.ENOSPC,
                    f"no {length} of {self._count} rows of slots are free side by side; "
                    "load with more slots, or take a smaller Maglev table",
                )
            now = self._resting[0][0]
            time.sleep(max(0.0, now - self._clock()))

    def give_back(self, start: int, length: int) -> None:
        """The range is nobody's any more."""
        self._resting.append((self._clock() + _REST, start, length))

    def claim(self, start: int, length: int) -> bool:
        """Take this very range; false if it is not free."""
        for index, (at, free) in enumerate(self._free):
            if at <= start and start + length <= at + free:
                left, right = (at, start - at), (start + length, at + free - start - length)
                self._free[index : index + 1] = [piece for piece in (left, right) if piece[1]]
                return length > 0
        return False

    def _wake(self, now: float) -> None:
        while self._resting and self._resting[0][0] <= now:
            _, start, length = self._resting.popleft()
            insort(self._free, (start, length))
            self._merge(start)

    def _merge(self, start: int) -> None:
        """Join the range that begins at `start` with those beside it."""
        index = next(i for i, (at, _) in enumerate(self._free) if at == start)
        for left in (index, index - 1):
            if 0 <= left < len(self._free) - 1:
                (a, length), (b, more) = self._free[left], self._free[left + 1]
                if a + length == b:
                    self._free[left : left + 2] = [(a, length + more)]
