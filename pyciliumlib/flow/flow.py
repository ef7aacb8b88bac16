"""One observed packet, as the datapath tells it."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timezone
from itertools import repeat
from typing import TYPE_CHECKING, Any

from attrs import field, fields, frozen

from pyciliumlib.flow.reasons import DropReason, TracePoint, reason_text
from pyciliumlib.types import Address, Direction, Protocol
from pyciliumlib.types.addresses import address_from_bytes

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

#: Gives an address and an identity a name to print, or None.
Namer = Callable[[Address, int], "str | None"]


@frozen
class FlowService:
    """The service by which the opener of a flow reaches the other end, as the opener knows it."""

    namespace: str
    name: str
    address: Address
    port: int

    def __str__(self) -> str:
        host = f"[{self.address}]" if self.address.version == 6 else str(self.address)
        return f"{self.namespace}/{self.name} {host}:{self.port}"


#: Says which service a number of `lb_frontends` stands for, or None.
ServiceNamer = Callable[[int], "FlowService | None"]


class FlowType(enum.IntEnum):
    """What kind of event it was; Cilium's monitor numbers."""

    DROP = 1
    TRACE = 4
    VERDICT = 5


class Verdict(enum.Enum):
    """What became of the packet; AUDIT is one that policy denies and an audit lets pass."""

    FORWARDED = "FORWARDED"
    DROPPED = "DROPPED"
    AUDIT = "AUDIT"


_TCP_FLAGS = ("FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR")
_IPV6, _REPLY, _NEW, _RELATED, _AUDITED = 1, 2, 4, 8, 16
#: Fields of a flow that are the event's of the same name.
_AS_THEY_ARE = (
    "sport",
    "dport",
    "src_identity",
    "dst_identity",
    "endpoint",
    "ifindex",
    "length",
    "rule",
    "tcp_flags",
    "icmp_type",
    "file",
    "line",
)


@frozen
class Flow:
    """One event of the datapath.

    `time` is Unix time in seconds, `length` the bytes of the frame, `rule` the cookie of the policy
    entry that decided (0 = none). `reason` is the drop reason's number, 0 for what went on. Of a
    packet that is translated for a `service`, `src` and `dst` are what policy sees, the client and
    the backend.
    """

    time: float
    type: FlowType
    verdict: Verdict
    reason: int
    src: Address
    dst: Address
    sport: int
    dport: int
    protocol: int
    src_identity: int
    dst_identity: int
    direction: Direction
    endpoint: int
    ifindex: int
    length: int
    rule: int
    tcp_flags: int = 0
    icmp_type: int = 0
    is_reply: bool = False
    is_new: bool = False
    is_related: bool = False
    point: TracePoint | None = None
    file: int = 0
    line: int = 0
    src_name: str | None = field(default=None)
    dst_name: str | None = field(default=None)
    service: FlowService | None = None

    @property
    def dropped(self) -> bool:
        """Whether the packet went no further."""
        return self.verdict is Verdict.DROPPED

    @property
    def drop_reason(self) -> DropReason | None:
        """The reason as an enum; None for what went on and for numbers not known here."""
        try:
            return DropReason(self.reason) if self.dropped else None
        except ValueError:
            return None

    @property
    def protocol_name(self) -> str:
        """The protocol as "TCP" or "ICMPv6"; its number if it has no name here."""
        try:
            return Protocol(self.protocol).name
        except ValueError:
            return str(self.protocol)

    def __str__(self) -> str:
        when = datetime.fromtimestamp(self.time, timezone.utc).strftime("%H:%M:%S.%f")[:-3]
        arrow = "<-" if self.is_reply else "->"
        left = self._end(self.src, self.sport, self.src_name, self.src_identity)
        right = self._end(self.dst, self.dport, self.dst_name, self.dst_identity)
        if self.is_reply:
            left, right = right, left
        by = f" by {self.service}" if self.service else ""
        what = f"{self._what()}  {self.verdict.value}{self._why()}"
        return f"{when}  {left} {arrow} {right}{by}  {what}"

    def _end(self, address: Address, port: int, name: str | None, identity: int) -> str:
        has_port = self.protocol in (Protocol.TCP, Protocol.UDP, Protocol.SCTP)
        host = name or (f"[{address}]" if address.version == 6 and has_port else str(address))
        return f"{host}:{port} ({identity})" if has_port else f"{host} ({identity})"

    def _what(self) -> str:
        detail = self.protocol_name
        if self.protocol == Protocol.TCP:
            names = [name for bit, name in enumerate(_TCP_FLAGS) if self.tcp_flags >> bit & 1]
            detail += f" {','.join(names)}" if names else ""
        elif self.protocol in (Protocol.ICMP, Protocol.ICMPv6):
            detail += f" type {self.icmp_type}"
        if self.type is FlowType.TRACE:
            return f"{self.point} {detail}"
        if self.type is FlowType.VERDICT:
            return f"policy-verdict {self.direction} {detail}"
        return f"drop {self.direction} {detail}"

    def _why(self) -> str:
        return f": {reason_text(self.reason)}" if self.dropped else ""


