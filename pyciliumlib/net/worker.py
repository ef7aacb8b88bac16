"""A thread that lives in a namespace, for clients that must stay there."""

from __future__ import annotations

import functools
import os
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from pyciliumlib.errors import ClosedError
from pyciliumlib.net import _syscalls
from pyciliumlib.net.netns import NetNS, settle

T = TypeVar("T")


class NetNSWorker:
    """One thread in one namespace that runs functions in turn until `close()`.

    The thread is a daemon: an owner that dies without `close()` does not hang the interpreter.
    """

    def __init__(self, netns: NetNS) -> None:
        """Start a thread in `netns`; the namespace may be closed afterwards."""
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._pid = os.getpid()
        self._order = threading.Lock()  # no job is put behind the end, where nobody would run it
        self._closed = False
        self._thread = threading.Thread(
            target=self._run, name=f"pyciliumlib-netns-{netns.name}", daemon=True
        )
        self._thread.start()
        try:
            self.call(lambda: _syscalls.setns(netns.fd))
        except BaseException:
            self.close()
            raise

    def call(self, fn: Callable[[], T]) -> T:
        """Run `fn()` in the thread, wait, and return its result or raise its exception."""
        if threading.current_thread() is self._thread:
            return fn()
        if self._pid != os.getpid():
            raise ClosedError("the worker of this namespace belongs to a parent process")
        outcome: Future[T] = Future()
        with self._order:
            if self._closed:
                raise ClosedError("the worker of this namespace is closed")
            self._jobs.put(functools.partial(settle, outcome, fn))
        try:
            return outcome.result()
        finally:
            del outcome  # see in_new_thread

    def close(self) -> None:
        """End the thread after the jobs that it already has; again is no error."""
        if self._pid != os.getpid():
            return
        with self._order:
            if self._closed:
                return
            self._closed = True
            self._jobs.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()
            del job  # what the job holds must not live until the next one comes
