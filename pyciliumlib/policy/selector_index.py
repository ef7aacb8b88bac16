"""Two indexes over labels: which identities a selector selects, and which selectors an identity.

Neither walks everything: identities are posted under their labels, selectors are filed under the
one of their requirements that is shared least, and prefixes are kept in order.
"""

from __future__ import annotations

import threading
from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from attrs import define, field, frozen

from pyciliumlib.identity.labels import SOURCE_ANY, SOURCE_CIDR, Labels, Network, prefix_of_key
from pyciliumlib.identity.selector import Operator, Requirement, Selector
from pyciliumlib.policy.model import NamedPorts

#: Below this many candidates, looking at each one's labels beats the algebra of sets.
_FEW: Final = 64

_ValueKey = tuple[str, str]
_PrefixKey = tuple[int, int, int]


def _prefix_key(network: Network) -> _PrefixKey:
    return network.version, int(network.network_address), network.prefixlen


@define
class IdentityIndex:
    """The labels of identities, posted by label and by prefix."""

    labels: dict[int, Labels] = field(factory=dict)
    _by_value: dict[_ValueKey, dict[str, set[int]]] = field(factory=dict)
    _values: dict[str, set[str]] = field(factory=lambda: defaultdict(set))
    _prefixes: list[tuple[int, int, int, int]] = field(factory=list)

    def add(self, identity: int, labels: Labels) -> None:
        """Post a new identity."""
        self.labels[identity] = labels
        for label in labels:
            if label.source == SOURCE_CIDR:
                insort(self._prefixes, (*_prefix_key(prefix_of_key(label.key)), identity))
            # a cidr label too: a selector of any source may name it like any other key
            sources = self._by_value.setdefault((label.key, label.value), {})
            sources.setdefault(label.source, set()).add(identity)
            self._values[label.key].add(label.value)

    def remove(self, identity: int) -> Labels:
        """Take an identity out; its labels."""
        labels = self.labels.pop(identity)
        for label in labels:
            if label.source == SOURCE_CIDR:
                entry = (*_prefix_key(prefix_of_key(label.key)), identity)
                del self._prefixes[bisect_left(self._prefixes, entry)]
            sources = self._by_value[label.key, label.value]
            sources[label.source].discard(identity)
            if not sources[label.source]:
                del sources[label.source]
            if not sources:
                del self._by_value[label.key, label.value]
                self._values[label.key].discard(label.value)
        return labels

    def select(self, selector: Selector) -> set[int]:
        """The identities that satisfy every requirement."""
        positive = [r for r in selector.requirements if not r.operator.negative]
        negative = [r for r in selector.requirements if r.operator.negative]
        first = min(positive, key=self._size, default=None)
        found = set(self.labels) if first is None else self._holders(first)
        for requirement in positive:
            if requirement is not first:
                found = self._narrow(found, requirement)
        for requirement in negative:
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
        """Those that have the key, with one of the values if the requirement names any."""
        if requirement.source == SOURCE_CIDR:
            return self._inside(prefix_of_key(requirement.key))
        return set().union(*self._postings(requirement))

    def _postings(self, requirement: Requirement) -> Iterator[set[int]]:
        values = requirement.values or self._values.get(requirement.key, ())
        for value in values:
            sources = self._by_value.get((requirement.key, value), {})
            if requirement.source == SOURCE_ANY:
                yield from sources.values()
            elif requirement.source in sources:
                yield sources[requirement.source]

    def _inside(self, network: Network) -> set[int]:
        version, first, length = _prefix_key(network)
        start = bisect_left(self._prefixes, (version, first, length, -1))
        last = first + (1 << (network.max_prefixlen - length)) - 1
        end = bisect_left(self._prefixes, (version, last + 1, -1, -1))
        return {entry[3] for entry in self._prefixes[start:end] if entry[2] >= length}


_Anchor = tuple[str, ...] | _PrefixKey


@define
class SelectorIndex:
    """Selectors, filed so that the ones that may match a set of labels are found by its labels."""

    _buckets: dict[_Anchor, dict[Selector, None]] = field(factory=dict)
    _filed: dict[Selector, tuple[_Anchor, ...]] = field(factory=dict)

    def add(self, selector: Selector) -> None:
        """File a selector; a second time does nothing."""
        if selector in self._filed:
            return
        anchors = self._choose(selector)
        self._filed[selector] = anchors
        for anchor in anchors:
            self._buckets.setdefault(anchor, {})[selector] = None

    def remove(self, selector: Selector) -> None:
        """Take a selector out."""
        for anchor in self._filed.pop(selector):
            bucket = self._buckets[anchor]
            del bucket[selector]
            if not bucket:
                del self._buckets[anchor]

    def matching(self, labels: Labels) -> list[Selector]:
        """The selectors that `labels` satisfy."""
        found: dict[Selector, None] = {}
        for anchor in _anchors_of(labels):
            for selector in self._buckets.get(anchor, ()):
                if selector not in found and selector.matches(labels):
                    found[selector] = None
        return list(found)

    def __len__(self) -> int:
        return len(self._filed)

    def _choose(self, selector: Selector) -> tuple[_Anchor, ...]:
        """The anchors of the requirement whose buckets hold the fewest selectors."""
        choices = [_anchors(r) for r in selector.requirements if not r.operator.negative]
        return min(choices, key=self._load, default=_EVERYTHING)

    def _load(self, anchors: tuple[_Anchor, ...]) -> int:
        # a key alone is met by far more identities than one of its values
        rare = 0 if len(anchors[0]) == 3 else 1 << 20
        return rare + sum(len(self._buckets.get(anchor, ())) for anchor in anchors)


