"""Which identities a selector selects: they are posted under their labels, prefixes in order."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from typing import Final

from attrs import define, field

from pyciliumlib.identity.labels import (
    SOURCE_ANY,
    SOURCE_CIDR,
    Label,
    Labels,
    Network,
    prefix_of_key,
)
from pyciliumlib.identity.selector import Operator, Requirement, Selector

#: Below this many candidates, looking at each one's labels beats the algebra of sets.
_FEW: Final = 64

#: Version, first address, length.
PrefixKey = tuple[int, int, int]


def prefix_key(network: Network) -> PrefixKey:
    """A prefix as a key that sorts a prefix before those inside it."""
    return network.version, int(network.network_address), network.prefixlen


def covering(network: Network) -> Iterator[PrefixKey]:
    """The keys of all prefixes that hold `network`, itself first."""
    version, address, length = prefix_key(network)
    bits = network.max_prefixlen
    for shorter in range(length, -1, -1):
        yield version, address >> (bits - shorter) << (bits - shorter), shorter


@define
class IdentityIndex:
    """The labels of identities, posted by label and by prefix."""

    labels: dict[int, Labels] = field(factory=dict)
    _holders_of: dict[Label, set[int]] = field(factory=dict)
    #: The labels that are held, by key and then by value: one for each source.
    _known: dict[str, dict[str, list[Label]]] = field(factory=dict)
    _prefixes: list[tuple[int, int, int, int]] = field(factory=list)

    def add(self, identity: int, labels: Labels) -> None:
        """Post a new identity."""
        self.labels[identity] = labels
        for label in labels:
            # a cidr label too: a selector of any source may name it like any other key
            holders = self._holders_of.get(label)
            if holders is None:
                holders = self._holders_of[label] = set()
                self._known.setdefault(label.key, {}).setdefault(label.value, []).append(label)
            holders.add(identity)
            if label.source == SOURCE_CIDR:
                insort(self._prefixes, (*prefix_key(prefix_of_key(label.key)), identity))

    def remove(self, identity: int) -> Labels:
        """Take an identity out; its labels."""
        labels = self.labels.pop(identity)
        for label in labels:
            holders = self._holders_of[label]
            holders.discard(identity)
            if not holders:
                self._forget(label)
            if label.source == SOURCE_CIDR:
                entry = (*prefix_key(prefix_of_key(label.key)), identity)
                del self._prefixes[bisect_left(self._prefixes, entry)]
        return labels

    def _forget(self, label: Label) -> None:
        del self._holders_of[label]
        values = self._known[label.key]
        values[label.value].remove(label)
        if not values[label.value]:
            del values[label.value]
        if not values:
            del self._known[label.key]

    def select(self, selector: Selector) -> set[int]:
        """The identities that satisfy every requirement."""
        positive = [r for r in selector.requirements if not r.operator.negative]
        negative = [r for r in selector.requirements if r.operator.negative]
        first = min(positive, key=self._size, default=None)
        others = [r for r in (*positive, *negative) if r is not first]
        found = set(self.labels) if first is None else self._holders(first)
        if first is not None and not others:
            return set(found)
        for requirement in others:
            found = self._narrow(found, requirement)
        return found

    def _narrow(self, found: set[int], requirement: Requirement) -> set[int]:
        if len(found) <= _FEW:
            return {i for i in found if requirement.matches(self.labels[i])}
        holders = self._holders(requirement)
        return found - holders if requirement.operator.negative else found & holders

    def _size(self, requirement: Requirement) -> int:
        """How many identities `_holders` would find, or a bound of it."""
        if requirement.operator is not Operator.IN:
            # for a key or a prefix the sum is as dear as the set: rank it after values
            return len(self.labels)
        return sum(map(len, self._postings(requirement)))

    def _holders(self, requirement: Requirement) -> set[int]:
        """Those that have the key, with one of the values if the requirement names any.

        It may be the posting itself, so it is not to be changed.
        """
        if requirement.source == SOURCE_CIDR:
            return self._inside(prefix_of_key(requirement.key))
        postings = list(self._postings(requirement))
        return postings[0] if len(postings) == 1 else set().union(*postings)

    def _postings(self, requirement: Requirement) -> Iterator[set[int]]:
        known = self._known.get(requirement.key)
        if known is None:
            return
        for value in requirement.values or tuple(known):
            for label in known.get(value, ()):
                if requirement.source in (SOURCE_ANY, label.source):
                    yield self._holders_of[label]

    def _inside(self, network: Network) -> set[int]:
        version, first, length = prefix_key(network)
        start = bisect_left(self._prefixes, (version, first, length, -1))
        last = first + (1 << (network.max_prefixlen - length)) - 1
        end = bisect_left(self._prefixes, (version, last + 1, -1, -1))
        return {entry[3] for entry in self._prefixes[start:end] if entry[2] >= length}
