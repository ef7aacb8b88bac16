"""From the rules that govern an endpoint to the entries of its policy map.

What applies to an identity depends only on which selectors select it (and, for ports by name, on
its ports' names). Identities fall into few such classes; the entries of a class are worked out
once and copied for each member, so the cost is that of the classes and not of the identities.

A policy that replaces another one takes over the classes that its rules leave alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
from attrs import define, field, frozen

from pyciliumlib.identity.selector import Selector
from pyciliumlib.policy.derivation import Derivation, Derivations
from pyciliumlib.policy.enforcement import is_audited, is_enforced
from pyciliumlib.policy.entries import ANY_IDENTITY, PolicyEntries
from pyciliumlib.policy.grouped import GroupedEntries
from pyciliumlib.policy.merge import NONE_NAMED, Merger
from pyciliumlib.policy.model import Party, PortNames
from pyciliumlib.policy.selections import IdentityDelta, IdentityGroup, Selection, SelectorCache
from pyciliumlib.policy.settings import PolicySettings
from pyciliumlib.policy.shares import Handout, Share, collect_shares
from pyciliumlib.types import Direction

if TYPE_CHECKING:
    import numpy.typing as npt

_NOTHING: Final = PolicyEntries.empty()
_NO_GROUPS: Final = GroupedEntries(_NOTHING, [], [], np.zeros(0, np.uint32))
#: Multipliers that make one number of a row of words; odd, and otherwise of no meaning.
_MIX: Final = np.uint64(0x9E3779B97F4A7C15)
#: What a class of identities is: the bits of its selections, and those named ports that matter.
_Class = tuple[int, PortNames]


@frozen
class _Classes:
    """Classes of identities: what each is, how many are in it; `members` has the first's first."""

    keys: Sequence[_Class]
    counts: Sequence[int]
    members: npt.NDArray[np.uint32]

    @classmethod
    def of(cls, classes: Mapping[_Class, Sequence[int]]) -> _Classes:
        """From the members of each."""
        members = np.array([i for identities in classes.values() for i in identities], np.uint32)
        return cls(list(classes), [len(identities) for identities in classes.values()], members)


@frozen
class _Template:
    """The entries of a class of identities; what their cookies stand for is known meanwhile."""

    entries: PolicyEntries
    _held: Sequence[Derivation | None]


