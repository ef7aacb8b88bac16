"""Where the file systems that BPF needs are mounted: bpffs and cgroup2."""

from __future__ import annotations

import re
from pathlib import Path

from pyciliumlib.errors import NotFoundError
from pyciliumlib.kernel._binding import lib
from pyciliumlib.kernel.failures import raise_for

BPFFS_MAGIC = 0xCAFE4A11
CGROUP2_MAGIC = 0x63677270


def filesystem_magic(fd: int) -> int:
    """The magic number (`f_type` of fstatfs(2)) of the file system an open file is on."""
    magic = lib.pcl_filesystem_magic(fd)
    if magic < 0:
        raise_for(magic, "ask for the type of a file system")
    return int(magic)


def mounted(filesystem: str) -> list[Path]:
    """The mount points of a type of file system that this process sees, in mount order."""
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        # proc(5): id parent dev root MOUNTPOINT options [fields...] - TYPE source options
        before, _, after = line.partition(" - ")
        if after.split(" ", 1)[0] == filesystem:
            found.append(Path(_unescape(before.split(" ")[4])))
    return found


def find_cgroup2() -> Path:
    """Where the cgroup2 hierarchy is mounted; raises NotFoundError if it is not."""
    found = mounted("cgroup2")
    if not found:
        raise NotFoundError(
            "no cgroup2 is mounted: mount it with `mount -t cgroup2 none /sys/fs/cgroup/unified`"
        )
    return found[0]


def _unescape(field: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)
