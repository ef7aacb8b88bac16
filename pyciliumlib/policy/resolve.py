"""From the rules that govern an endpoint to the entries of its policy map.

What applies to an identity depends only on which selectors select it (and, for ports by name, on
its ports' names). Identities fall into few such classes; the entries of a class are worked out
once and copied for each member, so the cost is that of the classes and not of the identities.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
from attrs import define, field

from pyciliumlib.policy.derivation import Derivation, Derivations
from pyciliumlib.policy.enforcement import is_enforced
from pyciliumlib.policy.entries import ANY_IDENTITY, PolicyEntries
from pyciliumlib.policy.merge import Merger
from pyciliumlib.policy.model import Direction, NamedPorts, Party, Rule
from pyciliumlib.policy.selector_index import IdentityDelta, Membership, Selection, SelectorCache
from pyciliumlib.policy.settings import PolicySettings
from pyciliumlib.policy.shares import Share, collect_shares
from pyciliumlib.types import Protocol

if TYPE_CHECKING:
    import numpy.typing as npt

_NO_PORTS: Final[NamedPorts] = {}
#: Those named ports of an identity that matter to a policy.
_Named = frozenset[tuple[str, tuple[int, Protocol]]]


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
    _of_selection: list[tuple[Selection, list[Share]]]
    _bits: dict[Selection, int] = field(init=False)
    _names: frozenset[str] = field(init=False)
    _templates: dict[tuple[int, _Named], PolicyEntries] = field(init=False, factory=dict)

    @_bits.default
    def _number_selections(self) -> dict[Selection, int]:
        return {selection: bit for bit, (selection, _) in enumerate(self._of_selection)}

    @_names.default
    def _names_of_peers(self) -> frozenset[str]:
        """The port names that each peer gives a number of its own."""
        listed = [self._of_anyone, *(shares for _, shares in self._of_selection)]
        return frozenset(
            share.match.name
            for shares in listed
            for share in shares
            if share.match.name and share.direction is Direction.EGRESS
        )

    def entries(self) -> PolicyEntries:
        """All entries of the map, for the identities that are known now."""
        with self._cache.lock:
            parts = [self._template(0, frozenset())]
            parts += [
                template.for_identities(identities)
                for template, identities in self._classes()
                if len(template)
            ]
        return PolicyEntries.concatenate(parts)

    def changes(self, delta: IdentityDelta) -> tuple[PolicyEntries, PolicyEntries]:
        """The entries to add (or replace), and those to delete, after a change of identities.

        No key is in both, so their order is free: a number that got other labels keeps the
        entries that hold for both.
        """
        with self._cache.lock:
            adds = self._of_identities(delta.added)
            deletes = self._of_identities(delta.removed)
        if len(adds) and len(deletes):
            deletes = deletes.without_keys_of(adds)
        return adds, deletes

    def derivation(self, cookie: int) -> Derivation | None:
        """The rules behind an entry of this map, by the cookie that it carries."""
        return self._merger.used.get(cookie)

    def release(self) -> None:
        """Give back the selectors in use; the policy is not to be asked any more."""
        with self._cache.lock:
            for selection in self._bits:
                self._cache.release(selection)
            self._bits.clear()

    # ------------------------------------------------------------------ classes of identities

    def _classes(self) -> Iterator[tuple[PolicyEntries, npt.NDArray[np.uint32]]]:
        members, masks = self._masks()
        if not len(members):
            return
        if self._names:
            yield from self._classes_by_name(members, masks)
            return
        order = np.lexsort(masks.T)
        changed = np.any(masks[order][1:] != masks[order][:-1], axis=1)
        for group in np.split(order, np.flatnonzero(changed) + 1):
            mask = int.from_bytes(masks[group[0]].tobytes(), "little")
            yield self._template(mask, frozenset()), members[group]

    def _masks(self) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint64]]:
        """Those identities that a selector selects, and which selectors: 64 to a word."""
        ids = [np.fromiter(s.identities, np.uint32, len(s.identities)) for s in self._bits]
        if self._names:
            named = self._cache.named_ports
            ids.append(np.fromiter(named, np.uint32, len(named)))
        members = np.unique(np.concatenate(ids)) if ids else np.zeros(0, np.uint32)
        masks = np.zeros((len(members), len(ids) // 64 + 1), np.dtype("<u8"))
        for bit, selected in enumerate(ids[: len(self._bits)]):
            masks[np.searchsorted(members, selected), bit // 64] |= np.uint64(1 << bit % 64)
        return members, masks

    def _classes_by_name(
        self, members: npt.NDArray[np.uint32], masks: npt.NDArray[np.uint64]
    ) -> Iterator[tuple[PolicyEntries, npt.NDArray[np.uint32]]]:
        groups: dict[tuple[int, _Named], list[int]] = {}
        for identity, row in zip(members.tolist(), masks, strict=True):
            mask = int.from_bytes(row.tobytes(), "little")
            named = self._relevant(self._cache.named_ports.get(identity, _NO_PORTS))
            groups.setdefault((mask, named), []).append(identity)
        for (mask, named), identities in groups.items():
            yield self._template(mask, named), np.array(identities, np.uint32)

    def _relevant(self, ports: NamedPorts) -> _Named:
        return frozenset(item for item in ports.items() if item[0] in self._names)

    def _of_identities(self, members: Mapping[int, Membership]) -> PolicyEntries:
        groups: dict[tuple[int, _Named], list[int]] = {}
        for identity, member in members.items():
            bits = (self._bits.get(selection) for selection in member.selections)
            mask = sum(1 << bit for bit in bits if bit is not None)
            named = self._relevant(member.named_ports)
            if mask or named:
                groups.setdefault((mask, named), []).append(identity)
        return PolicyEntries.concatenate(
            [
                template.for_identities(np.array(identities, np.uint32))
                for (mask, named), identities in groups.items()
                if len(template := self._template(mask, named))
            ]
        )

    # ------------------------------------------------------------------ the entries of a class

    def _template(self, mask: int, named: _Named) -> PolicyEntries:
        """The entries of the identities in exactly the selections of `mask`.

        Mask 0 without ports by name is any identity.
        """
        key = (mask, named)
        if key not in self._templates:
            rows = self._merger.rows(self._shares_of(mask, bool(named)), dict(named))
            self._templates[key] = PolicyEntries.of(sorted(rows.items()), ANY_IDENTITY)
        return self._templates[key]

    def _shares_of(self, mask: int, has_names: bool) -> Iterator[Share]:
        if not mask and not has_names:
            yield from self._of_anyone
        if has_names:  # a name means the ports of each peer, also where any peer is meant
            yield from (share for share in self._of_anyone if share.match.name)
        for bit, (_, shares) in enumerate(self._of_selection):
            if mask >> bit & 1:
                yield from shares

    def __repr__(self) -> str:
        return f"EndpointPolicy({str(self.subject)!r}, revision {self.revision})"


def resolve(
    rules: Sequence[Rule],
    settings: PolicySettings,
    subject: Party,
    cache: SelectorCache,
    derivations: Derivations,
    revision: int = 0,
) -> EndpointPolicy:
    """The policy of `subject`, which all of `rules` govern.

    Raises PolicyError where rules contradict each other about the proxy of the same connections.
    """
    enforced = frozenset(d for d in Direction if is_enforced(rules, settings, subject, d))
    shares = collect_shares(rules, settings, subject, enforced)
    of_anyone = shares.pop(None)
    of_selection = [
        (cache.acquire(selector), listed)
        for selector, listed in shares.items()
        if selector is not None
    ]
    merger = Merger(subject.named_ports, derivations)
    return EndpointPolicy(subject, revision, enforced, cache, merger, of_anyone, of_selection)
