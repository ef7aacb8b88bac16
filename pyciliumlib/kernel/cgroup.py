"""Programs on cgroups (version 2), by bpf_link."""

from __future__ import annotations

import errno
import os

from pyciliumlib.errors import InvalidError, NotFoundError, PrivilegeError, StateError, nearest
from pyciliumlib.kernel._binding import lib
from pyciliumlib.kernel.failures import effective_capabilities, raise_for
from pyciliumlib.kernel.link import HasFd, Link
from pyciliumlib.kernel.mounts import CGROUP2_MAGIC, filesystem_magic
from pyciliumlib.kernel.uapi import CGROUP_HOOKS, AttachType


def attach_cgroup(program: HasFd, path: str | os.PathLike[str], hook: str | AttachType) -> Link:
    """Attach a program to a cgroup and all below it.

    `path` is a directory of the cgroup2 file system; `hook` is a name as in an ELF section,
    "connect4", "sendmsg6", "sock_ops", or an `AttachType`. Several programs may share a hook.
    Raises NotFoundError for a missing cgroup, StateError if `path` is no cgroup2, InvalidError for
    an unknown hook. Least kernel: 5.7.
    """
    attach_type = _attach_type(hook)
    doing = f"attach to {attach_type.name} of {os.fspath(path)}"
    try:
        directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotFoundError(f"cannot {doing}: there is no such directory") from error
    except PermissionError as error:
        raise PrivilegeError(errno.EACCES, f"cannot {doing}: it may not be opened") from error
    try:
        if filesystem_magic(directory) != CGROUP2_MAGIC:
            raise StateError(f"cannot {doing}: that is no cgroup2 directory; see find_cgroup2()")
        fd = lib.pcl_link_create(program.fd, directory, attach_type, 0, 0, 0)
    finally:
        os.close(directory)
    if fd == -errno.EINVAL:
        raise_for(fd, doing, "the program was loaded for another hook, or the kernel is before 5.7")
    if fd == -errno.EPERM and "CAP_SYS_ADMIN" in effective_capabilities():
        raise PrivilegeError(
            errno.EPERM,
            f"cannot {doing}: a program is attached there or above that forbids others "
            "(attached without BPF_F_ALLOW_MULTI); detach it first",
        )
    if fd < 0:
        raise_for(fd, doing)
    return Link(fd, f"{attach_type.name} of {os.fspath(path)}")


def _attach_type(hook: str | AttachType) -> AttachType:
    if isinstance(hook, AttachType):
        if hook not in CGROUP_HOOKS.values():
            raise InvalidError(f"{hook.name} is no hook of a cgroup")
        return hook
    name = str(hook).removeprefix("cgroup/").removeprefix("cgroup_")
    if name not in CGROUP_HOOKS:
        raise InvalidError(f"{hook!r} is no hook of a cgroup{nearest(name, CGROUP_HOOKS)}")
    return CGROUP_HOOKS[name]
