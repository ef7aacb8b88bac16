"""tc programs as filters of the clsact qdisc: how it is done where the kernel has no tcx (< 6.6).

A filter belongs to the device, not to a process: it lives on when its maker dies and is found
again by its handle and priority.
"""

from __future__ import annotations

import errno
import os
import warnings
from types import TracebackType
from typing import Literal

from pyciliumlib._libbpf import ffi, lib
from pyciliumlib.errors import (
    ClosedError,
    ExistsError,
    InvalidError,
    NotFoundError,
)
from pyciliumlib.kernel.device import device_index, device_label
from pyciliumlib.kernel.link import HasFd, LinkInfo, program_id, program_name, refused

Direction = Literal["ingress", "egress"]


class TcFilter:
    """A BPF filter (direct-action) of a device's clsact qdisc; the same interface as `Link`.

    The call must be made, and the filter be closed, in the device's network namespace.
    """

    def __init__(
        self, ifindex: int, direction: Direction, handle: int, priority: int, prog_id: int
    ) -> None:
        self.ifindex = ifindex
        self.direction: Direction = direction
        self.handle = handle
        self.priority = priority
        self._prog_id = prog_id
        self._kept = False
        self._closed = False

    @classmethod
    def attach(
        cls,
        program: HasFd,
        device: int | str,
        direction: Direction,
        *,
        handle: int = 1,
        priority: int = 1,
        replace: bool = False,
    ) -> TcFilter:
        """Attach a program; filters run by ascending priority (1 to 65535) until one decides.

        The clsact qdisc is made if it is missing, and left in place for others on `close()`.
        With `replace` the program of a filter of that handle and priority is replaced atomically,
        without it that is an ExistsError. Least kernel: 4.5.
        """
        _check(direction, handle, priority)
        ifindex = device_index(device)
        what = f"cannot attach a tc filter to {direction} of device {device_label(ifindex)}"
        err = lib.pcl_clsact_create(ifindex)
        if err:
            raise refused(err, f"{what}: no clsact qdisc can be made there")
        err = lib.pcl_clsact_attach(
            ifindex, direction == "egress", program.fd, handle, priority, replace
        )
        if err == -errno.EEXIST:
            found = _query(ifindex, direction, handle, priority)
            there = program_name(found) if found else "a filter that is no BPF program"
            raise ExistsError(
                f"{what}: {there} is there at priority {priority}, handle {handle}; take another "
                "priority or handle, or replace=True"
            )
        if err == -errno.EINVAL:
            raise refused(err, f"{what}: is it a tc (sched_cls) program?")
        if err:
            raise refused(err, what)
        return cls(ifindex, direction, handle, priority, program_id(program))

    @classmethod
    def find(
        cls, device: int | str, direction: Direction, *, handle: int = 1, priority: int = 1
    ) -> TcFilter | None:
        """The filter that is there at `handle` and `priority`, whoever made it, or None.

        It is kept, as a link from a pin is: `close()` leaves it, `detach()` removes it.
        """
        _check(direction, handle, priority)
        ifindex = device_index(device)
        prog_id = _query(ifindex, direction, handle, priority)
        if not prog_id:
            return None
        found = cls(ifindex, direction, handle, priority, prog_id)
        found._kept = True
        return found

    @property
    def info(self) -> LinkInfo:
        """What the kernel says about this filter; raises NotFoundError if it is gone."""
        self._check_open()
        prog_id = _query(self.ifindex, self.direction, self.handle, self.priority)
        if not prog_id:
            raise NotFoundError(f"{self!r} is gone: its device vanished, or somebody removed it")
        return LinkInfo(kind="clsact", id=self.handle, prog_id=prog_id, ifindex=self.ifindex)

    @property
    def attached(self) -> bool:
        """Whether the filter still runs our program."""
        self._check_open()
        return self._is_ours()

    def update(self, program: HasFd) -> None:
        """Replace the program in place: every packet meets either the old one or the new one."""
        self._check_open()
        err = lib.pcl_clsact_attach(
            self.ifindex, self.direction == "egress", program.fd, self.handle, self.priority, True
        )
        if err:
            raise refused(err, f"cannot update {self!r}")
        self._prog_id = program_id(program)

    def keep(self, path: str | os.PathLike[str] | None = None) -> None:
        """Let the filter stay when this handle closes; it needs no pin, so `path` is not used."""
        self._check_open()
        self._kept = True

    def detach(self) -> None:
        """Remove the filter, kept or not, and close this handle."""
        self._check_open()
        self._kept = False
        self.close()

    def close(self) -> None:
        """Remove the filter unless it is kept or somebody put another program there. Idempotent."""
        if self._closed:
            return
        if not self._kept and self._is_ours():
            err = lib.pcl_clsact_detach(
                self.ifindex, self.direction == "egress", self.handle, self.priority
            )
            if err and err not in (-errno.ENOENT, -errno.ENODEV):
                raise refused(err, f"cannot remove {self!r}")
        self._closed = True

    def _is_ours(self) -> bool:
        found = _query(self.ifindex, self.direction, self.handle, self.priority)
        return found == self._prog_id

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError("this tc filter is closed: attach the program again, or find() it")

    def __enter__(self) -> TcFilter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        # The filter itself stays: it belongs to the device, and this thread may have moved to
        # another namespace, where the same ifindex is another device.
        if not getattr(self, "_closed", True) and not self._kept:
            warnings.warn(f"unclosed {self!r}: it stays attached", ResourceWarning, 2, self)

    def __repr__(self) -> str:
        return (
            f"<TcFilter {self.direction} ifindex={self.ifindex} priority={self.priority} "
            f"handle={self.handle} prog={self._prog_id}>"
        )


def _check(direction: str, handle: int, priority: int) -> None:
    if direction not in ("ingress", "egress"):
        raise InvalidError(f'{direction!r} is no direction: use "ingress" or "egress"')
    if not 1 <= priority <= 0xFFFF:
        raise InvalidError(f"priority {priority} is out of range: use 1 to 65535")
    if not 1 <= handle <= 0xFFFFFFFF:
        raise InvalidError(f"handle {handle} is out of range: use 1 to 4294967295")


def _query(ifindex: int, direction: str, handle: int, priority: int) -> int:
    """The id of the program there, 0 if there is no such filter, qdisc or device."""
    out = ffi.new("uint32_t *")
    err = lib.pcl_clsact_query(ifindex, direction == "egress", handle, priority, out)
    if err in (-errno.ENOENT, -errno.ENODEV, -errno.EINVAL):
        return 0
    if err:
        raise refused(err, f"cannot ask device {device_label(ifindex)} for its tc filters")
    return int(out[0])
