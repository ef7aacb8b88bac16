"""External programs inside a namespace, and their end."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterable, Sequence
from typing import Any

from pyciliumlib.errors import LabError
from pyciliumlib.net import NetNS, NetNSWorker, netns_inode_of, processes_in

#: Seconds between the request to end and the order to.
GRACE = 0.5


class Spawner:
    """The thread that starts the programs of one lab.

    A child inherits the namespace of the thread that forks it. That is not the caller's thread,
    which then never moves; and not a short-lived one, because a program that asked to die with its
    parent (PR_SET_PDEATHSIG, as Envoy does) dies with the thread that started it.
    """

    def __init__(self) -> None:
        """Start no thread yet."""
        self._lock = threading.Lock()
        self._worker: NetNSWorker | None = None

    def spawn(self, netns: NetNS, argv: Sequence[object], **options: Any) -> subprocess.Popen[Any]:
        """Start a program in `netns`; `options` are those of `subprocess.Popen`.

        It leads a session of its own, so that it can be ended with all its children and gets no
        Ctrl-C that is meant for us. `LabError` if there is no such program.
        """
        words = [str(word) for word in argv]
        if not words:
            raise LabError("no program to run: the list is empty")

        def start() -> subprocess.Popen[Any]:
            with netns.enter():
                return subprocess.Popen(words, start_new_session=True, **options)

        try:
            return self._thread().call(start)
        except (FileNotFoundError, PermissionError) as error:
            raise LabError(
                f"cannot start {words[0]!r} in {netns.name}: {error.strerror}; is it installed?"
            ) from error

    def close(self) -> None:
        """End the thread; again is no error."""
        with self._lock:
            worker, self._worker = self._worker, None
        if worker is not None:
            worker.close()

    def _thread(self) -> NetNSWorker:
        with self._lock:
            if self._worker is None:
                with NetNS.current() as here:
                    self._worker = NetNSWorker(here)
            return self._worker


def terminate(processes: Iterable[subprocess.Popen[Any]]) -> None:
    """End programs and the children in their sessions: SIGTERM, and SIGKILL after `GRACE`."""
    alive = [process for process in processes if process.poll() is None]
    for process in alive:
        _signal_group(process, signal.SIGTERM)
    deadline = time.monotonic() + GRACE
    for process in alive:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            _signal_group(process, signal.SIGKILL)
            process.wait()
    for process in alive:
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):  # unsent input of a dead program
                    pipe.close()


def kill_all_in(inodes: set[int]) -> int:
    """Kill every process, but this one, whose namespace is among `inodes`; returns how many.

    A pidfd is taken before the namespace is looked at again, so that a number that was given to
    another process meanwhile is not hit.
    """
    killed = 0
    for pid in processes_in(inodes):
        if pid == os.getpid():
            continue
        with contextlib.suppress(ProcessLookupError):
            pidfd = os.pidfd_open(pid)
            try:
                if netns_inode_of(pid) in inodes:
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                    killed += 1
            finally:
                os.close(pidfd)
    return killed


def _signal_group(process: subprocess.Popen[Any], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)
