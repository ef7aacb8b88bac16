"""The model's verdict: which rules govern a connection, and which of them decides.

It walks rules and clauses, and looks at no selector cache and no map entry, so that a test can
hold it against those. Clauses are asked level by level; within a level any deny beats any redirect,
any redirect a plain allow, and an allow a pass, which goes on with the next tier.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from typing import Final

from attrs import frozen

from pyciliumlib.policy.enforcement import (
    admits_localhost,
    denies_by_default,
    governs,
    is_audited,
    is_enforced,
)
from pyciliumlib.policy.model import (
    Authentication,
    Clause,
    NamedPorts,
    Party,
    PortMatch,
    Rule,
    Tier,
    Verdict,
)
from pyciliumlib.policy.settings import PolicySettings
from pyciliumlib.types import Direction, PortProto, Protocol

NEAR_MISSES_MAX: Final = 8


class Reason(enum.Enum):
    """Why a direction has its verdict."""

    RULE = "an allow rule"
    L7 = "an L7 rule"
    DENY_RULE = "a deny rule"
    DEFAULT_DENY = "no rule allows it"
    NO_ENFORCEMENT = "no rule governs this direction"
    NO_DEFAULT_DENY = "the rules of this direction do not deny by default"
    LOCALHOST = "the local host may reach every endpoint"


@frozen
class NearMiss:
    """A clause that would have turned the verdict, and what kept it from matching."""

    clause: Clause
    matches_peer: bool

    def __str__(self) -> str:
        kind = "deny" if self.clause.deny else "allow"
        if self.matches_peer:
            ports = ", ".join(map(str, self.clause.ports)) or "no port"
            return f"{self.clause.source} ({kind}) selects the peer, not the port: it has {ports}"
        peers = " or ".join(map(str, self.clause.peers or ())) or "nobody"
        return f"{self.clause.source} ({kind}) covers the port, not the peer: it selects {peers}"


@frozen
class Decision:
    """The verdict of one direction, seen from its subject.

    One that is `audited` was to be denied, or authenticated, for the `reason`; it passes for the
    audit.
    """

    direction: Direction
    subject: Party
    peer: Party
    verdict: Verdict
    reason: Reason
    clauses: tuple[Clause, ...] = ()
    near_misses: tuple[NearMiss, ...] = ()
    governing: tuple[Rule, ...] = ()
    authentication: Authentication = Authentication.DISABLED
    #: The clauses that left the connection to a later tier.
    passed: tuple[Clause, ...] = ()
    #: Plain allows of the level that redirects: a proxy lets every request of theirs pass.
    beside: tuple[Clause, ...] = ()
    audited: bool = False

    @property
    def logged(self) -> tuple[str, ...]:
        """What the rules that decided want to have told (`log.value`)."""
        texts = (
            rule.log
            for rule in self.governing
            if rule.log and any(clause in rule.clauses for clause in self.clauses)
        )
        return tuple(dict.fromkeys(texts))

    @property
    def enforced(self) -> bool:
        """Whether some rule (or the mode) governs this direction of the subject."""
        return self.reason is not Reason.NO_ENFORCEMENT


def decide(
    rules: Iterable[Rule],
    settings: PolicySettings,
    subject: Party,
    peer: Party,
    direction: Direction,
    protocol: Protocol,
    port: int,
) -> Decision:
    """The verdict on packets between `subject` and `peer` in one direction of the subject.

    `port` is the destination port, or the message type of ICMP.
    """
    governing = tuple(rule for rule in rules if governs(rule, subject))
    if not is_enforced(governing, settings, subject, direction):
        return Decision(direction, subject, peer, Verdict.ALLOW, Reason.NO_ENFORCEMENT)
    named = subject.named_ports if direction is Direction.INGRESS else peer.named_ports
    matched: list[Clause] = []
    near: list[NearMiss] = []
    for clause in (c for rule in governing for c in rule.clauses if c.direction is direction):
        on_peer = selects_peer(clause, peer)
        on_port = any(covers_port(match, protocol, port, named) for match in clause.ports)
        if on_peer and on_port:
            matched.append(clause)
        elif not clause.passes and clause.ports and (on_peer or (on_port and clause.peers)):
            near.append(NearMiss(clause, on_peer))

    deciding, passed, beside = _ask(matched)

    def decision(verdict: Verdict, reason: Reason) -> Decision:
        denied = verdict is Verdict.DENY
        turning = [miss for miss in near if miss.clause.deny != denied]
        mode = _authentication(deciding, protocol, port, named)
        audited = (denied or bool(mode)) and is_audited(settings, subject)
        return Decision(
            direction,
            subject,
            peer,
            Verdict.ALLOW if denied and audited else verdict,
            reason,
            deciding,
            tuple(turning[:NEAR_MISSES_MAX]),
            governing,
            mode,
            passed,
            beside,
            audited,
        )

    if deciding:
        verdict = deciding[0].verdict
        return decision(verdict, _BY_RULE[verdict])
    if peer.is_host and admits_localhost(governing, settings, subject, direction):
        return decision(Verdict.ALLOW, Reason.LOCALHOST)
    if not denies_by_default(governing, settings, subject, direction):
        return decision(Verdict.ALLOW, Reason.NO_DEFAULT_DENY)
    return decision(Verdict.DENY, Reason.DEFAULT_DENY)


_BY_RULE: Final = {
    Verdict.DENY: Reason.DENY_RULE,
    Verdict.REDIRECT: Reason.L7,
    Verdict.ALLOW: Reason.RULE,
}


_Clauses = tuple[Clause, ...]


def _ask(matched: Sequence[Clause]) -> tuple[_Clauses, _Clauses, _Clauses]:
    """Of the clauses that match: those that decide, that passed it on, and the allows beside."""
    passed: list[Clause] = []
    gone: Tier | None = None
    for level in sorted({clause.level for clause in matched}):
        if level.tier is gone:
            continue
        here = [clause for clause in matched if clause.level == level]
        for verdict in _BY_RULE:
            deciding = [c for c in here if not c.passes and c.verdict is verdict]
            if deciding:
                beside = [c for c in here if c.verdict is Verdict.ALLOW and not c.passes]
                redirects = verdict is Verdict.REDIRECT
                return tuple(deciding), tuple(passed), tuple(beside) if redirects else ()
        passed += here
        gone = level.tier
    return (), tuple(passed), ()


def _authentication(
    clauses: Iterable[Clause], protocol: Protocol, port: int, named: NamedPorts
) -> Authentication:
    """What the clauses that decided say of it, as Cilium weighs them.

    Clauses that name peers and those about any peer each have a word: that of their narrowest
    clause which says anything. The side with the narrower clause speaks, on equal terms the one
    that names peers; where its narrowest clause says nothing, the stricter of both words holds.
    """
    listed = list(clauses)
    if all(clause.authentication is None for clause in listed):
        return Authentication.DISABLED
    sides = []
    for about_named in (True, False):
        width: dict[int, Authentication | None] = {}
        for clause in listed:
            if names_peers(clause) is about_named:
                bits = max(
                    fixed_bits(match, port)
                    for match in clause.ports
                    if covers_port(match, protocol, port, named)
                )
                width[bits] = max(clause.authentication, width.get(bits), key=_strictness)
        if width:
            said = [bits for bits, word in width.items() if word is not None]
            word = width[max(said)] if said else None
            sides.append((max(width), width[max(width)], word or Authentication.DISABLED))
    speaker = max(sides, key=lambda side: side[0])
    explicit = speaker[1]
    return max(word for _, _, word in sides) if explicit is None else explicit


def _strictness(word: Authentication | None) -> int:
    return -1 if word is None else word


def fixed_bits(match: PortMatch, port: int) -> int:
    """How many bits of protocol and port a match fixes around `port`: 0 to 24.

    A range is as narrow as the aligned block of it in which the port lies.
    """
    if match.protocol is Protocol.ANY:
        return 0
    if match.name:
        return 24
    blocks = PortProto(match.first, match.last).blocks()
    return 8 + max(bits for first, bits in blocks if port >> (16 - bits) == first >> (16 - bits))


def names_peers(clause: Clause) -> bool:
    """Whether a clause is about some peers, and not about any."""
    return clause.peers is not None and all(peer.requirements for peer in clause.peers)


def selects_peer(clause: Clause, peer: Party) -> bool:
    """Whether `peer` is one of those that the clause is about."""
    if clause.peers is None:
        return True
    return any(selector.matches(peer.labels) for selector in clause.peers)


def covers_port(match: PortMatch, protocol: Protocol, port: int, named: NamedPorts) -> bool:
    """Whether a packet to `port` of `protocol` is meant, where `named` are the named ports."""
    if match.protocol not in (Protocol.ANY, protocol):
        return False
    if match.name:
        return named.get(match.name) == (port, protocol)
    return match.first <= port <= match.last