@define(eq=False)
class EndpointPolicy:
    """What a repository says about one endpoint, resolved; its entries follow the identities.

    `enforced` are the directions that rules govern. `release` gives the selectors back.
    """

    subject: Party
    revision: int
    enforced: frozenset[Direction]
    _cache: SelectorCache
    _merger: Merger
    _of_anyone: list[Share]
    #: By the number of the selection; a number stays that of its selector in later policies.
    _of_selection: dict[int, list[Share]]
    _selections: dict[int, Selection] = field(init=False, factory=dict)
    _names: frozenset[str] = field(init=False)
    _templates: dict[_Class, _Template] = field(init=False, factory=dict)

    @_names.default
    def _names_of_peers(self) -> frozenset[str]:
        """The port names that each peer gives a number of its own."""
        return frozenset(
            share.match.name
            for shares in (self._of_anyone, *self._of_selection.values())
            for share in shares
            if share.match.name and share.direction is Direction.EGRESS
        )

    def entries(self) -> PolicyEntries:
        """All entries, for the identities that are known now."""
        return self.grouped().spread()

    def grouped(self) -> GroupedEntries:
        """The same, with those that identities share said once: what fills the endpoint's map."""
        with self._cache.lock:
            classes = self._classes()
            self._forget_templates_but(classes.keys)
            return self._group(classes, self._template((0, NONE_NAMED)))

    def changes(self, delta: IdentityDelta) -> tuple[PolicyEntries, PolicyEntries]:
        """The entries to add (or replace), and those to delete, after a change of identities.

        No key is in both, so their order is free: a number that got other labels keeps the
        entries that hold for both.
        """
        with self._cache.lock:
            adds = self._of_groups(delta.added).spread()
            deletes = self._of_groups(delta.removed).spread()
        if len(adds) and len(deletes):
            deletes = deletes.without_keys_of(adds)
        return adds, deletes

    def grouped_changes(
        self, delta: IdentityDelta
    ) -> tuple[GroupedEntries, npt.NDArray[np.uint32]]:
        """All entries of identities whose entries changed, and the identities that have none now.

        Nothing is said of any identity: that stays as it is.
        """
        with self._cache.lock:
            adds = self._of_groups(delta.added)
            gone = self._of_groups(delta.removed).members
        return adds, gone[~np.isin(gone, adds.members)]

    def release(self) -> None:
        """Give back the selectors in use; the policy is not to be asked any more."""
        with self._cache.lock:
            for selection in self._selections.values():
                self._cache.release(selection, self)
            self._selections.clear()

    # ------------------------------------------------------------------ classes of identities

    def _classes(self) -> _Classes:
        members, masks = self._masks()
        if self._names:
            return self._classes_by_name(members, masks)
        # rows of a class have one digest and come together; a digest of two classes only splits
        order = np.argsort(masks @ (_MIX ** np.arange(1, masks.shape[1] + 1, dtype=np.uint64)))
        members, masks = members[order], masks[order]
        starts = _starts(masks)
        counts = np.diff(starts, append=len(members))
        keys = [(number, NONE_NAMED) for number in _numbers_of(masks[starts])]
        return _Classes(keys, counts.tolist(), members)

    def _masks(self) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint64]]:
        """Those identities that a selector selects, and which selectors: 64 to a word."""
        columns = [selection.column() for selection in self._selections.values()]
        numbers = list(self._selections)
        words = max(numbers, default=0) // 64 + 1
        if self._names:
            named = self._cache.named_ports
            columns.append(np.fromiter(named, np.uint32, len(named)))
            numbers.append(64 * words)  # in a word of its own, which is left out again
        if not columns:
            return np.zeros(0, np.uint32), np.zeros((0, 1), "<u8")
        # pairs of identity and number, sorted: numbers whose bits share a word come together
        pairs = np.concatenate(columns).astype(np.uint64) << np.uint64(32)
        pairs |= np.repeat(np.array(numbers, np.uint64), [len(column) for column in columns])
        pairs.sort()
        cells = _starts(pairs >> np.uint64(6))
        bits = np.uint64(1) << (pairs & np.uint64(63))
        identities = pairs[cells] >> np.uint64(32)
        rows = _starts(identities)
        masks = np.zeros((len(rows), words + 1), "<u8")
        of_row = np.repeat(np.arange(len(rows)), np.diff(rows, append=len(cells)))
        word = (pairs[cells] & np.uint64(0xFFFF_FFFF)) >> np.uint64(6)
        masks[of_row, word.astype(np.intp)] = np.bitwise_or.reduceat(bits, cells)
        return identities[rows].astype(np.uint32), masks[:, :words]

    def _classes_by_name(
        self, members: npt.NDArray[np.uint32], masks: npt.NDArray[np.uint64]
    ) -> _Classes:
        classes: dict[_Class, list[int]] = {}
        for identity, number in zip(members.tolist(), _numbers_of(masks), strict=True):
            named = self._relevant(self._cache.named_ports.get(identity, NONE_NAMED))
            classes.setdefault((number, named), []).append(identity)
        return _Classes.of(classes)

    def _relevant(self, ports: PortNames) -> PortNames:
        return frozenset(item for item in ports if item[0] in self._names)

    def _of_groups(self, groups: Iterable[IdentityGroup]) -> GroupedEntries:
        classes: dict[_Class, list[int]] = {}
        for group in groups:
            mask = group.masks.get(self, 0)
            named = self._relevant(group.named_ports) if self._names else NONE_NAMED
            if mask or named:
                classes.setdefault((mask, named), []).extend(group.identities)
        return self._group(_Classes.of(classes)) if classes else _NO_GROUPS

    def _group(self, classes: _Classes, anyone: PolicyEntries = _NOTHING) -> GroupedEntries:
        """The entries of classes, without those that have none."""
        templates = [self._template(key) for key in classes.keys]
        counts, members = classes.counts, classes.members
        if not all(map(len, templates)):
            kept = [bool(len(template)) for template in templates]
            members = members[np.repeat(kept, counts)]
            counts = [count for count, keep in zip(counts, kept, strict=True) if keep]
            templates = [template for template in templates if len(template)]
        return GroupedEntries(anyone, templates, counts, members)

    # ------------------------------------------------------------------ the entries of a class

    def _template(self, key: _Class) -> PolicyEntries:
        """The entries of a class; that of no selection and no ports by name is any identity."""
        found = self._templates.get(key)
        if found is None:
            mask, named = key
            rows = (
                self._merger.of_peers(self._shares_of(mask), self._of_anyone, named)
                if mask or named
                else self._merger.of_anyone(self._of_anyone)
            )
            found = _Template(
                PolicyEntries.of(rows.items(), ANY_IDENTITY),
                [value.derivation for value in rows.values()],
            )
            self._templates[key] = found
        return found.entries

    def _shares_of(self, mask: int) -> Iterator[Share]:
        while mask:
            lowest = mask & -mask
            yield from self._of_selection[lowest.bit_length() - 1]
            mask ^= lowest

    def _forget_templates_but(self, wanted: Sequence[_Class]) -> None:
        """Keep the number of templates near that of the classes that there are."""
        if len(self._templates) > 2 * len(wanted) + 64:
            kept = {(0, NONE_NAMED), *wanted}
            self._templates = {k: t for k, t in self._templates.items() if k in kept}
            self._merger.forget()

    # ------------------------------------------------------------------ one policy after another

    def take_over(self, before: EndpointPolicy) -> None:
        """Use the templates of the policy before, as far as the same shares are behind them."""
        if self._merger.audited != before._merger.audited:
            return
        if self._of_anyone == before._of_anyone and self._names == before._names:
            unchanged = {(0, NONE_NAMED)}
        elif self._names or before._names or self._merger.settled or before._merger.settled:
            return  # what anyone may do has a part in these classes
        else:
            unchanged = set()
        same = sum(
            1 << number
            for number, shares in self._of_selection.items()
            if before._of_selection.get(number) == shares
            and before._selections.get(number) is self._selections[number]
        )
        unchanged |= {key for key in before._templates if key[0] and not key[0] & ~same}
        self._templates = {k: before._templates[k] for k in unchanged if k in before._templates}

    def hold(self, selectors: Mapping[int, Selector]) -> None:
        """Take the selections of `selectors`, by number, until `release`."""
        for number, selector in selectors.items():
            self._selections[number] = self._cache.acquire(selector, self, number)

    def numbers(self) -> dict[Selector, int]:
        """The numbers of the selectors in use."""
        return {selection.selector: number for number, selection in self._selections.items()}

    def __repr__(self) -> str:
        return f"EndpointPolicy({str(self.subject)!r}, revision {self.revision})"


