"""The entries of a policy as numpy columns: who and what each is about, and what it says.

What it says is laid out as `bpf/lib/policy.h` has it. What it is about is a prefix of identity,
direction, protocol and port; `nodes.py` makes tries of that.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from socket import htons
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
from attrs import field, frozen

from pyciliumlib.policy.derivation import Derivation
from pyciliumlib.policy.model import Level, Tier, Verdict
from pyciliumlib.types import Direction, Protocol

if TYPE_CHECKING:
    import numpy.typing as npt

KEY_DTYPE: Final = np.dtype(
    [
        ("prefixlen", np.uint32),
        ("identity", np.uint32),
        ("direction", np.uint8),
        ("proto", np.uint8),
        ("port", ">u2"),
    ]
)
VALUE_DTYPE: Final = np.dtype(
    [
        ("proxy_port", ">u2"),
        ("flags", np.uint8),
        ("lpm_bits", np.uint8),
        ("precedence", np.uint32),
        ("rule", np.uint32),
        ("auth_type", np.uint8),
        ("pad", np.uint8, (3,)),
    ]
)
#: The same for one row, with ports in network order.
_KEY: Final = struct.Struct("=IIBBH")
_VALUE: Final = struct.Struct("=HBBIIB3x")

#: Bits of a key before its protocol: the identity, and the direction.
STATIC_BITS: Final = 40
PROTOCOL_BITS: Final = 8
PORT_BITS: Final = 16
FLAG_DENY: Final = 1
FLAG_AUDIT: Final = 2
AUTH_EXPLICIT: Final = 0x80
AUTH_MODE: Final = 0x7F
#: The proxy port of a redirect that no proxy serves yet: the packet is dropped.
NO_PROXY: Final = 0xFFFF
ANY_IDENTITY: Final = 0

DENY_BYTE: Final = 255
ALLOW_BYTE: Final = 1
PASS_BYTE: Final = 0
_PRIORITY_MAX: Final = 0xFFFFFF
_LEVEL_BITS: Final = 20
_TIERS: Final = {tier: number << _LEVEL_BITS for number, tier in enumerate(Tier)}
#: Below this many templates, copying them one by one costs less than working out all rows.
_FEW_TEMPLATES: Final = 4


def precedence(action: int, priority: int = 0) -> int:
    """The number by which entries are compared: a lower `priority` wins, then a higher `action`.

    >>> hex(precedence(DENY_BYTE)), hex(precedence(ALLOW_BYTE, priority=1))
    ('0xffffffff', '0xfffffe01')
    """
    return (_PRIORITY_MAX - priority) << 8 | action


def priority_of(level: Level) -> int:
    """The priority of a level in the map: below 2**22, in the order of levels."""
    return _TIERS[level.tier] + level.priority


class Slot(NamedTuple):
    """The part of a key that is not the identity: direction, protocol, and a prefix of the port.

    `bits` is how many leading bits of the port are fixed. A tuple, since policies are resolved
    slot by slot.
    """

    direction: Direction
    proto: Protocol = Protocol.ANY
    port: int = 0
    bits: int = 0

    @property
    def lpm_bits(self) -> int:
        """How many protocol and port bits are fixed: 0 to 24."""
        return PROTOCOL_BITS + self.bits if self.proto else 0

    def wider(self, lengths: Iterable[int] = range(15, -1, -1)) -> Iterator[Slot]:
        """Every slot that covers this one, with ports those of which `lengths` bits are fixed."""
        for bits in lengths:
            if bits < self.bits:
                port = self.port >> (16 - bits) << (16 - bits)
                yield Slot(self.direction, self.proto, port, bits)
        if self.proto:
            yield Slot(self.direction)


@frozen
class EntryValue:
    """What an entry says: `rule` is the cookie of the rules behind it.

    `auth` is the mode of authentication, with `AUTH_EXPLICIT` where a rule of this very entry says
    so, and not one of a wider entry. With `audit`, what the entry would keep out passes. As long as
    `derivation` is held, the cookie is known.
    """

    precedence: int
    rule: int
    proxy_port: int = 0
    auth: int = 0
    audit: bool = False
    derivation: Derivation | None = field(default=None, eq=False, repr=False)

    @property
    def verdict(self) -> Verdict:
        """What becomes of a packet that this entry decides."""
        if self.precedence & 0xFF == DENY_BYTE:
            return Verdict.DENY
        return Verdict.REDIRECT if self.proxy_port else Verdict.ALLOW


def _rows_at(rows: npt.NDArray[Any], places: npt.NDArray[np.intp]) -> npt.NDArray[Any]:
    """A copy of the rows at `places`: as opaque bytes, which is much faster than field by field."""
    return as_bytes(rows)[places].view(rows.dtype)


def as_bytes(rows: npt.NDArray[Any]) -> npt.NDArray[np.void]:
    """Each row as opaque bytes, so that rows can be compared and sorted."""
    flat = np.ascontiguousarray(rows)
    return flat.view(np.dtype((np.void, flat.dtype.itemsize)))


def pack_entry(value: Any) -> bytes:
    """The bytes of a `struct policy_entry` that is given by its fields."""
    return _VALUE.pack(
        htons(value.proxy_port),
        value.flags,
        value.lpm_bits,
        value.precedence,
        value.rule,
        value.auth_type,
    )


@frozen(eq=False)
class PolicyEntries:
    """Keys and values of map entries, one row an entry."""

    keys: npt.NDArray[Any]
    values: npt.NDArray[Any]

    @classmethod
    def empty(cls) -> PolicyEntries:
        """No entries."""
        return cls(np.zeros(0, KEY_DTYPE), np.zeros(0, VALUE_DTYPE))

    @classmethod
    def of(cls, rows: Iterable[tuple[Slot, EntryValue]], identity: int = 0) -> PolicyEntries:
        """The entries of one identity."""
        keys, values = bytearray(), bytearray()
        for slot, value in rows:
            direction, proto, port, fixed = slot
            bits = PROTOCOL_BITS + fixed if proto else 0
            flags = FLAG_DENY if value.precedence & 0xFF == DENY_BYTE else 0
            if value.audit:
                flags |= FLAG_AUDIT
            keys += _KEY.pack(STATIC_BITS + bits, identity, direction, proto, htons(port))
            values += _VALUE.pack(
                htons(value.proxy_port), flags, bits, value.precedence, value.rule, value.auth
            )
        return cls(np.frombuffer(keys, KEY_DTYPE), np.frombuffer(values, VALUE_DTYPE))

    def rows(self) -> Iterator[tuple[int, Slot, EntryValue]]:
        """Each entry as identity, slot and value."""
        for key, value in zip(self.keys.tolist(), self.values.tolist(), strict=True):
            _, identity, direction, proto, port = key
            proxy_port, flags, lpm_bits, order, rule, auth, *_ = value
            audit = bool(flags & FLAG_AUDIT)
            bits = max(0, lpm_bits - PROTOCOL_BITS)
            slot = Slot(Direction(direction), Protocol(proto), port, bits)
            yield (
                identity,
                slot,
                EntryValue(order, rule, proxy_port, auth, audit),
            )

    @classmethod
    def concatenate(cls, parts: Sequence[PolicyEntries]) -> PolicyEntries:
        """The entries of all parts, in their order."""
        parts = [part for part in parts if len(part)]
        if len(parts) < 2:
            return parts[0] if parts else cls.empty()
        keys = b"".join([part.keys.tobytes() for part in parts])
        values = b"".join([part.values.tobytes() for part in parts])
        return cls(np.frombuffer(keys, KEY_DTYPE), np.frombuffer(values, VALUE_DTYPE))

    @classmethod
    def spread(
        cls,
        templates: Sequence[PolicyEntries],
        counts: Sequence[int],
        identities: npt.NDArray[np.uint32],
    ) -> PolicyEntries:
        """A copy of each template for each of its identities.

        `identities` are the first template's, as many as the first of `counts`, then the next's.
        """
        lengths = [len(template) for template in templates]
        if not sum(lengths):
            return cls.empty()
        if len(templates) < _FEW_TEMPLATES:
            of_each = np.split(identities, np.cumsum(counts)[:-1])
            return cls.concatenate(
                [t.for_identities(i) for t, i in zip(templates, of_each, strict=True)]
            )
        # for each identity, in the order of its entries: where its template starts, and its length
        starts = np.repeat(np.cumsum(lengths) - lengths, counts)
        repeats = np.repeat(lengths, counts)
        ends = np.cumsum(repeats)
        rows = np.arange(ends[-1]) + np.repeat(starts - ends + repeats, repeats)
        patterns = cls.concatenate(templates)
        keys = _rows_at(patterns.keys, rows)
        keys["identity"] = np.repeat(identities, repeats)
        return cls(keys, _rows_at(patterns.values, rows))

    def for_identities(self, identities: npt.NDArray[np.uint32]) -> PolicyEntries:
        """A copy of these entries for each of `identities`."""
        count = len(identities)
        if count == 1:
            keys = self.keys.copy()
            keys["identity"] = identities
            return PolicyEntries(keys, self.values)
        keys = np.repeat(self.keys, count)
        keys["identity"] = np.tile(identities, len(self.keys))
        return PolicyEntries(keys, np.repeat(self.values, count))

    def without_keys_of(self, other: PolicyEntries) -> PolicyEntries:
        """These entries less those whose key `other` has too."""
        kept = ~np.isin(as_bytes(self.keys), as_bytes(other.keys))
        return PolicyEntries(self.keys[kept], self.values[kept])

    def __len__(self) -> int:
        return len(self.keys)

    def __repr__(self) -> str:
        return f"PolicyEntries({len(self)} entries)"
