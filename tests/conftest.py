"""The rings: which tests need root and a kernel, and what holds for each of them.

A skip has to be earned. Tests of the rings `bpf` and `lab` are skipped only for a person who is
not root; as root, and in CI, a machine that cannot run them is a failure.
"""

from __future__ import annotations

import functools
import os
import platform
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import leftovers

TESTS = Path(__file__).parent
KERNEL_RINGS = ("bpf", "lab")
RINGS = ("unit", "property", *KERNEL_RINGS)
NEEDED = ("bpf", "prog_sched_cls", "prog_xdp", "map_ringbuf", "map_lpm_trie", "dev_veth")

_before = pytest.StashKey[frozenset[str]]()
_left = pytest.StashKey[frozenset[str]]()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test with its ring, the name of its folder."""
    for item in items:
        ring = _ring_of(item.path)
        if ring:
            item.add_marker(ring)


def _ring_of(path: Path) -> str:
    first = path.relative_to(TESTS).parts[0] if path.is_relative_to(TESTS) else ""
    return first if first in RINGS else ""


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip or fail a kernel test on a machine that cannot run it."""
    if _ring_of(item.path) not in KERNEL_RINGS:
        return
    if os.geteuid() != 0:
        if os.environ.get("CI"):
            pytest.fail("the kernel rings need root, also in CI", pytrace=False)
        pytest.skip("needs root: run `sudo make test`")
    missing = _missing()
    if missing:
        pytest.fail(f"this machine cannot run the kernel rings: {missing}", pytrace=False)


@functools.cache
def _missing() -> str:
    from pyciliumlib.kernel.probe import probe

    answers = probe(*NEEDED)
    return ", ".join(
        f"no {name} ({answers[name].reason})" for name in NEEDED if not answers.has(name)
    )


@pytest.fixture
def bpffs(tmp_path: Path) -> Iterator[Path]:
    """A BPF file system of this test alone; its pins go when it is unmounted."""
    path = tmp_path / "bpffs"
    path.mkdir()
    subprocess.run(["mount", "-t", "bpf", "none", str(path)], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


def pytest_sessionstart(session: pytest.Session) -> None:
    session.config.stash[_before] = leftovers.present()


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """A run that leaves something on the machine has failed, whatever its tests said."""
    before: frozenset[str] = session.config.stash[_before]
    left = leftovers.present() - before
    session.config.stash[_left] = left
    if left and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Say how many tests really ran in the kernel, and what was left behind."""
    ran = {
        ring: sum(
            report.nodeid.startswith(f"tests/{ring}/") and report.when == "call"
            for outcome in ("passed", "failed")
            for report in terminalreporter.stats.get(outcome, [])
        )
        for ring in KERNEL_RINGS
    }
    counts = ", ".join(f"{count} {ring}" for ring, count in ran.items())
    terminalreporter.section("kernel")
    terminalreporter.line(
        f"{sum(ran.values())} kernel tests ran ({counts}) on Linux {platform.release()}"
    )
    left: frozenset[str] = config.stash.get(_left, frozenset())
    for line in sorted(left):
        terminalreporter.line(f"left behind: {line}", red=True)
