"""Examples as a user runs them: programs of their own, in a process of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from attrs import frozen

from tests import leftovers

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
_TIMEOUT = 120.0
#: A process that still is root, and may do no more than anybody.
UNPRIVILEGED = ("setpriv", "--bounding-set=-all", "--inh-caps=-all", "--ambient-caps=-all")


@frozen
class Ended:
    """How a program ended, what it printed, and what it left on the machine."""

    status: int
    out: str
    err: str
    left: frozenset[str]


def run(script: Path, *args: object, under: tuple[str, ...] = ()) -> Ended:
    """Run a script to its end."""
    with started(script, *args, under=under) as process:
        return ended(process)


def interrupt(script: Path, after: str, number: signal.Signals) -> Ended:
    """Run a script until it has printed the line `after`, then send it a signal."""
    with started(script) as process:
        assert process.stdout is not None
        seen = ""
        for line in process.stdout:
            seen += line
            if line.startswith(after):
                process.send_signal(number)
                break
        rest = ended(process)
        return Ended(rest.status, seen + rest.out, rest.err, rest.left)


@contextmanager
def started(script: Path, *args: object, under: tuple[str, ...] = ()) -> Iterator[_Process]:
    """A script in a session of its own, which does not outlive the block."""
    process = _Process(
        [*under, sys.executable, "-u", str(script), *map(str, args)],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    process.before = _present()
    with process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def ended(process: _Process) -> Ended:
    """Wait for the end of a started script."""
    out, err = process.communicate(timeout=_TIMEOUT)
    left = _present() - process.before
    return Ended(process.returncode, out, err, left | _session(process.pid))


class _Process(subprocess.Popen[str]):
    before: frozenset[str] = frozenset()


def _present() -> frozenset[str]:
    devices = {f"device {name}" for name in os.listdir("/sys/class/net")}
    return leftovers.present() | devices


def _session(number: int) -> frozenset[str]:
    """Processes of a session that live on after the moment that a killed one needs to go."""
    for _ in range(20):
        found = {
            f"process {path.parent.name}"
            for path in Path("/proc").glob("[0-9]*/stat")
            if _session_of(path) == number
        }
        if not found:
            break
        time.sleep(0.05)
    return frozenset(found)


def _session_of(stat: Path) -> int:
    try:
        return int(stat.read_text().rpartition(")")[2].split()[3])
    except (FileNotFoundError, ProcessLookupError):
        return 0
