"""Rules that are right and do not do what their author may think."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import Final

from attrs import define, field, frozen

from pyciliumlib.identity.labels import SOURCE_CIDR, SOURCE_FQDN, SOURCE_RESERVED, Labels
from pyciliumlib.identity.selector import Requirement, Selector
from pyciliumlib.policy.identity_index import IdentityIndex
from pyciliumlib.policy.l7 import DNSMatcher, DNSRule, Parser
from pyciliumlib.policy.model import ALL_PORTS, Clause, PortMatch, Rule, Source
from pyciliumlib.types import Direction, Protocol

_DNS_PORT: Final = 53


class Kind(str, enum.Enum):
    """What is the matter."""

    SELECTS_NO_SUBJECT = "selects-no-subject"
    SELECTS_NO_PEER = "selects-no-peer"
    DENIED_ANYWAY = "denied-anyway"
    ALLOWED_ANYWAY = "allowed-anyway"
    L7_WITHOUT_EFFECT = "l7-without-effect"
    L7_FOR_ANYBODY = "l7-for-anybody"
    NAMES_NOT_LEARNED = "names-not-learned"
    NO_DNS = "no-dns"
    OPEN_TO_THE_WORLD = "open-to-the-world"
    NO_SUCH_PORT_NAME = "no-such-port-name"

    def __str__(self) -> str:
        return self.value


@frozen
class Finding:
    """Something about a clause (or a whole rule), and what would mend it."""

    kind: Kind
    source: Source
    message: str
    mend: str

    def __str__(self) -> str:
        return f"{self.source}: {self.message}; {self.mend} [{self.kind}]"


def lint(
    rules: Sequence[Rule], identities: Mapping[int, Labels], port_names: frozenset[str]
) -> tuple[Finding, ...]:
    """What is to be said about rules, in the order of their sources.

    `identities` are those that are known, `port_names` the names that any of them gives a port.
    """
    linter = _Linter(identities, port_names)
    return tuple(sorted(linter.findings(rules), key=lambda f: (f.source, f.kind.value)))


@define
class _Linter:
    _identities: Mapping[int, Labels]
    _port_names: frozenset[str]
    _index: IdentityIndex = field(init=False, factory=IdentityIndex)
    _selected: dict[Selector, frozenset[int]] = field(init=False, factory=dict)

    def __attrs_post_init__(self) -> None:
        for number, labels in self._identities.items():
            self._index.add(number, labels)

    def findings(self, rules: Sequence[Rule]) -> Iterator[Finding]:
        subjects = _Subjects(rules)
        for rule in rules:
            if not self._who(rule.subject):
                yield Finding(
                    Kind.SELECTS_NO_SUBJECT,
                    rule.source,
                    f"no known identity is selected by {rule.subject}",
                    "check the labels and the namespace",
                )
            beside = [clause for other in subjects.over(rule) for clause in other.clauses]
            for clause in rule.clauses:
                yield from self._of_clause(clause, beside)
        yield from self._without_dns(rules)

    def _without_dns(self, rules: Sequence[Rule]) -> Iterator[Finding]:
        """Each identity that may ask no name server, once: at the first rule that denies it."""
        done: set[int] = set()
        for rule in rules:
            if any(map(_reaches_dns, rule.clauses)):
                done |= self._who(rule.subject)
        for rule in sorted(rules, key=lambda rule: rule.source):
            if Direction.EGRESS not in rule.default_deny:
                continue
            cut = self._who(rule.subject) - done
            done |= cut
            if cut:
                yield Finding(
                    Kind.NO_DNS,
                    rule.source,
                    f"egress of {len(cut)} identities is denied by default, and no rule allows "
                    "them port 53",
                    "allow 53/UDP to kube-dns if the pods look names up",
                )

    def _of_clause(self, clause: Clause, beside: Sequence[Clause]) -> Iterator[Finding]:
        yield from self._of_peers(clause)
        yield from self._of_ports(clause)
        yield from _of_names(clause, beside)
        if clause.l7 is not None:
            yield from self._of_l7(clause, beside)
        if not clause.deny and not clause.passes:
            yield from self._of_allow(clause, beside)

    def _of_peers(self, clause: Clause) -> Iterator[Finding]:
        for selector in clause.peers or ():
            outside = {SOURCE_CIDR, SOURCE_FQDN, SOURCE_RESERVED}
            if any(r.source in outside for r in selector.requirements):
                continue  # what is outside comes and goes, and need not be known
            if not self._who(selector):
                yield Finding(
                    Kind.SELECTS_NO_PEER,
                    clause.source,
                    f"no known identity is selected by {selector}",
                    "check the labels; other namespaces have to be named",
                )
        if (
            not clause.deny
            and not clause.passes
            and clause.direction is Direction.INGRESS
            and clause.l7 is None
            and ALL_PORTS in clause.ports
            and self._is_everybody(clause)
        ):
            yield Finding(
                Kind.OPEN_TO_THE_WORLD,
                clause.source,
                "everybody, the world too, may reach every port",
                "name the ports, or the peers",
            )

    def _is_everybody(self, clause: Clause) -> bool:
        peers = clause.peers
        return peers is None or any(not selector.requirements for selector in peers)

    def _of_ports(self, clause: Clause) -> Iterator[Finding]:
        for name in sorted({match.name for match in clause.ports} - {""} - self._port_names):
            yield Finding(
                Kind.NO_SUCH_PORT_NAME,
                clause.source,
                f"no known pod calls a port {name!r}",
                "check the names of the pods' ports",
            )

    def _of_l7(self, clause: Clause, beside: Sequence[Clause]) -> Iterator[Finding]:
        if self._is_everybody(clause) and clause.direction is Direction.INGRESS:
            yield Finding(
                Kind.L7_FOR_ANYBODY,
                clause.source,
                "requests of everybody, the world too, go through the proxy",
                "name the peers",
            )
        plain = self._wider(
            clause, (c for c in beside if c.l7 is None and not c.deny and not c.passes)
        )
        if plain is not None:
            yield Finding(
                Kind.L7_WITHOUT_EFFECT,
                clause.source,
                f"{plain.source} allows the same without L7 rules, so every request passes",
                "take the plain allow away, or the L7 rules",
            )

    def _of_allow(self, clause: Clause, beside: Sequence[Clause]) -> Iterator[Finding]:
        if not clause.ports or clause.peers == ():
            return  # it allows nobody on purpose: default deny
        denial = self._wider(clause, (c for c in beside if c.deny))
        if denial is not None:
            yield Finding(
                Kind.DENIED_ANYWAY,
                clause.source,
                f"{denial.source} denies all that it allows",
                "a deny counts before any allow of its level; narrow it",
            )
            return
        if clause.l7 is None:
            wider = self._wider(
                clause,
                (c for c in beside if not c.deny and not c.passes and c.l7 is None),
                strictly=True,
            )
            if wider is not None:
                yield Finding(
                    Kind.ALLOWED_ANYWAY,
                    clause.source,
                    f"{wider.source} allows all of it",
                    "one of the two can go",
                )

    def _wider(
        self, clause: Clause, others: Iterable[Clause], strictly: bool = False
    ) -> Clause | None:
        """One of `others` that is about all peers and ports of `clause`, on its level or before."""
        for other in others:
            if other is clause or other.direction is not clause.direction:
                continue
            if other.level > clause.level or other.level.tier is not clause.level.tier:
                continue
            if not _covers_ports(other, clause) or not _covers_peers(other, clause):
                continue
            the_same = _covers_ports(clause, other) and _covers_peers(clause, other)
            if strictly and the_same and clause.source <= other.source:
                continue  # written twice: only the later one is told
            return other
        return None

    def _who(self, selector: Selector) -> frozenset[int]:
        found = self._selected.get(selector)
        if found is None:
            found = self._selected[selector] = frozenset(self._index.select(selector))
        return found


class _Subjects:
    """Rules by subject, so that those are found which govern all that another rule governs."""

    def __init__(self, rules: Iterable[Rule]) -> None:
        self._rules: dict[tuple[frozenset[Requirement], bool], list[Rule]] = {}
        for rule in rules:
            key = frozenset(rule.subject.requirements), rule.on_nodes
            self._rules.setdefault(key, []).append(rule)

    def over(self, rule: Rule) -> Iterator[Rule]:
        """The rules that ask the same of their subjects, or less; `rule` itself too."""
        asked = rule.subject.requirements
        for count in range(len(asked) + 1):
            for some in combinations(asked, count):
                yield from self._rules.get((frozenset(some), rule.on_nodes), ())


def _of_names(clause: Clause, beside: Sequence[Clause]) -> Iterator[Finding]:
    names = [r.key for s in clause.peers or () for r in s.requirements if r.source == SOURCE_FQDN]
    asked = [
        rule
        for other in beside
        if other.l7 is not None and other.l7.parser is Parser.DNS
        for rule in other.l7.rules
        if isinstance(rule, DNSRule)
    ]
    matcher = DNSMatcher(asked)
    for name in names:
        patterns = {rule.match_pattern for rule in asked}
        if name not in matcher and name not in patterns and "*" not in patterns:
            yield Finding(
                Kind.NAMES_NOT_LEARNED,
                clause.source,
                f"no DNS rule of the same subject lets the answers for {name!r} be seen",
                "add toPorts with rules.dns for it to the rule that allows port 53",
            )


def _reaches_dns(clause: Clause) -> bool:
    if clause.deny or clause.passes or clause.direction is not Direction.EGRESS:
        return False
    return any(map(_holds_dns, clause.ports))


def _holds_dns(match: PortMatch) -> bool:
    if match.name:
        return "dns" in match.name
    on_protocol = match.protocol in (Protocol.ANY, Protocol.UDP, Protocol.TCP)
    return on_protocol and match.first <= _DNS_PORT <= match.last


def _covers_ports(wide: Clause, narrow: Clause) -> bool:
    return all(any(_covers_match(w, n) for w in wide.ports) for n in narrow.ports)


def _covers_match(wide: PortMatch, narrow: PortMatch) -> bool:
    if wide in (narrow, ALL_PORTS):
        return True
    if wide.name or wide.protocol is not narrow.protocol:
        return False
    return wide.any_port or (
        not narrow.name and wide.first <= narrow.first and narrow.last <= wide.last
    )


def _covers_peers(wide: Clause, narrow: Clause) -> bool:
    """Whether every peer of `narrow` is for certain one of `wide`: by the selectors alone."""
    if wide.peers is None or any(not s.requirements for s in wide.peers):
        return True
    if narrow.peers is None or wide.references or narrow.references:
        return False
    return all(
        any(set(w.requirements) <= set(n.requirements) for w in wide.peers) for n in narrow.peers
    )
