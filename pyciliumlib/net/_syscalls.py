"""The four system calls behind network namespaces.

`os.setns` and `os.unshare` came with Python 3.12, and `mount` never did, so they are called through
libc.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os

from pyciliumlib.errors import FeatureError, KernelError, PrivilegeError

CLONE_NEWNET = 0x40000000
MS_BIND = 0x1000
MS_REC = 0x4000
MS_SHARED = 0x100000
MNT_DETACH = 0x2


@functools.cache
def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mount.argtypes = (
        ctypes.c_char_p,
        ctypes.c_char_p,
        ctypes.c_char_p,
        ctypes.c_ulong,
        ctypes.c_char_p,
    )
    libc.umount2.argtypes = (ctypes.c_char_p, ctypes.c_int)
    libc.setns.argtypes = (ctypes.c_int, ctypes.c_int)
    libc.unshare.argtypes = (ctypes.c_int,)
    return libc


def _raise(what: str) -> None:
    code = ctypes.get_errno()
    if code in (errno.EPERM, errno.EACCES):
        raise PrivilegeError(code, f"{what} needs CAP_SYS_ADMIN: run as root")
    raise KernelError(code, what)


def setns(fd: int) -> None:
    """Move the calling thread, and no other, into the network namespace of `fd`."""
    if _libc().setns(fd, CLONE_NEWNET) != 0:
        _raise(f"setns to the network namespace of descriptor {fd}")


def unshare_net() -> None:
    """Give the calling thread, and no other, a new network namespace."""
    if _libc().unshare(CLONE_NEWNET) != 0:
        if ctypes.get_errno() == errno.EINVAL:
            feature = "network namespaces"
            raise FeatureError(errno.EINVAL, "the kernel was built without CONFIG_NET_NS", feature)
        _raise("unshare of a network namespace")


def mount(source: str, target: str, flags: int) -> None:
    """mount(2) with no file system type: bind mounts and changes of propagation."""
    if _libc().mount(os.fsencode(source), os.fsencode(target), b"none", flags, None) != 0:
        _raise(f"mount of {source or target} on {target}")


def umount(target: str) -> None:
    """Detach a mount now; the kernel frees it when its last user is gone."""
    if _libc().umount2(os.fsencode(target), MNT_DETACH) != 0:
        _raise(f"umount of {target}")
