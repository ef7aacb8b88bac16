"""From the rules that govern an endpoint to the entries of its policy map.

What applies to an identity depends only on which selectors select it (and, for ports by name, on
its ports' names). Identities fall into few such classes; the entries of a class are worked out
once and copied for each member, so the cost is that of the classes and not of the identities.

A longest-prefix lookup returns one entry, the most specific of the identity. So that it is also
the one that decides, an entry is left out where a wider one of the same identity has the higher
precedence: then the entries of an identity rise in precedence as they narrow.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Final
from weakref import WeakValueDictionary

import numpy as np
from attrs import define, field, frozen

from pyciliumlib.errors import PolicyError
from pyciliumlib.identity.labels import SOURCE_RESERVED, Label
from pyciliumlib.identity.selector import Selector
from pyciliumlib.policy.enforcement import admits_localhost, denies_by_default, is_enforced
from pyciliumlib.policy.entries import (
    ALLOW_BYTE,
    ANY_IDENTITY,
    DENY_BYTE,
    NO_PROXY,
    EntryValue,
    PolicyEntries,
    Slot,
    precedence,
)
from pyciliumlib.policy.l7 import L7, Parser
from pyciliumlib.policy.model import (
    ALL_PORTS,
    Clause,
    Direction,
    NamedPorts,
    Party,
    PortMatch,
    Rule,
    Source,
    Verdict,
)
from pyciliumlib.policy.selector_index import IdentityDelta, Membership, Selection, SelectorCache
from pyciliumlib.policy.settings import PolicySettings
from pyciliumlib.types import PortProto, Protocol

if TYPE_CHECKING:
    import numpy.typing as npt

# Cilium's priorities of proxies: the lower number wins where two would take a connection.
_PARSER_PRIORITY: Final = {
    Parser.HTTP: 101,
    Parser.KAFKA: 106,
    Parser.GENERIC: 106,
    Parser.TLS: 116,
    Parser.DNS: 121,
    Parser.CRD: 126,
}
_HOST: Final = Selector.of(Label(SOURCE_RESERVED, "host"))


@frozen
class Derivation:
    """The clauses behind a map entry, and what a proxy is to do for it."""

    cookie: int
    verdict: Verdict
    sources: tuple[Source, ...]
    l7: tuple[L7, ...] = ()

    def __str__(self) -> str:
        return "; ".join(map(str, self.sources))


def built_in(name: str, direction: Direction) -> Source:
    """The source of what no document says, such as `allow-localhost`."""
    return Source("reserved", "", f"{name}-{direction}")


@define
class Derivations:
    """Derivations in use, by cookie.

    The cookie is a digest of the content, so that it is the same after a restart.
    """

    _by_cookie: WeakValueDictionary[int, Derivation] = field(factory=WeakValueDictionary)

    def intern(
        self, verdict: Verdict, sources: tuple[Source, ...], l7: tuple[L7, ...]
    ) -> Derivation:
        """The one derivation of this content."""
        text = "\n".join([verdict.value, *map(repr, sources), *map(repr, l7)])
        cookie = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "little")
        while True:
            cookie = cookie or 1
            found = self._by_cookie.get(cookie)
            if found is None:
                found = Derivation(cookie, verdict, sources, l7)
                self._by_cookie[cookie] = found
                return found
            if (found.verdict, found.sources, found.l7) == (verdict, sources, l7):
                return found
            cookie = (cookie + 1) & 0xFFFF_FFFF

    def get(self, cookie: int) -> Derivation | None:
        """The derivation of a cookie, None once no policy uses it."""
        return self._by_cookie.get(cookie)


@frozen
class _Share:
    """What one clause gives to those that one selector selects."""

    source: Source
    direction: Direction
    match: PortMatch
    action: int
    l7: L7 | None = None

    @property
    def verdict(self) -> Verdict:
        if self.action == DENY_BYTE:
            return Verdict.DENY
        return Verdict.REDIRECT if self.l7 else Verdict.ALLOW


def _action(clause: Clause) -> int:
    if clause.deny:
        return DENY_BYTE
    if clause.l7 is None:
        return ALLOW_BYTE
    return DENY_BYTE - (clause.l7.priority or _PARSER_PRIORITY[clause.l7.parser])


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
    _derivations: Derivations
    _shares: list[list[_Share]] = field(factory=list)
    _selections: list[Selection] = field(factory=list)
    _bits: dict[Selection, int] = field(factory=dict)
    _names: frozenset[str] = frozenset()
    _used: dict[int, Derivation] = field(factory=dict)
    _templates: dict[tuple[int, _Named], PolicyEntries] = field(factory=dict)

    def entries(self) -> PolicyEntries:
        """All entries of the map, for the identities that are known now."""
        parts = [self._template(0, frozenset())] if self._shares else []
        parts += [
            template.for_identities(identities)
            for template, identities in self._classes()
            if len(template)
        ]
        return PolicyEntries.concatenate(parts)

    def changes(self, delta: IdentityDelta) -> tuple[PolicyEntries, PolicyEntries]:
        """The entries to add and to delete after a change of identities."""
        return self._of_identities(delta.added), self._of_identities(delta.removed)

    def derivation(self, cookie: int) -> Derivation | None:
        """The rules behind an entry of this map, by the cookie that it carries."""
        return self._used.get(cookie)

    def release(self) -> None:
        """Give back the selectors in use; the policy is not to be asked any more."""
        for selection in self._selections:
            self._cache.release(selection)
        self._selections.clear()

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
        ids = [np.fromiter(s.identities, np.uint32, len(s.identities)) for s in self._selections]
        if self._names:
            named = self._cache.named_ports
            ids.append(np.fromiter(named, np.uint32, len(named)))
        members = np.unique(np.concatenate(ids)) if ids else np.zeros(0, np.uint32)
        masks = np.zeros((len(members), len(ids) // 64 + 1), np.dtype("<u8"))
        for bit, selected in enumerate(ids[: len(self._selections)]):
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

        Mask 0 without ports by name is any identity: the first list of shares.
        """
        key = (mask, named)
        if key not in self._templates:
            rows = sorted(self._rows(mask, dict(named)).items())
            self._templates[key] = PolicyEntries.of(rows, ANY_IDENTITY)
        return self._templates[key]

    def _rows(self, mask: int, named: NamedPorts) -> dict[Slot, EntryValue]:
        by_slot: dict[Slot, list[_Share]] = {}
        for share in self._shares_of(mask, bool(named)):
            for slot in self._slots(share, named):
                by_slot.setdefault(slot, []).append(share)
        best = {slot: max(share.action for share in shares) for slot, shares in by_slot.items()}
        return {
            slot: self._value([share for share in shares if share.action == best[slot]])
            for slot, shares in by_slot.items()
            if not any(best.get(wider, 0) > best[slot] for wider in slot.wider())
        }

    def _shares_of(self, mask: int, has_names: bool) -> Iterator[_Share]:
        if not mask and not has_names:
            yield from self._shares[0]
        if has_names:  # a name means the ports of each peer, also where any peer is meant
            yield from (share for share in self._shares[0] if share.match.name)
        bit = 0
        while mask >> bit:
            if mask >> bit & 1:
                yield from self._shares[bit + 1]
            bit += 1

    def _slots(self, share: _Share, named: NamedPorts) -> Iterator[Slot]:
        match = share.match
        if match.name:
            ports = self.subject.named_ports if share.direction is Direction.INGRESS else named
            number, protocol = ports.get(match.name, (0, None))
            if number and protocol is match.protocol:
                yield Slot(share.direction, match.protocol, number, 16)
        elif match.protocol is Protocol.ANY:
            yield Slot(share.direction)
        else:
            for port, bits in PortProto(match.first, match.last).blocks():
                yield Slot(share.direction, match.protocol, port, bits)

    def _value(self, shares: list[_Share]) -> EntryValue:
        l7 = tuple(dict.fromkeys(share.l7 for share in shares if share.l7))
        sources = tuple(sorted({share.source for share in shares}))
        derivation = self._derivations.intern(shares[0].verdict, sources, l7)
        self._used[derivation.cookie] = derivation
        proxy_port = NO_PROXY if derivation.verdict is Verdict.REDIRECT else 0
        return EntryValue(precedence(shares[0].action), derivation.cookie, proxy_port)

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

    Raises PolicyError where rules contradict each
    other about the proxy of the same connections.
    """
    enforced = frozenset(d for d in Direction if is_enforced(rules, settings, subject, d))
    policy = EndpointPolicy(subject, revision, enforced, cache, derivations)
    shares: dict[Selector | None, list[_Share]] = {None: []}
    for direction in Direction:
        for share_of, share in _implied(rules, settings, subject, direction, enforced):
            shares.setdefault(share_of, []).append(share)
    for clause in (c for rule in rules for c in rule.clauses if c.direction in enforced):
        for selector in _audience(clause):
            shares.setdefault(selector, []).extend(_shares(clause))
    _refuse_conflicts(shares)
    policy._names = frozenset(
        share.match.name
        for listed in shares.values()
        for share in listed
        if share.match.name and share.direction is Direction.EGRESS
    )
    policy._shares.append(shares.pop(None))
    for selector, listed in shares.items():
        if selector is not None:
            selection = cache.acquire(selector)
            policy._bits[selection] = len(policy._selections)
            policy._selections.append(selection)
            policy._shares.append(listed)
    return policy


def _audience(clause: Clause) -> Iterable[Selector | None]:
    """The selectors of a clause's peers; None stands for any peer."""
    if clause.peers is None or any(not peer.requirements for peer in clause.peers):
        return (None,)
    return clause.peers


