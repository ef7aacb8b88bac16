"""From the shares of one class of identities to its entries: who decides on each slot.

A longest-prefix lookup returns one entry, the most specific of the identity. So that it is also
the one that decides, an entry is left out where a wider one of the same identity has the higher
precedence: then the entries of an identity rise in precedence as they narrow.

A direction in which a rule passes goes beyond precedence, and is settled (`passes.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from attrs import define, evolve, field

from pyciliumlib.policy.derivation import Derivation, Derivations
from pyciliumlib.policy.entries import (
    AUTH_EXPLICIT,
    AUTH_MODE,
    NO_PROXY,
    PASS_BYTE,
    EntryValue,
    Slot,
    precedence,
)
from pyciliumlib.policy.model import PortNames, Verdict
from pyciliumlib.policy.passes import ANYONE, OWN, Claim, authentication, settle
from pyciliumlib.policy.shares import Share
from pyciliumlib.types import Direction

NONE_NAMED: Final[PortNames] = frozenset()
#: What an audit tells of where no rule allows: an entry that decides nothing, last of all.
_NOTHING_ALLOWED: Final = EntryValue(precedence=PASS_BYTE, rule=0, audit=True)


@define(eq=False)
class Merger:
    """Merges the shares of one endpoint; `used` are the derivations of what it made, by cookie.

    `settled` are the directions in which some rule passes, `audited` those in which what is denied
    passes all the same.
    """

    _named_ports: PortNames
    _derivations: Derivations
    settled: frozenset[Direction] = frozenset()
    audited: frozenset[Direction] = frozenset()
    used: dict[int, Derivation] = field(init=False, factory=dict)

    def of_anyone(self, shares: Iterable[Share]) -> dict[Slot, EntryValue]:
        """The entries of any identity, from the shares of any peer."""
        shares = list(shares)
        rows = self._ranked(self._plain(shares), NONE_NAMED)
        rows |= self._settled(self._claims(shares, NONE_NAMED, own=False), ANYONE)
        return {**{Slot(direction): _NOTHING_ALLOWED for direction in self.audited}, **rows}

    def of_peers(
        self, own: Iterable[Share], anyone: Iterable[Share], named: PortNames
    ) -> dict[Slot, EntryValue]:
        """The entries of those who have the shares `own`, beside those of `anyone`.

        A name in what is said of any peer means the ports `named` of these.
        """
        own, anyone = list(own), list(anyone)
        by_name = [share for share in anyone if share.match.name] if named else []
        rows = self._ranked(self._plain([*own, *by_name]), named)
        if not self.settled:
            return rows
        claims = self._claims(own, named, own=True) + self._claims(anyone, named, own=False)
        return rows | self._settled(claims, OWN)

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

    def _ranked(self, shares: Iterable[Share], named: PortNames) -> dict[Slot, EntryValue]:
        """Entries by precedence: an identity's, and any identity's, are weighed in the program."""
        by_slot: dict[Slot, list[Share]] = {}
        for share in shares:
            for slot in self._slots(share, named):
                by_slot.setdefault(slot, []).append(share)
        best = {slot: max(share.precedence for share in found) for slot, found in by_slot.items()}
        rows = {
            slot: self._value([s for s in by_slot[slot] if s.precedence == best[slot]])
            for slot in _not_outranked(best)
        }
        return _inherit_authentication(rows) if any(v.auth for v in rows.values()) else rows

    def _settled(self, claims: Iterable[Claim], priority: int) -> dict[Slot, EntryValue]:
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

    def _value(self, shares: list[Share]) -> EntryValue:
        said = [s.authentication for s in shares if s.authentication is not None]
        auth = AUTH_EXPLICIT | max(said) if said else 0
        return self._entry(shares, shares[0].precedence, auth)

    def _entry(self, shares: list[Share], order: int, auth: int) -> EntryValue:
        derivation = self._derivation_of(shares)
        self.used[derivation.cookie] = derivation
        proxy_port = NO_PROXY if derivation.verdict is Verdict.REDIRECT else 0
        audit = shares[0].direction in self.audited
        return EntryValue(order, derivation.cookie, proxy_port, auth, audit)

    def _derivation_of(self, shares: list[Share]) -> Derivation:
        first = shares[0]
        if len(shares) > 1:
            l7 = tuple(dict.fromkeys(share.l7 for share in shares if share.l7))
            sources = tuple(sorted({share.source for share in shares}))
            return self._derivations.intern(first.verdict, sources, l7)
        if first.derivation is None:  # most slots are decided by one share
            l7 = (first.l7,) if first.l7 else ()
            first.derivation = self._derivations.intern(first.verdict, (first.source,), l7)
        return first.derivation


def _not_outranked(best: Mapping[Slot, int]) -> Iterable[Slot]:
    """The slots that no wider one outranks, where `best` is the precedence of each."""
    if len(set(best.values())) < 2:
        return best
    lengths = {slot.bits for slot in best}
    return [
        slot
        for slot, order in best.items()
        if not any(best.get(wider, 0) > order for wider in slot.wider(lengths))
    ]


def _inherit_authentication(rows: Mapping[Slot, EntryValue]) -> dict[Slot, EntryValue]:
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
