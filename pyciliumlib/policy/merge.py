"""From the shares of one class of identities to its entries: who decides on each slot.

A longest-prefix lookup returns one entry, the most specific of the identity. So that it is also
the one that decides, an entry is left out where a wider one of the same identity has the higher
precedence: then the entries of an identity rise in precedence as they narrow.

A direction in which a rule passes goes beyond precedence, and is settled (`passes.py`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, TypeAlias

from attrs import define, evolve, field

from pyciliumlib.policy.derivation import Derivations
from pyciliumlib.policy.entries import (
    AUTH_EXPLICIT,
    AUTH_MODE,
    NO_PROXY,
    PASS_BYTE,
    PORT_BITS,
    EntryValue,
    Slot,
    precedence,
)
from pyciliumlib.policy.model import PortNames, Verdict
from pyciliumlib.policy.passes import ANYONE, OWN, Claim, authentication, settle
from pyciliumlib.policy.shares import Share
from pyciliumlib.types import Direction

#: What is said of each slot.
Rows: TypeAlias = "dict[Slot, EntryValue]"

NONE_NAMED: Final[PortNames] = frozenset()
#: What an audit tells of where no rule allows: an entry that decides nothing, last of all.
_NOTHING_ALLOWED: Final = EntryValue(precedence=PASS_BYTE, rule=0, audit=True)


@define(eq=False)
class Merger:
    """Merges the shares of one endpoint.

    `settled` are the directions in which some rule passes, `audited` those in which what is denied
    passes all the same.
    """

    _named_ports: PortNames
    _derivations: Derivations
    settled: frozenset[Direction] = frozenset()
    audited: frozenset[Direction] = frozenset()
    #: What shares say with an order and an authentication: classes, and slots, have much in common.
    _entries: dict[tuple[int, int, tuple[Share, ...]], EntryValue] = field(init=False, factory=dict)

    def of_anyone(self, shares: Iterable[Share]) -> Rows:
        """The entries of any identity, from the shares of any peer."""
        shares = list(shares)
        rows = self._ranked(self._plain(shares), NONE_NAMED)
        rows |= self._settled(self._claims(shares, NONE_NAMED, own=False), ANYONE)
        nothing = {Slot(direction): _NOTHING_ALLOWED for direction in self.audited}
        return self._audited(nothing | rows)

    def of_peers(self, own: Iterable[Share], anyone: Iterable[Share], named: PortNames) -> Rows:
        """The entries of those who have the shares `own`, beside those of `anyone`.

        A name in what is said of any peer means the ports `named` of these.
        """
        own, anyone = list(own), list(anyone)
        by_name = [share for share in anyone if share.match.name] if named else []
        rows = self._ranked(self._plain([*own, *by_name]), named)
        if self.settled:
            claims = self._claims(own, named, own=True) + self._claims(anyone, named, own=False)
            rows |= self._settled(claims, OWN)
        return self._audited(rows)

    def forget(self) -> None:
        """Drop what was kept of classes, of which some may be gone."""
        self._entries.clear()

    def _audited(self, rows: Rows) -> Rows:
        if not self.audited:
            return rows
        return {
            slot: evolve(said, audit=slot.direction in self.audited) for slot, said in rows.items()
        }

    def _plain(self, shares: list[Share]) -> list[Share]:
        if not self.settled:
            return shares
        return [share for share in shares if share.direction not in self.settled]

    def _claims(self, shares: Iterable[Share], named: PortNames, *, own: bool) -> list[Claim]:
        return [
            Claim(slot, share, own)
            for share in shares
            if share.direction in self.settled
            for slot in self._slots(share, named)
        ]

    def _ranked(self, shares: Iterable[Share], named: PortNames) -> Rows:
        """Entries by precedence: an identity's, and any identity's, are weighed in the program."""
        by_slot: dict[Slot, list[Share]] = {}
        for share in shares:
            for slot in self._slots(share, named) if share.match.name else share.slots:
                by_slot.setdefault(slot, []).append(share)
        # most slots are decided by one share, whose entry is known
        rows = _not_outranked(
            {
                slot: (found[0].entry if len(found) == 1 else None) or self._best(found)
                for slot, found in by_slot.items()
            }
        )
        return _inherit_authentication(rows) if any(v.auth for v in rows.values()) else rows

    def _settled(self, claims: Iterable[Claim], priority: int) -> Rows:
        """Entries that say the last word about their slot."""
        rows = {}
        for slot, deciding in settle(claims).items():
            shares = [claim.share for claim in deciding]
            order = precedence(shares[0].action, priority)
            rows[slot] = self._entry(shares, order, authentication(deciding))
        return rows

    def _slots(self, share: Share, named: PortNames) -> tuple[Slot, ...]:
        match = share.match
        if not match.name:
            return share.slots
        ports = self._named_ports if share.direction is Direction.INGRESS else named
        return tuple(
            Slot(share.direction, match.protocol, number, 16)
            for name, (number, protocol) in ports
            if number and (name, protocol) == (match.name, match.protocol)
        )

    def _best(self, shares: list[Share]) -> EntryValue:
        """What those of the highest precedence say together."""
        if len(shares) > 1:
            highest = max(share.precedence for share in shares)
            shares = [share for share in shares if share.precedence == highest]
        if len(shares) > 1:
            return self._said_by(shares)
        alone = shares[0]
        if alone.entry is None:
            alone.entry = self._said_by(shares)
        return alone.entry

    def _said_by(self, shares: list[Share]) -> EntryValue:
        said = [s.authentication for s in shares if s.authentication is not None]
        auth = AUTH_EXPLICIT | max(said) if said else 0
        return self._entry(shares, shares[0].precedence, auth)

    def _entry(self, shares: list[Share], order: int, auth: int) -> EntryValue:
        key = order, auth, tuple(shares)
        found = self._entries.get(key)
        if found is None:
            l7 = tuple(dict.fromkeys(share.l7 for share in shares if share.l7))
            sources = tuple(sorted({share.source for share in shares}))
            derivation = self._derivations.intern(shares[0].verdict, sources, l7)
            proxy_port = NO_PROXY if derivation.verdict is Verdict.REDIRECT else 0
            found = EntryValue(order, derivation.cookie, proxy_port, auth, derivation=derivation)
            self._entries[key] = found
        return found


def _not_outranked(rows: Rows) -> Rows:
    """Those whose slot lies in no wider one of a higher precedence."""
    orders = {value.precedence for value in rows.values()}
    if len(orders) < 2:
        return rows
    lowest = min(orders)
    above = [slot for slot, value in rows.items() if value.precedence > lowest]
    lengths = {slot.bits for slot in above if slot.bits < PORT_BITS}
    if not lengths and all(slot.proto for slot in above):
        return rows  # those are of single ports, which are wider than none
    return {
        slot: value
        for slot, value in rows.items()
        if not any(
            wider in rows and rows[wider].precedence > value.precedence
            for wider in slot.wider(lengths)
        )
    }


def _inherit_authentication(rows: Rows) -> Rows:
    """Where an entry says nothing of it, that of the nearest wider one that decides alike holds."""
    found = dict(rows)
    for slot, value in rows.items():
        if value.auth & AUTH_EXPLICIT:
            continue
        for wider in slot.wider():
            other = rows.get(wider)
            if other and other.auth & AUTH_EXPLICIT and other.precedence == value.precedence:
                found[slot] = evolve(value, auth=other.auth & AUTH_MODE)
                break
    return found
