"""What the rules of an endpoint give to each selector of peers: ports, and what happens there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property, lru_cache
from typing import Final

from attrs import define

from pyciliumlib.errors import PolicyError
from pyciliumlib.identity.labels import SOURCE_RESERVED, Label
from pyciliumlib.identity.selector import Selector
from pyciliumlib.policy.enforcement import admits_localhost, denies_by_default
from pyciliumlib.policy.entries import (
    ALLOW_BYTE,
    DENY_BYTE,
    PASS_BYTE,
    EntryValue,
    Slot,
    precedence,
    priority_of,
)
from pyciliumlib.policy.l7 import L7, Parser
from pyciliumlib.policy.model import (
    ALL_PORTS,
    NORMAL,
    Authentication,
    Clause,
    Level,
    Party,
    PortMatch,
    Rule,
    Source,
    Tier,
    Verdict,
)
from pyciliumlib.policy.settings import PolicySettings
from pyciliumlib.types import Direction, PortProto, Protocol

# Cilium's priorities of proxies: the lower number wins where two would take a connection.
_PARSER_PRIORITY: Final = {
    Parser.HTTP: 101,
    Parser.KAFKA: 106,
    Parser.GENERIC: 106,
    Parser.TLS: 116,
    Parser.DNS: 121,
    Parser.CRD: 126,
}
_WITHOUT_RULES: Final = Level(Tier.DEFAULT)
_HOST: Final = Selector.of(Label(SOURCE_RESERVED, "host"))

#: By selector of peers; None stands for any peer.
Shares = dict[Selector | None, list["Share"]]


@lru_cache(1 << 14)
def _slots(direction: Direction, match: PortMatch) -> tuple[Slot, ...]:
    """Made once: many clauses are about the same ports."""
    if match.name:
        return ()
    if match.protocol is Protocol.ANY:
        return (Slot(direction),)
    return tuple(
        Slot(direction, match.protocol, port, bits)
        for port, bits in PortProto(match.first, match.last).blocks()
    )


@define(eq=False)
class Share:
    """What one clause gives to those that one selector selects."""

    source: Source
    direction: Direction
    match: PortMatch
    action: int
    l7: L7 | None = None
    authentication: Authentication | None = None
    level: Level = NORMAL
    #: The entry of a slot which this share alone decides, once it was asked for.
    entry: EntryValue | None = None

    @cached_property
    def slots(self) -> tuple[Slot, ...]:
        """The slots of its ports; none if it names a port, whose number each pod gives."""
        return _slots(self.direction, self.match)

    @cached_property
    def precedence(self) -> int:
        """By which it is weighed against others."""
        return precedence(self.action, priority_of(self.level))

    @cached_property
    def verdict(self) -> Verdict:
        """What it does to a packet."""
        if self.action == DENY_BYTE:
            return Verdict.DENY
        return Verdict.REDIRECT if self.l7 else Verdict.ALLOW


@define(eq=False)
class Handout:
    """A rule, and the shares that its clauses hand out; made once, for every endpoint."""

    rule: Rule
    _shares: dict[Direction, list[tuple[Selector | None, tuple[Share, ...]]]] | None = None

    @cached_property
    def passing(self) -> frozenset[Direction]:
        """The directions in which a clause leaves peers to a later tier."""
        return frozenset(clause.direction for clause in self.rule.clauses if clause.passes)

    def of(self, direction: Direction) -> list[tuple[Selector | None, tuple[Share, ...]]]:
        """The shares in one direction, by selector."""
        if self._shares is None:
            self._shares = {direction: [] for direction in Direction}
            for clause in self.rule.clauses:
                shares = tuple(_shares(clause))
                made = self._shares[clause.direction]
                made.extend((selector, shares) for selector in _audience(clause))
        return self._shares[direction]


def _action(clause: Clause) -> int:
    if clause.passes:
        return PASS_BYTE
    if clause.deny:
        return DENY_BYTE
    if clause.l7 is None:
        return ALLOW_BYTE
    return DENY_BYTE - _priority(clause.l7)


def built_in(name: str, direction: Direction) -> Source:
    """The source of what no document says, such as `allow-localhost`."""
    return Source("reserved", "", f"{name}-{direction}")


def collect_shares(
    handouts: Sequence[Handout],
    settings: PolicySettings,
    subject: Party,
    enforced: frozenset[Direction],
    settled: frozenset[Direction],
) -> Shares:
    """The shares that rules hand out, and those that hold without a clause.

    In the directions `settled`, default deny is said: a class of identities that rules pass on has
    to be told what it is left with.

    Raises PolicyError where rules contradict each other about the proxy of the same connections.
    """
    found: Shares = {None: []}
    rules = [handout.rule for handout in handouts]
    for direction in Direction:
        for selector, share in _implied(rules, settings, subject, direction, enforced):
            found.setdefault(selector, []).append(share)
    for direction in settled:
        if denies_by_default(rules, settings, subject, direction):
            found[None].append(_without_rule("deny-any", direction, DENY_BYTE))
    for direction in sorted(enforced):
        for handout in handouts:
            for selector, shares in handout.of(direction):
                found.setdefault(selector, []).extend(shares)
    _refuse_conflicts(found)
    return found


def _audience(clause: Clause) -> Iterable[Selector | None]:
    """The selectors of a clause's peers; None stands for any peer."""
    if clause.peers is None or any(not peer.requirements for peer in clause.peers):
        return (None,)
    return clause.peers


