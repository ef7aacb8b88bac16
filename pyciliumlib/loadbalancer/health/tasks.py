"""Tasks that live as long as a block of code."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from types import TracebackType
from typing import Any


class Tasks:
    """Runs coroutines beside an `async with` block, and cancels them at its end.

    If one fails, the block is cancelled and ends with that error, as in `asyncio.TaskGroup` (which
    Python 3.10 lacks, and which would wait for them).
    """

    def __init__(self) -> None:
        self._running: set[asyncio.Task[None]] = set()
        self._owner: asyncio.Task[Any] | None = None
        self._failure: BaseException | None = None
        self._ending = False

    def start(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run one more; whoever wants it to end sooner cancels the task."""
        task = asyncio.get_running_loop().create_task(coroutine)
        self._running.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        failure = None if task.cancelled() else task.exception()
        if failure is None or self._failure is not None:
            return
        self._failure = failure
        if not self._ending and self._owner is not None:
            self._owner.cancel()

    async def __aenter__(self) -> Tasks:
        self._owner = asyncio.current_task()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        interrupted = self._failure is not None
        self._ending = True
        tasks = list(self._running)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._failure is None:
            return
        uncancel = getattr(self._owner, "uncancel", None)  # from Python 3.11 on
        if interrupted and uncancel is not None:
            uncancel()
        raise self._failure
