"""What a run of the tests must not leave behind on the machine."""

from __future__ import annotations

import os
import re
from pathlib import Path

NETNS = Path("/run/netns")
LABS = Path("/run/pyciliumlib/labs")
BPFFS = Path("/sys/fs/bpf")
CGROUPS = Path("/sys/fs/cgroup/unified")
PREFIX = "pcl"


def present() -> frozenset[str]:
    """Everything of ours that another running process does not own, one line each."""
    others = _labs_of_other_processes()
    namespaces = {
        f"namespace {name}"
        for name in _names(NETNS)
        if name.startswith(PREFIX)
        and not any(lab in name for lab in others)
        and not _is_of_another_run(name)
    }
    labs = {f"lab state {LABS / name}" for name in _names(LABS) if name not in others}
    pins = {f"pin {BPFFS / name}" for name in _names(BPFFS) if name.startswith(PREFIX)}
    cgroups = {
        f"cgroup {CGROUPS / name}"
        for name in _names(CGROUPS)
        if name.startswith(PREFIX) and not _is_of_another_run(name)
    }
    return frozenset(namespaces | labs | pins | cgroups | _children())


def _names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()] if folder.is_dir() else []


def _is_of_another_run(name: str) -> bool:
    """The tests' own harnesses put their process id into the names of their namespaces."""
    match = re.match(r"pcl[A-Z](\d+)(?:-|$)", name)
    return match is not None and int(match[1]) != os.getpid() and Path("/proc", match[1]).exists()


def _labs_of_other_processes() -> set[str]:
    """Labs whose lock a live process other than this one holds: of a test run beside this one."""
    owners = {}
    for line in Path("/proc/locks").read_text().splitlines():
        # proc(5): "1: FLOCK  ADVISORY  WRITE 1234 00:19:5678 0 EOF"; "->" marks one that waits
        fields = line.split()
        if fields[1] == "FLOCK":
            owners[int(fields[5].rsplit(":", 1)[1])] = int(fields[4])
    found = set()
    for name in _names(LABS):
        try:
            inode = (LABS / name / "lock").stat().st_ino
        except FileNotFoundError:
            continue
        if owners.get(inode, os.getpid()) != os.getpid():
            found.add(name)
    return found


def _children() -> set[str]:
    found = set()
    for task in Path("/proc/self/task").iterdir():
        for pid in (task / "children").read_text().split():
            try:
                command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
            except FileNotFoundError:
                continue
            found.add(f"process {pid} {command.strip()}")
    return found
