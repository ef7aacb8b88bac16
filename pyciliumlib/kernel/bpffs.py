"""The BPF file system, where pins live: found, or mounted where there is none."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from pyciliumlib.errors import FeatureError, PrivilegeError, StateError
from pyciliumlib.kernel._binding import lib
from pyciliumlib.kernel.failures import raise_for
from pyciliumlib.kernel.mounts import BPFFS_MAGIC, filesystem_magic

DEFAULT_BPFFS = Path("/sys/fs/bpf")


def is_bpffs(path: str | os.PathLike[str]) -> bool:
    """Whether `path` exists and is on a bpffs; it need not be the mount point.

    Raises PrivilegeError if a directory above it may not be searched.
    """
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except PermissionError as error:
        raise PrivilegeError(errno.EACCES, f"{os.fspath(path)} cannot be reached") from error
    try:
        return filesystem_magic(fd) == BPFFS_MAGIC
    finally:
        os.close(fd)


def ensure_bpffs(path: str | os.PathLike[str] = DEFAULT_BPFFS) -> Path:
    """Make sure that `path` is on a bpffs: mount one there if it is not. Returns `path`.

    The mount stays when the process ends, for pins are meant to. A directory that holds files is
    never mounted over. Raises StateError (no directory, or not empty), PrivilegeError,
    FeatureError (a kernel without bpffs). Least kernel: 4.4.
    """
    path = Path(path)
    if is_bpffs(path):
        return path
    if not path.is_dir():
        raise StateError(f"cannot mount a bpffs at {path}: it is no directory; make it first")
    if any(path.iterdir()):
        raise StateError(
            f"cannot mount a bpffs at {path}: the directory holds files that a mount would hide; "
            "give an empty one, or one on a bpffs"
        )
    err = lib.pcl_mount_bpffs(os.fsencode(path))
    if err == -errno.ENODEV:
        raise FeatureError(errno.ENODEV, "this kernel has no bpffs (CONFIG_BPF_SYSCALL)", "bpffs")
    if err == -errno.EPERM:
        raise PrivilegeError(
            errno.EPERM, f"cannot mount a bpffs at {path}: this needs CAP_SYS_ADMIN (or root)"
        )
    if err:
        raise_for(err, f"mount a bpffs at {path}")
    return path