#: Where selectors without any positive requirement are filed.
_EVERYTHING: Final[tuple[_Anchor, ...]] = (("",),)


def _anchors(requirement: Requirement) -> tuple[_Anchor, ...]:
    if requirement.source == SOURCE_CIDR:
        return (_prefix_key(prefix_of_key(requirement.key)),)
    if requirement.operator is Operator.EXISTS:
        return ((requirement.source, requirement.key),)
    return tuple((requirement.source, requirement.key, value) for value in requirement.values)


def _anchors_of(labels: Labels) -> Iterator[_Anchor]:
    yield from _EVERYTHING
    for label in labels:
        if label.source == SOURCE_CIDR:
            yield from _covering(prefix_of_key(label.key))
        for source in (label.source, SOURCE_ANY):
            yield (source, label.key, label.value)
            yield (source, label.key)


def _covering(network: Network) -> Iterator[_PrefixKey]:
    version, address, length = _prefix_key(network)
    bits = network.max_prefixlen
    for shorter in range(length, -1, -1):
        yield version, address >> (bits - shorter) << (bits - shorter), shorter


@define(eq=False)
class Selection:
    """A selector in use, and the identities that it selects now."""

    selector: Selector
    identities: set[int]
    users: int = 0

    def __repr__(self) -> str:
        return f"Selection({str(self.selector)!r}, {len(self.identities)} identities)"


@frozen
class Membership:
    """The selections that an identity is in, and the names of its ports."""

    selections: tuple[Selection, ...]
    named_ports: NamedPorts


@define
class IdentityDelta:
    """Identities that came and went; one that changed did both."""

    added: dict[int, Membership] = field(factory=dict)
    removed: dict[int, Membership] = field(factory=dict)


@define
class SelectorCache:
    """Selectors in use, each with its identities, kept up as identities come and go.

    Whoever calls it, or reads a selection, holds `lock`.
    """

    lock: threading.RLock = field(factory=threading.RLock)
    index: IdentityIndex = field(factory=IdentityIndex)
    named_ports: dict[int, NamedPorts] = field(factory=dict)
    _selections: dict[Selector, Selection] = field(factory=dict)
    _by_labels: SelectorIndex = field(factory=SelectorIndex)

    def acquire(self, selector: Selector) -> Selection:
        """The selection of `selector`, to be given back with `release`."""
        selection = self._selections.get(selector)
        if selection is None:
            selection = Selection(selector, self.index.select(selector))
            self._selections[selector] = selection
            self._by_labels.add(selector)
        selection.users += 1
        return selection

    def release(self, selection: Selection) -> None:
        """Give a selection back; the last user takes it out of the cache."""
        selection.users -= 1
        if not selection.users:
            del self._selections[selection.selector]
            self._by_labels.remove(selection.selector)

    def selections_of(self, labels: Labels) -> tuple[Selection, ...]:
        """The selections that an identity with `labels` belongs to."""
        return tuple(self._selections[s] for s in self._by_labels.matching(labels))

    def update(
        self, added: Mapping[int, tuple[Labels, NamedPorts]], removed: Iterable[int]
    ) -> IdentityDelta:
        """Let identities go, then come; a number that gets other labels or ports does both.

        Those that are there as they are, and unknown ones to remove, are passed over.
        """
        delta = IdentityDelta()
        for identity in {*removed, *(i for i in added if self._differs(i, *added[i]))}:
            if identity in self.index.labels:
                delta.removed[identity] = self._leave(identity)
        for identity, (labels, named_ports) in added.items():
            if identity not in self.index.labels:
                delta.added[identity] = self._join(identity, labels, named_ports)
        return delta

    def _differs(self, identity: int, labels: Labels, named_ports: NamedPorts) -> bool:
        known = self.index.labels.get(identity, labels)
        return known != labels or self.named_ports.get(identity, {}) != named_ports

    def _join(self, identity: int, labels: Labels, named_ports: NamedPorts) -> Membership:
        self.index.add(identity, labels)
        if named_ports:
            self.named_ports[identity] = named_ports
        selections = self.selections_of(labels)
        for selection in selections:
            selection.identities.add(identity)
        return Membership(selections, named_ports)

    def _leave(self, identity: int) -> Membership:
        selections = self.selections_of(self.index.remove(identity))
        for selection in selections:
            selection.identities.discard(identity)
        return Membership(selections, self.named_ports.pop(identity, {}))

    def __len__(self) -> int:
        return len(self._selections)