def decode(
    events: npt.NDArray[Any],
    boot_time: float,
    namer: Namer | None = None,
    services: ServiceNamer | None = None,
) -> Iterator[Flow]:
    """Flows from an array of `struct event`; with `namer`, their ends have names.

    `boot_time` is the Unix time, in seconds, at which the kernel's monotonic clock was zero.
    `services` tells the service of those that went by one.
    Events of a kind that is not known here, such as a newer program's, are passed over.
    """
    known = events[_known(events)]
    columns = _columns(known, boot_time, namer)
    frontends = known["frontend"].tolist()
    columns["service"] = repeat(None) if services is None else _each(services, frontends)
    return map(Flow, *(columns[field.name] for field in fields(Flow)))


def _known(events: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Which events this version understands: their kind, and a trace's place."""
    import numpy as np

    kinds = events["type"]
    known: npt.NDArray[np.bool_] = np.isin(kinds, list(FlowType))
    known &= np.isin(events["direction"], list(Direction))
    known &= (kinds != FlowType.TRACE) | np.isin(events["reason"], list(TracePoint))
    return known


def _columns(
    events: npt.NDArray[Any], boot_time: float, namer: Namer | None
) -> dict[str, Iterable[Any]]:
    """The fields of all flows. A value that many events share is made once."""
    kinds, flags = events["type"], events["flags"]
    reasons = events["reason"] * (kinds != FlowType.TRACE)
    points = zip(events["reason"].tolist(), kinds.tolist(), strict=True)
    fates = zip((reasons != 0).tolist(), (flags & _AUDITED != 0).tolist(), strict=True)
    columns: dict[str, Iterable[Any]] = {name: events[name].tolist() for name in _AS_THEY_ARE}
    columns |= {
        "time": (events["time_ns"] / 1e9 + boot_time).tolist(),
        "type": _each(FlowType, kinds.tolist()),
        "verdict": _each(_verdict, fates),
        "reason": reasons.tolist(),
        "protocol": events["proto"].tolist(),
        "direction": _each(Direction, events["direction"].tolist()),
        "is_reply": (flags & _REPLY != 0).tolist(),
        "is_new": (flags & _NEW != 0).tolist(),
        "is_related": (flags & _RELATED != 0).tolist(),
        "point": _each(_point, points),
    }
    for end in ("src", "dst"):
        data = events[end].tobytes()
        addresses = [data[at : at + 16] for at in range(0, len(data), 16)]
        columns[end] = _each(address_from_bytes, addresses)
        if namer is None:
            columns[f"{end}_name"] = repeat(None)
        else:
            ends = zip(addresses, columns[f"{end}_identity"], strict=True)
            columns[f"{end}_name"] = _each(
                lambda end: namer(address_from_bytes(end[0]), end[1]), ends
            )
    return columns


def _each(make: Callable[[Any], Any], values: Iterable[Any]) -> list[Any]:
    """`make` of each value, called once for equal ones."""
    values = list(values)
    made = {value: make(value) for value in set(values)}
    return [made[value] for value in values]


def _verdict(fate: tuple[bool, bool]) -> Verdict:
    dropped, audited = fate
    if dropped:
        return Verdict.DROPPED
    return Verdict.AUDIT if audited else Verdict.FORWARDED


def _point(event: tuple[int, int]) -> TracePoint | None:
    reason, kind = event
    return TracePoint(reason) if kind == FlowType.TRACE else None
