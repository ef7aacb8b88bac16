"""The context that a program runs on in a test-run: `__sk_buff` or `xdp_md`, by field name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import attrs

from pyciliumlib.errors import InvalidError, nearest
from pyciliumlib.kernel._binding import ffi
from pyciliumlib.kernel.kinds import ProgramType

ContextValue = int | tuple[int, ...]


@attrs.frozen
class ContextType:
    """A C struct, and the fields that the kernel lets a test-run set and gives back."""

    struct: str
    fields: tuple[str, ...]


# bpf_prog_test_run_skb() in net/bpf/test_run.c refuses everything else that is not zero.
_SKB: Final = ContextType(
    "struct __sk_buff",
    (
        "mark",
        "priority",
        "ifindex",
        "ingress_ifindex",
        "cb",
        "tstamp",
        "wire_len",
        "gso_segs",
        "gso_size",
        "hwtstamp",
    ),
)
_XDP: Final = ContextType(
    "struct xdp_md", ("data", "data_meta", "data_end", "ingress_ifindex", "rx_queue_index")
)

CONTEXTS: Final[Mapping[ProgramType, ContextType]] = {
    ProgramType.SOCKET_FILTER: _SKB,
    ProgramType.SCHED_CLS: _SKB,
    ProgramType.SCHED_ACT: _SKB,
    ProgramType.CGROUP_SKB: _SKB,
    ProgramType.LWT_IN: _SKB,
    ProgramType.LWT_OUT: _SKB,
    ProgramType.LWT_XMIT: _SKB,
    ProgramType.XDP: _XDP,
}


def new_context(kind: ContextType, values: Mapping[str, Any]) -> Any:
    """The C struct with `values` set; raises InvalidError for a field that cannot be."""
    context = ffi.new(f"{kind.struct} *")
    for name, value in values.items():
        if name not in kind.fields:
            raise InvalidError(
                f"a test-run cannot set {kind.struct}.{name}{nearest(name, kind.fields)}; "
                f"it can set {', '.join(kind.fields)}"
            )
        try:
            setattr(context, name, value)
        except (TypeError, OverflowError, IndexError) as error:
            raise InvalidError(f"{kind.struct}.{name}: {error}") from None
    return context


def read_context(kind: ContextType, context: Any) -> dict[str, ContextValue]:
    """The fields that a test-run gives back."""
    return {name: _plain(getattr(context, name)) for name in kind.fields}


def _plain(value: Any) -> ContextValue:
    return value if isinstance(value, int) else tuple(value)