def _shares(clause: Clause) -> Iterator[_Share]:
    action = _action(clause)
    for match in clause.ports:
        yield _Share(clause.source, clause.direction, match, action, clause.l7)


def _implied(
    rules: Sequence[Rule],
    settings: PolicySettings,
    subject: Party,
    direction: Direction,
    enforced: frozenset[Direction],
) -> Iterator[tuple[Selector | None, _Share]]:
    """What is allowed without a clause."""

    def allow(name: str) -> _Share:
        return _Share(built_in(name, direction), direction, ALL_PORTS, ALLOW_BYTE)

    if direction not in enforced:
        yield None, allow("allow-any")
        return
    if not denies_by_default(rules, settings, subject, direction):
        yield None, allow("allow-any")
    if admits_localhost(rules, settings, subject, direction):
        yield _HOST, allow("allow-localhost")


def _refuse_conflicts(shares: Mapping[Selector | None, list[_Share]]) -> None:
    for selector, listed in shares.items():
        proxies: dict[tuple[Direction, PortMatch], _Share] = {}
        for share in listed:
            if share.l7 is None:
                continue
            first = proxies.setdefault((share.direction, share.match), share)
            if first.l7 is not None and _contradict(first.l7, share.l7):
                peer = "any peer" if selector is None else str(selector)
                raise PolicyError(
                    f"{first.source} and {share.source} send {share.match} of {peer} to different "
                    f"proxies ({first.l7} and {share.l7}); give one of them another port or peer"
                )


def _contradict(first: L7, second: L7) -> bool:
    if first.parser is Parser.CRD or second.parser is Parser.CRD:
        same = (first.parser, first.name) == (second.parser, second.name)
        return not same and first.priority == second.priority
    plain = Parser.TLS  # TLS alone leaves the requests to whatever parser another rule asks for
    kinds = {(l7.parser, l7.name) for l7 in (first, second) if l7.parser is not plain}
    contexts = [
        {context for context in pair if context}
        for pair in (
            (first.terminating, second.terminating),
            (first.originating, second.originating),
        )
    ]
    return len(kinds) > 1 or any(len(context) > 1 for context in contexts)