def _shares(clause: Clause) -> Iterator[Share]:
    action = _action(clause)
    for match in clause.ports:
        yield Share(
            clause.source,
            clause.direction,
            match,
            action,
            clause.l7,
            clause.authentication,
            clause.level,
        )


def _implied(
    rules: Sequence[Rule],
    settings: PolicySettings,
    subject: Party,
    direction: Direction,
    enforced: frozenset[Direction],
) -> Iterator[tuple[Selector | None, Share]]:
    """What is allowed without a clause."""

    if direction not in enforced:
        yield None, _without_rule("allow-any", direction, ALLOW_BYTE)
        return
    if not denies_by_default(rules, settings, subject, direction):
        yield None, _without_rule("allow-any", direction, ALLOW_BYTE)
    if admits_localhost(rules, settings, subject, direction):
        yield _HOST, _without_rule("allow-localhost", direction, ALLOW_BYTE, NORMAL)


def _without_rule(
    name: str, direction: Direction, action: int, level: Level = _WITHOUT_RULES
) -> Share:
    return Share(built_in(name, direction), direction, ALL_PORTS, action, level=level)


def _refuse_conflicts(shares: Mapping[Selector | None, list[Share]]) -> None:
    """Of what is said to one selector about one match, in the order of the rules.

    After a deny there is nothing to contradict.
    """
    for selector, listed in shares.items():
        asked: dict[tuple[Direction, PortMatch, Level], list[Share]] = {}
        for share in listed:
            if share.l7 is None and share.authentication is None and share.action != DENY_BYTE:
                continue
            before = asked.setdefault((share.direction, share.match, share.level), [])
            if before and before[-1].action == DENY_BYTE:
                continue
            for other in before:
                _refuse_contradiction(selector, other, share)
            _refuse_names_without_tls(selector, before, share)
            # by what they ask of the proxy, not by their requests: few, so each pair is compared
            if not any(_asks_the_same(other, share) for other in before):
                before.append(share)


def _asks_the_same(first: Share, second: Share) -> bool:
    return _demand(first) == _demand(second)


def _demand(share: Share) -> tuple[object, ...]:
    l7 = share.l7 and (
        share.l7.parser, share.l7.name, share.l7.priority, share.l7.terminating,
        share.l7.originating, bool(share.l7.rules), bool(share.l7.server_names),
    )  # fmt: skip
    return share.action, share.authentication, l7


def _refuse_contradiction(selector: Selector | None, first: Share, second: Share) -> None:
    about = f"{second.match} of {'any peer' if selector is None else selector}"
    both = f"{first.source} and {second.source}"
    modes = first.authentication, second.authentication
    if None not in modes and modes[0] is not modes[1]:
        raise PolicyError(f"{both} say {modes[0]} and {modes[1]} of {about}; let both say the same")
    if first.l7 and second.l7 and _contradict(first.l7, second.l7):
        raise PolicyError(
            f"{both} send {about} to different proxies ({first.l7} and {second.l7}); "
            "give one of them another port or peer"
        )


def _refuse_names_without_tls(
    selector: Selector | None, before: Sequence[Share], share: Share
) -> None:
    """Rules that came first cannot be asked once a server name is: the proxy sees TLS alone."""
    proxies = [s.l7 for s in (*before, share) if s.l7]
    rules = next((s for s in before if s.l7 and s.l7.rules), None)
    if rules and any(p.server_names for p in proxies) and not any(p.terminating for p in proxies):
        raise PolicyError(
            f"{share.source} asks for a server name where {rules.source} has {rules.l7} rules for "
            f"{share.match} of {'any peer' if selector is None else selector}; the proxy needs "
            "terminatingTLS to read the requests"
        )


def _contradict(first: L7, second: L7) -> bool:
    for name in ("terminating", "originating"):
        contexts = {getattr(l7, name) for l7 in (first, second)} - {""}
        if len(contexts) > 1:
            return True
    parsers = {first.parser, second.parser}
    if Parser.CRD in parsers:
        same = first.name == second.name or _priority(first) != _priority(second)
        return not (len(parsers) == 1 and same)
    if Parser.TLS in parsers:  # it leaves the requests to whatever other parser, but for DNS
        return Parser.DNS in parsers
    return (first.parser, first.name) != (second.parser, second.name)


def _priority(l7: L7) -> int:
    """By which a proxy is chosen: the lower number."""
    return l7.priority or _PARSER_PRIORITY[l7.parser]
