"""The model's verdicts of one subject on many peers at once, as numpy columns.

It decides as `verdict.decide` does, level by level, with a mask of peers in place of one peer; a
property test holds the two to each other.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Final

import numpy as np
from attrs import define, field

from pyciliumlib.identity.selector import Selector
from pyciliumlib.policy.enforcement import (
    admits_localhost,
    denies_by_default,
    is_audited,
    is_enforced,
)
from pyciliumlib.policy.identity_index import IdentityIndex
from pyciliumlib.policy.model import Clause, Level, Party, PortMatch, Rule, Verdict
from pyciliumlib.policy.settings import PolicySettings
from pyciliumlib.policy.verdict import covers_port
from pyciliumlib.types import Direction, Protocol

if TYPE_CHECKING:
    import numpy.typing as npt

    Mask = npt.NDArray[np.bool_]
    Codes = npt.NDArray[np.uint8]

#: The verdict of each code in a column; the higher one counts where two sides speak.
VERDICTS: Final = (Verdict.ALLOW, Verdict.REDIRECT, Verdict.DENY)
CODES: Final = {verdict: np.uint8(code) for code, verdict in enumerate(VERDICTS)}
_ALLOW, _REDIRECT, _DENY = (CODES[verdict] for verdict in VERDICTS)
#: What a level says, in the order in which it counts; None passes.
_ORDER: Final = (Verdict.DENY, Verdict.REDIRECT, Verdict.ALLOW)


@define
class Peers:
    """The parties of a question, by place, and who of them a selector selects."""

    parties: Sequence[Party]
    _index: IdentityIndex = field(init=False, factory=IdentityIndex)
    _selected: dict[Selector, Mask] = field(init=False, factory=dict)
    hosts: Mask = field(init=False)

    def __attrs_post_init__(self) -> None:
        for place, party in enumerate(self.parties):
            self._index.add(place, party.labels)
        self.hosts = np.array([party.is_host for party in self.parties], np.bool_)

    def __len__(self) -> int:
        return len(self.parties)

    def none(self) -> Mask:
        """A mask of nobody."""
        return np.zeros(len(self), np.bool_)

    def everybody(self) -> Mask:
        """A mask of all."""
        return np.ones(len(self), np.bool_)

    def of_clause(self, clause: Clause) -> Mask:
        """Whom a clause is about."""
        if clause.peers is None:
            return self.everybody()
        mask = self.none()
        for selector in clause.peers:
            mask |= self._of(selector)
        return mask

    def _of(self, selector: Selector) -> Mask:
        found = self._selected.get(selector)
        if found is None:
            found = self._selected[selector] = self.none()
            found[list(self._index.select(selector))] = True
        return found

    def naming(self, match: PortMatch, protocol: Protocol, port: int) -> Mask:
        """Those who call the port by the name that a match has."""
        return np.array(
            [covers_port(match, protocol, port, party.named_ports) for party in self.parties],
            np.bool_,
        )


def row(
    rules: Sequence[Rule],
    settings: PolicySettings,
    subject: Party,
    peers: Peers,
    direction: Direction,
    protocol: Protocol,
    port: int,
) -> Codes:
    """The codes of one subject's verdicts on all peers; `rules` are those that govern it."""
    found = np.full(len(peers), _ALLOW, np.uint8)
    if not subject.governable or (subject.is_host and not settings.host_firewall):
        return found
    if not is_enforced(rules, settings, subject, direction):
        return found
    undecided = peers.everybody()
    levels = _by_level(rules, subject, peers, direction, protocol, port)
    for _tier, group in groupby(sorted(levels), key=lambda level: level.tier):
        here = undecided.copy()  # those whom no rule of the tier has passed on
        for level in group:
            masks = levels[level]
            for verdict in _ORDER:
                hit = here & masks[verdict]
                found[hit] = CODES[verdict]
                here &= ~hit
                undecided &= ~hit
            here &= ~masks[None]
    if admits_localhost(rules, settings, subject, direction):
        undecided &= ~peers.hosts
    if denies_by_default(rules, settings, subject, direction):
        found[undecided] = _DENY
    if is_audited(settings, subject):
        found[found == _DENY] = _ALLOW
    return found


def _by_level(
    rules: Iterable[Rule],
    subject: Party,
    peers: Peers,
    direction: Direction,
    protocol: Protocol,
    port: int,
) -> dict[Level, dict[Verdict | None, Mask]]:
    """Whom the clauses of each level allow, redirect, deny and (None) pass."""
    levels: dict[Level, dict[Verdict | None, Mask]] = {}
    for clause in (c for rule in rules for c in rule.clauses if c.direction is direction):
        on_port = _on_port(clause, subject, peers, protocol, port)
        if on_port is None:
            continue
        masks = levels.get(clause.level)
        if masks is None:
            masks = levels[clause.level] = {kind: peers.none() for kind in (*_ORDER, None)}
        masks[None if clause.passes else clause.verdict] |= peers.of_clause(clause) & on_port
    return levels


def _on_port(
    clause: Clause, subject: Party, peers: Peers, protocol: Protocol, port: int
) -> Mask | np.bool_ | None:
    """For whom the port is one that a clause is about; None if for nobody."""
    named: Mask | None = None
    for match in clause.ports:
        if match.name and clause.direction is Direction.EGRESS:
            mask = peers.naming(match, protocol, port)
            named = mask if named is None else named | mask
        elif covers_port(match, protocol, port, subject.named_ports):
            return np.True_
    return named
