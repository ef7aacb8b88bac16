"""Examples as a user runs them: programs of their own, in a process of their own."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from attrs import frozen

import pyciliumlib as pcl
from tests import leftovers

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
_TIMEOUT = 120.0
#: A process that still is root, and may do no more than anybody.
UNPRIVILEGED = ("setpriv", "--bounding-set=-all", "--inh-caps=-all", "--ambient-caps=-all")


def compile_examples(target: Path) -> None:
    """Build the examples' own BPF programs by the command that their texts give."""
    clang = os.environ.get("CLANG") or shutil.which("clang-19") or shutil.which("clang")
    assert clang, "the tests need clang"
    includes = [f"-I{pcl.include_dir()}", f"-I/usr/include/{os.uname().machine}-linux-gnu"]
    for source in EXAMPLES.glob("**/*.bpf.c"):
        output = target / source.with_suffix(".o").name
        command = [clang, "-O2", "-g", "-target", "bpf", *includes, "-c", source, "-o", output]
        subprocess.run(command, check=True)


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
    """Run a script and send it a signal: at the line that begins with `after`.

    Where `after` is empty, as soon as the script has made a pod.
    """
    with started(script) as process:
        seen = _read_to(process, after) if after else _wait_for_pod(process)
        process.send_signal(number)
        rest = ended(process)
        return Ended(rest.status, seen + rest.out, rest.err, rest.left)


def _read_to(process: _Process, beginning: str) -> str:
    seen = ""
    assert process.stdout is not None
    for line in process.stdout:
        seen += line
        if line.startswith(beginning):
            return seen
    raise AssertionError(f"no line {beginning!r} in:\n{seen}")


def _wait_for_pod(process: _Process) -> str:
    before = _pods()
    while process.poll() is None and _pods() <= before:
        time.sleep(0.01)
    return ""


def _pods() -> set[str]:
    folder = leftovers.NETNS
    return {path.name for path in folder.glob("pcl-*-gateway")} if folder.is_dir() else set()


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
    watchdog = threading.Timer(_TIMEOUT, process.kill)
    watchdog.start()
    with process:
        try:
            yield process
        finally:
            watchdog.cancel()
            process.kill()


def ended(process: _Process) -> Ended:
    """Wait for the end of a started script."""
    out, err = process.communicate()
    left = _present() - process.before
    return Ended(process.returncode, out, err, left | _session(process.pid))


class _Process(subprocess.Popen[str]):
    before: frozenset[str] = frozenset()


def _present() -> frozenset[str]:
    devices = {f"device {path.name}" for path in Path("/sys/class/net").iterdir()}
    return frozenset(filter(_may_be_of_an_example, leftovers.present())) | devices


def _may_be_of_an_example(line: str) -> bool:
    """Examples make namespaces by labs alone; others are of tests that run beside this one."""
    return not line.startswith("namespace") or line.startswith("namespace pcl-")


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
