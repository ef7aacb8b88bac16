"""From the shares of one class of identities to its entries: who decides on each slot.

A longest-prefix lookup returns one entry, the most specific of the identity. So that it is also
the one that decides, an entry is left out where a wider one of the same identity has the higher
precedence: then the entries of an identity rise in precedence as they narrow.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from attrs import define, evolve, field

from pyciliumlib.policy.derivation import Derivation, Derivations
from pyciliumlib.policy.entries import (
    AUTH_EXPLICIT,
    AUTH_MODE,
    NO_PROXY,
    EntryValue,
    Slot,
    precedence,
)
from pyciliumlib.policy.model import Direction, PortNames, Verdict
from pyciliumlib.policy.shares import Share


@define(eq=False)
class Merger:
    """Merges the shares of one endpoint; `used` are the derivations of what it made, by cookie."""

    _named_ports: PortNames
    _derivations: Derivations
    used: dict[int, Derivation] = field(init=False, factory=dict)

    def rows(self, shares: Iterable[Share], named: PortNames) -> dict[Slot, EntryValue]:
        """The entries of those who have all of `shares`, and the ports `named`."""
        by_slot: dict[Slot, list[Share]] = {}
        for share in shares:
            for slot in self._slots(share, named):
                by_slot.setdefault(slot, []).append(share)
        best = {slot: max(share.action for share in found) for slot, found in by_slot.items()}
        rows = {
            slot: self._value([share for share in by_slot[slot] if share.action == best[slot]])
            for slot in self._deciding(best)
        }
        return _inherit_authentication(rows) if any(v.auth for v in rows.values()) else rows

    def _deciding(self, best: Mapping[Slot, int]) -> Iterable[Slot]:
        """The slots that no wider one outranks, where `best` is the action of each."""
        if len(set(best.values())) < 2:
            return best
        lengths = {slot.bits for slot in best}
        return [
            slot
            for slot, action in best.items()
            if not any(best.get(wider, 0) > action for wider in slot.wider(lengths))
        ]

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
        derivation = self._derivation_of(shares)
        self.used[derivation.cookie] = derivation
        proxy_port = NO_PROXY if derivation.verdict is Verdict.REDIRECT else 0
        said = [s.authentication for s in shares if s.authentication is not None]
        auth = AUTH_EXPLICIT | max(said) if said else 0
        return EntryValue(precedence(shares[0].action), derivation.cookie, proxy_port, auth)

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
