"""Mounting a bpffs where there is none."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyciliumlib import errors
from pyciliumlib.kernel.bpffs import ensure_bpffs, is_bpffs
from pyciliumlib.kernel.mounts import find_cgroup2, mounted
from tests.expect import expect


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """An empty directory with a blank in its name; what is mounted there goes afterwards."""
    path = tmp_path / "a folder"
    path.mkdir()
    yield path
    while os.path.ismount(path):
        subprocess.run(["umount", str(path)], check=True)


def test_mounts_once(folder: Path) -> None:
    """A bpffs is mounted, closed to other users; the second call finds it and does nothing."""
    assert not is_bpffs(folder)
    assert ensure_bpffs(folder) == folder
    assert ensure_bpffs(folder) == folder
    assert is_bpffs(folder)
    assert mounted("bpf").count(folder) == 1
    assert folder.stat().st_mode & 0o777 == 0o700


def test_below_a_mount_point_is_enough(folder: Path) -> None:
    """A directory of a bpffs is on a bpffs: nothing more is mounted."""
    ensure_bpffs(folder)
    below = folder / "below"
    below.mkdir()
    assert ensure_bpffs(str(below)) == below
    assert not os.path.ismount(below)


def test_never_hides_files(folder: Path) -> None:
    """A directory that holds something is refused and not touched."""
    (folder / "file").touch()
    with pytest.raises(errors.StateError, match="holds files"):
        ensure_bpffs(folder)
    assert not os.path.ismount(folder)


def test_no_directory(folder: Path) -> None:
    """What is not there, or is a file, is refused."""
    (folder / "file").touch()
    for path in (folder / "nosuch", folder / "file", folder / "file" / "below"):
        with pytest.raises(errors.StateError, match="no directory"):
            ensure_bpffs(path)
        assert is_bpffs(path) is False


UNPRIVILEGED = """
import os, sys
from pyciliumlib.errors import PrivilegeError
from pyciliumlib.kernel.bpffs import ensure_bpffs
os.setuid(65534)
try:
    ensure_bpffs(sys.argv[1])
except PrivilegeError as error:
    print(error)
"""


def test_needs_privileges() -> None:
    """Without CAP_SYS_ADMIN the error names it."""
    with tempfile.TemporaryDirectory() as open_to_all:
        Path(open_to_all).chmod(0o755)
        command = [sys.executable, "-c", UNPRIVILEGED, open_to_all]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "CAP_SYS_ADMIN" in done.stdout


def test_find_cgroup2() -> None:
    """The directory found is the root of a cgroup2 hierarchy."""
    expect("cgroup2")
    assert (find_cgroup2() / "cgroup.controllers").exists()
