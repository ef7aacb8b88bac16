"""tc programs as filters of the clsact qdisc: how it is done where the kernel has no tcx (< 6.6).

A filter belongs to the device, not to a process: it lives on when its maker dies and is found
again by its handle and priority.
"""

from __future__ import annotations

import errno
import os
import warnings
from typing import Literal

from pyciliumlib.closeable import Closeable
from pyciliumlib.errors import ClosedError, ExistsError, InvalidError, NotFoundError
from pyciliumlib.kernel._binding import ffi, lib, take_messages
from pyciliumlib.kernel.device import device_index, device_label, refuse
from pyciliumlib.kernel.link import HasFd, LinkInfo, program_id, program_label

Direction = Literal["ingress", "egress"]

_GONE = (-errno.ENOENT, -errno.ENODEV, -errno.EINVAL)
"""No such filter, no such device, no clsact qdisc."""


class TcFilter(Closeable):
    """A BPF filter (direct-action) of a device's clsact qdisc; the same interface as `Link`.

    All calls must be made in the device's network namespace. Calls from several threads are fine.
    """

    def __init__(
        self,
        ifindex: int,
        direction: Direction,
        handle: int,
        priority: int,
        prog_id: int,
        *,
        kept: bool = False,
    ) -> None:
        self.ifindex = ifindex
        self.direction: Direction = direction
        self.handle = handle
        self.priority = priority
        self._prog_id = prog_id
        self._kept = kept
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
        doing = f"attach a tc filter to {direction} of {device_label(ifindex)}"
        err = lib.pcl_clsact_create(ifindex)
        take_messages(quiet=True)
        if err:
            refuse(err, doing, "no clsact qdisc can be made there (CONFIG_NET_CLS_ACT, _BPF)")
        err = lib.pcl_clsact_attach(
            ifindex, direction == "egress", program.fd, handle, priority, replace
        )
        said = take_messages(quiet=True).strip()
        if err == -errno.EEXIST:
            found = _query(ifindex, direction, handle, priority)
            there = program_label(found) if found else "a filter that is no BPF program"
            raise ExistsError(
                f"cannot {doing}: {there} is there at priority {priority}, handle {handle}; take "
                "another priority or handle, or replace=True"
            )
        if err:
            refuse(err, doing, f"is it a tc (sched_cls) program? {said}".strip())
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
        return cls(ifindex, direction, handle, priority, prog_id, kept=True) if prog_id else None

    @property
    def closed(self) -> bool:
        return self._closed

    @property
    def info(self) -> LinkInfo:
        """What the kernel says about this filter; raises NotFoundError if it is gone."""
        prog_id = self._present()
        if not prog_id:
            raise NotFoundError(f"{self!r} is gone: its device vanished, or somebody removed it")
        return LinkInfo(kind="clsact", id=self.handle, prog_id=prog_id, ifindex=self.ifindex)

    @property
    def attached(self) -> bool:
        """Whether the filter is still there and runs our program."""
        return self._present() == self._prog_id

    def update(self, program: HasFd) -> None:
        """Replace the program in place: every packet meets either the old one or the new one."""
        self._check_open()
        err = lib.pcl_clsact_attach(
            self.ifindex, self.direction == "egress", program.fd, self.handle, self.priority, True
        )
        said = take_messages(quiet=True).strip()
        if err:
            refuse(err, f"update {self!r}", f"is it a tc (sched_cls) program? {said}".strip())
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
        if not self._kept and self.attached:
            err = lib.pcl_clsact_detach(
                self.ifindex, self.direction == "egress", self.handle, self.priority
            )
            take_messages(quiet=True)
            if err and err not in _GONE:
                refuse(err, f"remove {self!r}")
        self._closed = True

    def _present(self) -> int:
        self._check_open()
        return _query(self.ifindex, self.direction, self.handle, self.priority)

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError("this tc filter was closed: attach the program again, or find() it")

    def __del__(self) -> None:
        # The filter itself stays: it belongs to the device, and this thread may be in another
        # namespace by now, where the same ifindex is another device.
        if not getattr(self, "_closed", True) and not self._kept:
            warnings.warn(
                f"{self!r} was never closed and stays attached",
                ResourceWarning,
                stacklevel=2,
                source=self,
            )

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
    """The id of the program there; 0 if there is no such filter, qdisc or device."""
    out = ffi.new("uint32_t *")
    err = lib.pcl_clsact_query(ifindex, direction == "egress", handle, priority, out)
    take_messages(quiet=True)
    if err in _GONE:
        return 0
    if err:
        refuse(err, f"ask {device_label(ifindex)} for its tc filters")
    return int(out[0])