def _starts(rows: npt.NDArray[np.uint64]) -> npt.NDArray[np.intp]:
    """Where each run of equal rows starts."""
    differs = rows[1:] != rows[:-1]
    if rows.ndim > 1:
        differs = differs.any(axis=1)
    return np.concatenate([np.zeros(min(len(rows), 1), np.intp), np.flatnonzero(differs) + 1])


def _numbers_of(masks: npt.NDArray[np.uint64]) -> list[int]:
    """Each row of words as one number."""
    words, width = masks.tobytes(), masks.shape[1] * masks.itemsize
    return [
        int.from_bytes(words[start : start + width], "little")
        for start in range(0, len(words), width)
    ]


def resolve(
    handouts: Sequence[Handout],
    settings: PolicySettings,
    subject: Party,
    cache: SelectorCache,
    derivations: Derivations,
    revision: int = 0,
    before: EndpointPolicy | None = None,
) -> EndpointPolicy:
    """The policy of `subject`, whom the rules of `handouts` govern.

    `before` is the one that it replaces, not yet released. Raises PolicyError where rules
    contradict each other about the proxy of the same connections.
    """
    rules = [handout.rule for handout in handouts]
    enforced = frozenset(d for d in Direction if is_enforced(rules, settings, subject, d))
    settled = enforced & frozenset().union(*(handout.passing for handout in handouts))
    shares = collect_shares(handouts, settings, subject, enforced, settled)
    of_anyone = shares.pop(None)
    known = before.numbers() if before else {}
    taken = set(known.values())
    free = (number for number in itertools.count() if number not in taken)
    selectors = {
        known[selector] if selector in known else next(free): selector
        for selector in shares
        if selector is not None
    }
    policy = EndpointPolicy(
        subject,
        revision,
        enforced,
        cache,
        Merger(
            frozenset(subject.named_ports.items()),
            derivations,
            settled,
            enforced if is_audited(settings, subject) else frozenset(),
        ),
        of_anyone,
        {number: shares[selector] for number, selector in selectors.items()},
    )
    policy.hold(selectors)
    if before is not None:
        policy.take_over(before)
    return policy
