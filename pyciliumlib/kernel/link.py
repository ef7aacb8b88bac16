"""A link: one program attached to one hook, and its one owner.

    with attach_tc(program, "eth0", "ingress") as link:
        ...                                 # detached at the end of the block

`keep()` and `pin()` say that the attachment outlives the process; `update()` replaces the program
without a packet in between that sees none.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Protocol

import attrs

from pyciliumlib.errors import (
    DeviceError,
    ExistsError,
    KernelError,
    NotFoundError,
    StateError,
)
from pyciliumlib.kernel._binding import ffi, lib
from pyciliumlib.kernel.device import refuse
from pyciliumlib.kernel.failures import number_of
from pyciliumlib.kernel.pin import open_pin, pin, unpin
from pyciliumlib.kernel.resource import Resource
from pyciliumlib.kernel.uapi import LINK_TYPES, AttachType

_LINK_FILES = ("anon_inode:bpf_link", "anon_inode:bpf-link")
"""What /proc calls a link's descriptor, before and since the kernel spells it with a dash."""


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


class Link(Resource):
    """A bpf_link. The kernel detaches the program when the last of the link's owners is gone.

    Made by `attach_xdp`, `attach_tc`, `attach_netkit` and `attach_cgroup`, and by `Link.from_pin`
    and `Link.from_id`. Its owners are the open handles and the pin: `close()` detaches the program
    unless another of them is left. A handle that is forgotten is closed by the garbage collector
    with a ResourceWarning.
    """

    __slots__ = ("_pin",)

    def __init__(self, fd: int, name: str) -> None:
        super().__init__(fd, name)
        self._pin: Path | None = None

    @classmethod
    def from_pin(cls, path: str | os.PathLike[str]) -> Link:
        """The link that is pinned at `path`.

        Raises NotFoundError if nothing is there and StateError if it is no link.
        """
        fd = open_pin(path, "link")
        kind = str(Path(f"/proc/self/fd/{fd}").readlink())
        if kind not in _LINK_FILES:
            os.close(fd)
            raise StateError(
                f"{os.fspath(path)} pins no link but {kind}: give the path of a link's pin"
            )
        link = cls(fd, os.fspath(path))
        link._pin = Path(path)
        return link

    @classmethod
    def from_id(cls, link_id: int) -> Link:
        """One more handle on the link of that id.

        Raises NotFoundError if there is none, PrivilegeError without CAP_SYS_ADMIN.
        """
        fd = lib.pcl_link_fd_by_id(number_of(link_id))
        if fd == -errno.ENOENT:
            raise NotFoundError(f"there is no link of id {link_id}: it was detached meanwhile")
        if fd < 0:
            refuse(fd, f"open the link of id {link_id}")
        return cls(fd, f"id {link_id}")

    @property
    def info(self) -> LinkInfo:
        """What the kernel says about this link, read anew each time."""
        raw = ffi.new("struct pcl_link_info *")
        err = lib.pcl_link_get_info(self.fd, raw)
        if err:
            refuse(err, f"read the information of {self._what()}")
        kind = LINK_TYPES.get(raw.type, f"type {raw.type}")
        return LinkInfo(
            kind=kind,
            id=raw.id,
            prog_id=raw.prog_id,
            ifindex=raw.ifindex,
            attach_type=_attach_type(kind, raw.attach_type),
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
        to the same hook already.
        """
        err = lib.pcl_link_update(self.fd, program.fd)
        if err == -errno.ENOLINK:
            raise DeviceError(
                -err, f"cannot update {self._what()}: its device or cgroup is gone; attach again"
            )
        if err == -errno.EEXIST:
            raise ExistsError(
                f"cannot update {self._what()}: the same program is attached to this hook by "
                "another link; load it once more, since a hook takes a program only once"
            )
        if err:
            refuse(
                err,
                f"update {self._what()}",
                "the new program is of another type, or was loaded for another attach type, than "
                "the present one",
            )

    def pin(self, path: str | os.PathLike[str]) -> None:
        """Pin the link below a bpffs: it then outlives this handle and the process.

        Raises ExistsError if the path is taken, NotFoundError if its directory is missing,
        KernelError if that is not on a bpffs (see `ensure_bpffs`), StateError if this handle has
        a pin already.
        """
        if self._pin is not None:
            raise StateError(f"{self._what()} is pinned at {self._pin}: unpin() it first")
        pin(self.fd, path, self._what())
        self._pin = Path(path)

    def unpin(self) -> None:
        """Remove the pin that this handle made or came from; `close()` then detaches.

        Raises StateError if it has none.
        """
        if self._pin is None:
            raise StateError(f"{self._what()} has no pin: nothing to remove")
        unpin(self._pin)
        self._pin = None

    def keep(self, path: str | os.PathLike[str]) -> None:
        """Let the attachment outlive the process: a bpf_link can do so only by a pin at `path`.

        The same call serves `TcFilter`, which needs no pin. Nothing happens if this handle pinned
        the link there already.
        """
        if self._pin is None or self._pin != Path(path):
            self.pin(path)

    def detach(self) -> None:
        """Take the program off its hook now whoever else owns the link, unpin it and close.

        Least kernel: 5.9.
        """
        err = lib.pcl_link_detach(self.fd)
        if err and err != -errno.ENOLINK:
            refuse(err, f"detach {self._what()}")
        if self._pin is not None:
            self.unpin()
        self.close()

    def __repr__(self) -> str:
        if self.closed:
            return f"<Link {self.name!r} closed>"
        try:
            info = self.info
        except KernelError as error:
            return f"<Link {self.name!r}: {error}>"
        where = f"cgroup={info.cgroup_id}" if info.kind == "cgroup" else f"ifindex={info.ifindex}"
        return f"<Link {self.name!r} {info.kind} id={info.id} prog={info.prog_id} {where}>"


def live_link(pin: str | os.PathLike[str]) -> Link | None:
    """The link that is pinned there; None if there is none.

    Nor is there one whose device or cgroup is gone: its pin is removed.
    """
    try:
        link = Link.from_pin(pin)
    except NotFoundError:
        return None
    if link.attached:
        return link
    link.unpin()
    link.close()
    return None


def program_label(prog_id: int) -> str:
    """A loaded program for messages: `'from_endpoint' (id 42)`."""
    name = ffi.new("char[16]")
    if lib.pcl_prog_id_name(prog_id, name):
        return f"program of id {prog_id}"
    return f"program {ffi.string(name).decode()!r} (id {prog_id})"


def program_id(program: HasFd) -> int:
    """The kernel's id of a loaded program."""
    out = ffi.new("uint32_t *")
    err = lib.pcl_prog_fd_id(program.fd, out)
    if err:
        refuse(err, "read a program's id")
    return int(out[0])


def _attach_type(kind: str, number: int) -> AttachType | None:
    if kind == "xdp":  # the kernel leaves the field empty
        return AttachType.XDP
    if kind not in LINK_TYPES.values():
        return None
    try:
        return AttachType(number)
    except ValueError:  # a hook that this library does not attach to
        return None
