"""Which selectors select an identity: each is filed under its requirement that is shared least."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Final

from attrs import define, field

from pyciliumlib.identity.labels import (
    SOURCE_ANY,
    SOURCE_CIDR,
    Label,
    Labels,
    prefix_of_key,
)
from pyciliumlib.identity.selector import Operator, Requirement, Selector
from pyciliumlib.policy.identity_index import PrefixKey, covering, prefix_key

#: Answers that are kept until a selector comes or goes.
_ANSWERS_MAX: Final = 1 << 16

_Anchor = tuple[str, ...] | PrefixKey


@define
class SelectorIndex:
    """Selectors, filed so that the ones that may match a set of labels are found by its labels."""

    _buckets: dict[_Anchor, dict[Selector, None]] = field(factory=dict)
    _filed: dict[Selector, tuple[_Anchor, ...]] = field(factory=dict)
    #: How many requirements name a key; for prefixes, the source.
    _named: Counter[str] = field(factory=Counter)
    _matching: dict[tuple[Label, ...], tuple[Selector, ...]] = field(factory=dict)

    def add(self, selector: Selector) -> None:
        """File a selector; a second time does nothing."""
        if selector in self._filed:
            return
        anchors = self._choose(selector)
        for requirement in selector.requirements:
            self._named[_name(requirement)] += 1
        self._matching.clear()
        self._filed[selector] = anchors
        for anchor in anchors:
            self._buckets.setdefault(anchor, {})[selector] = None

    def remove(self, selector: Selector) -> None:
        """Take a selector out."""
        self._named -= Counter(map(_name, selector.requirements))
        self._matching.clear()
        for anchor in self._filed.pop(selector):
            bucket = self._buckets[anchor]
            del bucket[selector]
            if not bucket:
                del self._buckets[anchor]

    def matching(self, labels: Labels) -> tuple[Selector, ...]:
        """The selectors that `labels` satisfy.

        Labels that no selector names make no difference, so identities that differ in those alone
        share an answer.
        """
        named = self._named
        telling = tuple(
            label
            for label in labels
            if label.key in named or (label.source == SOURCE_CIDR and SOURCE_CIDR in named)
        )
        found = self._matching.get(telling)
        if found is None:
            found = self._match(labels)
            if len(self._matching) >= _ANSWERS_MAX:
                self._matching.clear()
            self._matching[telling] = found
        return found

    def _match(self, labels: Labels) -> tuple[Selector, ...]:
        found: dict[Selector, None] = {}
        for anchor in _anchors_of(labels):
            for selector in self._buckets.get(anchor, ()):
                if selector not in found and selector.matches(labels):
                    found[selector] = None
        return tuple(found)

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


def _name(requirement: Requirement) -> str:
    """What a label must have to matter to a requirement: its key, or being a prefix."""
    return SOURCE_CIDR if requirement.source == SOURCE_CIDR else requirement.key


def _anchors(requirement: Requirement) -> tuple[_Anchor, ...]:
    if requirement.source == SOURCE_CIDR:
        return (prefix_key(prefix_of_key(requirement.key)),)
    if requirement.operator is Operator.EXISTS:
        return ((requirement.source, requirement.key),)
    return tuple((requirement.source, requirement.key, value) for value in requirement.values)


def _anchors_of(labels: Labels) -> Iterator[_Anchor]:
    yield from _EVERYTHING
    for label in labels:
        if label.source == SOURCE_CIDR:
            yield from covering(prefix_of_key(label.key))
        for source in (label.source, SOURCE_ANY):
            yield (source, label.key, label.value)
            yield (source, label.key)
