"""A policy map's rows against what it should hold: the plan, its safe order, the lookup.

A row has all that is said of its identity and of any. So a change in place writes the rows of
identities first, then that of any identity (row 0), and then takes out rows: in each state between
each identity is judged wholly as before or wholly as afterwards.

That holds for whoever looks at one state. A program that looks for a row of the kernel's hash while
it is written over may find neither the old one nor the new one; so maps that programs read get new
rows in place and nothing else, and are changed by another map (`policy/program/tries.py`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
from attrs import define, field, frozen

from pyciliumlib.errors import LayoutError
from pyciliumlib.policy.entries import (
    ANY_IDENTITY,
    AUTH_EXPLICIT,
    AUTH_MODE,
    FLAG_AUDIT,
    FLAG_DENY,
    NO_PROXY,
    STATIC_BITS,
    PolicyEntries,
    as_bytes,
)
from pyciliumlib.policy.grouped import GroupedEntries
from pyciliumlib.policy.model import Authentication, Verdict
from pyciliumlib.policy.nodes import ROOTS_DTYPE, PolicyNodes, visible
from pyciliumlib.types import Direction, Protocol

if TYPE_CHECKING:
    from pyciliumlib.types import MapLike

#: Drop reasons of `bpf/lib/drop.h`: no rule allows; a rule denies; the rule's proxy is not there.
DROP_POLICY: Final = 133
DROP_POLICY_DENY: Final = 181
DROP_NO_PROXY: Final = 220
#: The rule asks for authentication, and the ends are not authenticated.
DROP_POLICY_AUTH_REQUIRED: Final = 189


@frozen(eq=False)
class Plan:
    """What makes a map hold the wanted entries: new ones, other values, and keys to go."""

    adds: PolicyEntries
    changes: PolicyEntries
    deletes: PolicyEntries

    def __bool__(self) -> bool:
        return bool(len(self.adds) or len(self.changes) or len(self.deletes))

    def __str__(self) -> str:
        return f"{len(self.adds)} to add, {len(self.changes)} to change, {len(self.deletes)} to go"


def plan(wanted: PolicyEntries, held: PolicyEntries) -> Plan:
    """How to get from `held` to `wanted`."""
    wanted_keys, held_keys = as_bytes(wanted.keys), as_bytes(held.keys)
    stale = ~np.isin(held_keys, wanted_keys)
    order = np.argsort(held_keys)
    at = np.searchsorted(held_keys, wanted_keys, sorter=order)
    at = order[np.minimum(at, len(order) - 1)] if len(order) else np.zeros(len(wanted), np.intp)
    known = held_keys[at] == wanted_keys if len(order) else np.zeros(len(wanted), np.bool_)
    differs = known.copy()
    differs[known] = as_bytes(wanted.values)[known] != as_bytes(held.values)[at[known]]
    return Plan(
        PolicyEntries(wanted.keys[~known], wanted.values[~known]),
        PolicyEntries(wanted.keys[differs], wanted.values[differs]),
        PolicyEntries(held.keys[stale], held.values[stale]),
    )


def read(map_: MapLike, nodes: PolicyNodes) -> PolicyEntries:
    """What programs find in an endpoint's map and the shared `nodes`.

    An entry whose slot narrower ones fill wholly is not found by anybody. Raises LayoutError if it
    is not such a map.
    """
    keys, values = map_.lookup_batch()
    _check(map_)
    return nodes.read(keys, values)


def drift(wanted: GroupedEntries, map_: MapLike, nodes: PolicyNodes) -> Plan:
    """How far a map is from `wanted`; an empty plan where it is not."""
    return plan(visible(wanted), read(map_, nodes))


def sync(wanted: GroupedEntries, map_: MapLike, nodes: PolicyNodes) -> Plan:
    """Make a map hold exactly `wanted`, in the order of the module's head; what had to change.

    Not for a map of the kernel in which programs look meanwhile: they may miss what is written
    over.

    Raises MapFullError, if the map has too few places or the shared nodes do.
    """
    steps = drift(wanted, map_, nodes)
    try:
        keys, values = nodes.rows(wanted)
        nodes.flush()
    except BaseException:
        nodes.forget_new()
        raise
    held = map_.lookup_batch()[0]
    # row 0 last, which is the first of `keys`
    map_.update_batch(
        np.roll(keys, -1).astype(map_.key_dtype), np.roll(values, -1).view(map_.value_dtype)
    )
    stale = held[~np.isin(held, keys)]
    if len(stale):
        map_.delete_batch(stale)
    return steps


def _check(map_: MapLike) -> None:
    if map_.value_dtype.itemsize != ROOTS_DTYPE.itemsize or map_.key_dtype.itemsize != 4:
        raise LayoutError(
            f"the map's keys and values are {map_.key_dtype} and {map_.value_dtype}, and those of "
            f"policy are of 4 bytes and {ROOTS_DTYPE}; is it a policy map of this version?"
        )


@frozen
class Hit:
    """What a lookup says: `rule` is the cookie of the entry that decided, 0 if none did.

    `drop_reason` is that of a packet now: while nobody authenticates and there is no proxy, also
    of one that the verdict does not deny. What is `audited` was to be dropped, and passes.
    """

    verdict: Verdict
    drop_reason: int = 0
    rule: int = 0
    precedence: int = 0
    authentication: Authentication = Authentication.DISABLED
    audited: bool = False


_Key = tuple[int, int, int, int, int]
_Value = tuple[int, int, int, int, int, int]


@define
class PolicyLookup:
    """What the lookup of `bpf/lib/policy.h` finds, worked out over entries in memory.

    Two longest-prefix matches, one for the identity and one for any identity; of what they find
    the higher precedence decides, then the longer prefix, then the identity's own.
    """

    _entries: dict[_Key, _Value] = field(factory=dict)

    @classmethod
    def of(cls, entries: PolicyEntries) -> PolicyLookup:
        """Index entries for lookups."""
        keys, values = entries.keys, entries.values
        columns = zip(
            keys["identity"].tolist(),
            keys["direction"].tolist(),
            keys["proto"].tolist(),
            keys["port"].tolist(),
            (keys["prefixlen"] - STATIC_BITS).tolist(),
            values["precedence"].tolist(),
            values["lpm_bits"].tolist(),
            values["flags"].tolist(),
            values["proxy_port"].tolist(),
            values["rule"].tolist(),
            values["auth_type"].tolist(),
            strict=True,
        )
        return cls({row[:5]: row[5:] for row in columns})

    def lookup(self, direction: Direction, identity: int, protocol: Protocol, port: int) -> Hit:
        """The verdict on a packet; `port` is the destination port or the ICMP type."""
        own = self._longest(identity, direction, protocol, port)
        anyone = self._longest(ANY_IDENTITY, direction, protocol, port)
        found = max((e for e in (own, anyone) if e), key=lambda e: e[:2], default=None)
        if found is None:
            return Hit(Verdict.DENY, DROP_POLICY)
        order, _, flags, proxy_port, rule, auth = found
        other = anyone if found is own else own
        if not auth & AUTH_EXPLICIT and other and other[0] == order:
            auth = max(auth & AUTH_MODE, other[5] & AUTH_MODE)
        mode = Authentication(auth & AUTH_MODE)
        denial = DROP_POLICY_AUTH_REQUIRED if mode else 0
        if not order & 0xFF:  # "pass": nothing decides
            denial = DROP_POLICY
        if flags & FLAG_DENY:
            denial = DROP_POLICY_DENY
        audited = bool(denial and flags & FLAG_AUDIT)
        if denial in (DROP_POLICY, DROP_POLICY_DENY) and not audited:
            return Hit(Verdict.DENY, denial, rule, order)
        verdict = Verdict.REDIRECT if proxy_port else Verdict.ALLOW
        reason = DROP_NO_PROXY if proxy_port == NO_PROXY else 0
        return Hit(verdict, reason if audited else denial or reason, rule, order, mode, audited)

    def _longest(self, identity: int, direction: int, protocol: int, port: int) -> _Value | None:
        for bits in range(16, -1, -1):
            masked = port >> (16 - bits) << (16 - bits)
            found = self._entries.get((identity, direction, protocol, masked, 8 + bits))
            if found is not None:
                return found
        return self._entries.get((identity, direction, Protocol.ANY, 0, 0))
