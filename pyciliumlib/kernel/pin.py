"""Pins: names in a bpffs that keep maps and programs alive without a process."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from pyciliumlib.errors import ExistsError, NotFoundError, StateError
from pyciliumlib.kernel._binding import lib, take_messages
from pyciliumlib.kernel.failures import raise_for

PathLike = str | os.PathLike[str]

# By what /proc calls a descriptor: BPF_OBJ_GET_INFO_BY_FD answers for any kind.
_KINDS = {
    "anon_inode:bpf-map": "map",
    "anon_inode:bpf-prog": "program",
    "anon_inode:bpf_link": "link",
    "anon_inode:bpf-link": "link",  # as newer kernels spell it
}
_NO_BPFFS = (
    "the folder is not in a bpffs (mount -t bpf bpf /sys/fs/bpf), or it may not be written to"
)


def pin(fd: int, path: PathLike, what: str) -> None:
    """Pin `what` at `path`; raises ExistsError if something is there."""
    target = Path(path)
    err = -lib.bpf_obj_pin(fd, os.fsencode(target))
    take_messages(quiet=True)
    if not err:
        return
    doing = f"pin {what} at {target}"
    if err == errno.EEXIST:
        raise ExistsError(f"cannot {doing}: the name is taken; unpin it or take another")
    if err == errno.ENOENT:
        raise NotFoundError(f"cannot {doing}: there is no folder {target.parent}; make it first")
    raise_for(err, doing, _NO_BPFFS if err in (errno.EPERM, errno.EINVAL) else "")


def open_pin(path: PathLike, what: str) -> int:
    """The descriptor of the `what` ("map", "program", "link") that is pinned at `path`.

    Raises NotFoundError, and StateError if something of another kind is pinned there.
    """
    fd: int = lib.bpf_obj_get(os.fsencode(path))
    take_messages(quiet=True)
    if fd >= 0:
        there = str(Path(f"/proc/self/fd/{fd}").readlink())
        if _KINDS.get(there) != what:
            os.close(fd)
            raise StateError(
                f"{os.fspath(path)} pins no {what} but a {_KINDS.get(there, there)}: "
                f"give the path of a {what}'s pin"
            )
        return fd
    if fd == -errno.ENOENT:
        raise NotFoundError(f"no {what} is pinned at {os.fspath(path)}")
    return raise_for(
        fd,
        f"open the {what} pinned at {os.fspath(path)}",
        "this is no pin of a bpffs" if fd == -errno.EINVAL else "",
    )


def unpin(path: PathLike) -> bool:
    """Remove a pin; what it named lives on while somebody holds it. False if it was not there."""
    try:
        Path(path).unlink()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise_for(error.errno or 0, f"unpin {os.fspath(path)}")
    return True
