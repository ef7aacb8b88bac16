"""Where a program goes among those that a tcx or netkit hook runs already: order as a value."""

from __future__ import annotations

import attrs

from pyciliumlib.errors import InvalidError
from pyciliumlib.kernel.link import HasFd, Link
from pyciliumlib.kernel.uapi import BPF_F_AFTER, BPF_F_BEFORE, BPF_F_ID, BPF_F_LINK


@attrs.frozen
class Head:
    """First of all programs that the hook runs."""


@attrs.frozen
class Tail:
    """Last of all programs that the hook runs."""


@attrs.frozen
class Before:
    """Right before `other`: a `Link`, a program, or the id of a program."""

    other: Link | HasFd | int


@attrs.frozen
class After:
    """Right after `other`: a `Link`, a program, or the id of a program."""

    other: Link | HasFd | int


Anchor = Head | Tail | Before | After


def anchor_flags(anchor: Anchor) -> tuple[int, int]:
    """The flags and the `relative_fd` or `relative_id` that say `anchor` to the kernel.

    Raises InvalidError for anything that is no anchor.
    """
    if isinstance(anchor, Head):
        return BPF_F_BEFORE, 0
    if isinstance(anchor, Tail):
        return BPF_F_AFTER, 0
    if isinstance(anchor, Before):
        flags, relative = _relative(anchor.other)
        return BPF_F_BEFORE | flags, relative
    if isinstance(anchor, After):
        flags, relative = _relative(anchor.other)
        return BPF_F_AFTER | flags, relative
    raise InvalidError(f"{anchor!r} is no anchor: use Head(), Tail(), Before(x) or After(x)")


def _relative(other: Link | HasFd | int) -> tuple[int, int]:
    if isinstance(other, Link):
        return BPF_F_LINK, other.fd
    if isinstance(other, bool) or (isinstance(other, int) and other <= 0):
        raise InvalidError(f"{other!r} is no program id: ids are positive")
    if isinstance(other, int):
        return BPF_F_ID, other
    if not isinstance(getattr(other, "fd", None), int):
        raise InvalidError(f"cannot order by {other!r}: give a link, a program or a program's id")
    return 0, other.fd
