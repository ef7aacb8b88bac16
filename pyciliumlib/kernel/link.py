"""A link: one program attached to one hook, and its one owner.

    with attach_tc(program, "eth0", "ingress") as link:
        ...                                 # detached at the end of the block

`keep()` and `pin()` say that the attachment outlives the process; `update()` replaces the program
without a packet in between that sees none.
"""

from __future__ import annotations

import errno
import os
import warnings
from pathlib import Path
from types import TracebackType
from typing import Protocol

import attrs

from pyciliumlib._libbpf import ffi, lib
from pyciliumlib.errors import (
    ClosedError,
    DeviceError,
    ExistsError,
    KernelError,
    NotFoundError,
    PrivilegeError,
    PyCiliumError,
    StateError,
)
from pyciliumlib.kernel.uapi import LINK_TYPES, AttachType


class HasFd(Protocol):
    """Anything with a file descriptor: a program, a map."""

    @property
    def fd(self) -> int: ...


@attrs.frozen
class LinkInfo:
    """What the kernel says about an attachment.

    `kind` is "xdp", "tcx", "netkit", "cgroup" or "clsact"; `ifindex` and `cgroup_id` are 0 where
    they do not apply and once the device or the cgroup is gone.
    """

    kind: str
    id: int
    prog_id: int
    ifindex: int = 0
    attach_type: AttachType | None = None
    cgroup_id: int = 0


