"""From the shares of one class of identities to its entries: who decides on each slot.

A longest-prefix lookup returns one entry, the most specific of the identity. So that it is also
the one that decides, an entry is left out where a wider one of the same identity has the higher
precedence: then the entries of an identity rise in precedence as they narrow.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from attrs import define, field

from pyciliumlib.policy.derivation import Derivation, Derivations
from pyciliumlib.policy.entries import NO_PROXY, EntryValue, Slot, precedence
from pyciliumlib.policy.model import Direction, NamedPorts, Verdict
from pyciliumlib.policy.shares import Share
from pyciliumlib.types import PortProto, Protocol


@define(eq=False)
class Merger:
    """Merges the shares of one endpoint; `used` are the derivations of what it made, by cookie."""

    _named_ports: NamedPorts
    _derivations: Derivations
    used: dict[int, Derivation] = field(init=False, factory=dict)

    def rows(self, shares: Iterable[Share], named: NamedPorts) -> dict[Slot, EntryValue]:
        """The entries of those who have all of `shares`, and the ports `named`."""
        by_slot: dict[Slot, list[Share]] = {}
        for share in shares:
            for slot in self._slots(share, named):
                by_slot.setdefault(slot, []).append(share)
        best = {slot: max(share.action for share in found) for slot, found in by_slot.items()}
        return {
            slot: self._value([share for share in found if share.action == best[slot]])
            for slot, found in by_slot.items()
            if not any(best.get(wider, 0) > best[slot] for wider in slot.wider())
        }

    def _slots(self, share: Share, named: NamedPorts) -> Iterator[Slot]:
        match = share.match
        if match.name:
            ports = self._named_ports if share.direction is Direction.INGRESS else named
            number, protocol = ports.get(match.name, (0, None))
            if number and protocol == match.protocol:
                yield Slot(share.direction, match.protocol, number, 16)
        elif match.protocol is Protocol.ANY:
            yield Slot(share.direction)
        else:
            for port, bits in PortProto(match.first, match.last).blocks():
                yield Slot(share.direction, match.protocol, port, bits)

    def _value(self, shares: list[Share]) -> EntryValue:
        l7 = tuple(dict.fromkeys(share.l7 for share in shares if share.l7))
        sources = tuple(sorted({share.source for share in shares}))
        derivation = self._derivations.intern(shares[0].verdict, sources, l7)
        self.used[derivation.cookie] = derivation
        proxy_port = NO_PROXY if derivation.verdict is Verdict.REDIRECT else 0
        return EntryValue(precedence(shares[0].action), derivation.cookie, proxy_port)