class Link:
    """A bpf_link. The kernel detaches the program when the last of its owners is gone.

    Made by `attach_xdp`, `attach_tc`, `attach_netkit` and `attach_cgroup`, and by `Link.from_pin`
    and `Link.from_id`. Its owners are this object and, once `pin()` was called, the pin.
    """

    def __init__(self, fd: int, *, kept: bool = False) -> None:
        self._fd = fd
        self._kept = kept
        self._pin: Path | None = None

    @classmethod
    def from_pin(cls, path: str | os.PathLike[str]) -> Link:
        """The link that is pinned at `path`.

        Raises NotFoundError if nothing is there and StateError if it is no link.
        """
        path = Path(path)
        fd = lib.pcl_pinned_fd(os.fsencode(path))
        if fd == -errno.ENOENT:
            raise NotFoundError(f"no link is pinned at {path}: it was never pinned, or is unpinned")
        if fd < 0:
            raise refused(fd, f"cannot open the pin {path}")
        target = os.readlink(f"/proc/self/fd/{fd}")
        if "bpf_link" not in target:
            os.close(fd)
            raise StateError(f"{path} pins no link but {target}: give the path of a link's pin")
        link = cls(fd, kept=True)
        link._pin = path
        return link

    @classmethod
    def from_id(cls, link_id: int) -> Link:
        """The link of that id; it is kept by its other owners when this handle closes.

        Raises NotFoundError if there is none.
        """
        fd = lib.pcl_link_fd_by_id(link_id)
        if fd == -errno.ENOENT:
            raise NotFoundError(f"there is no link of id {link_id}: it was detached meanwhile")
        if fd < 0:
            raise refused(fd, f"cannot open the link of id {link_id}")
        return cls(fd, kept=True)

    @property
    def fd(self) -> int:
        """The file descriptor; raises ClosedError after `close()`."""
        if self._fd < 0:
            raise ClosedError("this link is closed: attach the program again, or use its pin")
        return self._fd

    @property
    def info(self) -> LinkInfo:
        """What the kernel says about this link, read anew each time."""
        raw = ffi.new("struct pcl_link_info *")
        err = lib.pcl_link_get_info(self.fd, raw)
        if err:
            raise refused(err, "cannot read the link's information")
        kind = LINK_TYPES.get(raw.type, f"type {raw.type}")
        attach_type = AttachType.XDP if kind == "xdp" else _attach_type(kind, raw.attach_type)
        return LinkInfo(
            kind=kind,
            id=raw.id,
            prog_id=raw.prog_id,
            ifindex=raw.ifindex,
            attach_type=attach_type,
            cgroup_id=raw.cgroup_id,
        )

    @property
    def attached(self) -> bool:
        """Whether the program is still attached: False once its device or cgroup is gone."""
        info = self.info
        return bool(info.ifindex or info.cgroup_id)

    @property
    def pinned(self) -> Path | None:
        """Where this handle pinned the link, or was opened from."""
        return self._pin

    def update(self, program: HasFd) -> None:
        """Replace the program: every packet meets either the old one or the new one.

        Raises DeviceError if the device has vanished, ExistsError if the new program is attached
        to the same tcx hook already.
        """
        err = lib.pcl_link_update(self.fd, program.fd)
        if err == -errno.ENOLINK:
            raise DeviceError(
                -err, "cannot update the link: its device or cgroup has vanished; attach again"
            )
        if err == -errno.EEXIST:
            raise ExistsError(
                "cannot update the link: the same program is attached to this hook by another "
                "link; load it once more, since a hook takes a program only once"
            )
        if err == -errno.EINVAL:
            raise refused(
                err,
                "cannot update the link: the new program is of another type or was loaded for "
                "another attach type than the present one",
            )
        if err:
            raise refused(err, "cannot update the link")

    def pin(self, path: str | os.PathLike[str]) -> None:
        """Pin the link below a bpffs: it then outlives this handle and the process.

        Raises ExistsError if the path is taken, StateError if it is not on a bpffs.
        """
        path = Path(path)
        err = lib.pcl_pin_fd(self.fd, os.fsencode(path))
        if err:
            raise _pin_refused(err, path)
        self._pin = path
        self._kept = True

    def unpin(self) -> None:
        """Remove the pin that this handle made or came from; `close()` then detaches.

        Raises StateError if it has none.
        """
        if self._pin is None:
            raise StateError("this link has no pin: nothing to remove")
        self._pin.unlink(missing_ok=True)
        self._pin = None
        self._kept = False

    def keep(self, path: str | os.PathLike[str]) -> None:
        """Let the attachment outlive the process; a bpf_link can do so only by a pin at `path`.

        The same call serves `TcFilter`, which needs no pin. If `path` pins this very link already,
        nothing happens.
        """
        if self._pin is not None and self._pin == Path(path):
            return
        self.pin(path)

    def detach(self) -> None:
        """Take the program off its hook now, pinned or not, and close this handle.

        Least kernel: 5.9.
        """
        err = lib.pcl_link_detach(self.fd)
        if err and err != -errno.ENOLINK:
            raise refused(err, "cannot detach the link")
        if self._pin is not None:
            self.unpin()
        self.close()

    def close(self) -> None:
        """Give the link up: this detaches the program unless the link is pinned. Idempotent."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Link:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_fd", -1) < 0:
            return
        if not self._kept:
            warnings.warn(f"unclosed link {self!r}: it is detached now", ResourceWarning, 2, self)
        self.close()

    def __repr__(self) -> str:
        if self._fd < 0:
            return "<Link closed>"
        try:
            info = self.info
        except KernelError:
            return f"<Link fd={self._fd}>"
        where = f"ifindex={info.ifindex}" if info.ifindex else f"cgroup={info.cgroup_id}"
        return f"<Link {info.kind} id={info.id} prog={info.prog_id} {where}>"


def program_name(prog_id: int) -> str:
    """The name of a loaded program with its id, for messages: `'from_endpoint' (id 42)`."""
    name = ffi.new("char[16]")
    if lib.pcl_prog_id_name(prog_id, name):
        return f"id {prog_id}"
    return f"{ffi.string(name).decode()!r} (id {prog_id})"


def program_id(program: HasFd) -> int:
    """The kernel's id of a loaded program."""
    out = ffi.new("uint32_t *")
    err = lib.pcl_prog_fd_id(program.fd, out)
    if err:
        raise refused(err, "cannot read the program's id")
    return int(out[0])


def refused(err: int, message: str) -> KernelError:
    """The error for `-errno` from the kernel; the caller raises it.

    `message` says what failed and may say why; for EPERM the missing capability is added.
    """
    code = abs(err)
    if code in (errno.EPERM, errno.EACCES):
        return PrivilegeError(
            code, f"{message}: this needs CAP_BPF and CAP_NET_ADMIN (or root); run it with those"
        )
    if code == errno.ENODEV:
        return DeviceError(code, f"{message}: no such device in this network namespace")
    return KernelError(code, message)


def _attach_type(kind: str, number: int) -> AttachType | None:
    known = kind in ("tcx", "netkit", "cgroup") and number in AttachType._value2member_map_
    return AttachType(number) if known else None


def _pin_refused(err: int, path: Path) -> PyCiliumError:
    if err == -errno.EEXIST:
        return ExistsError(f"cannot pin the link: {path} exists; unpin that one first")
    if err == -errno.EINVAL:
        return StateError(
            f"cannot pin the link: {path.parent} is not on a bpffs; see ensure_bpffs()"
        )
    if err == -errno.ENOENT:
        return NotFoundError(f"cannot pin the link: there is no directory {path.parent}")
    return refused(err, f"cannot pin the link at {path}")
