"""Why a connection passes or not: both directions, the rules that decided, and what is missing."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from attrs import frozen

from pyciliumlib.errors import PolicyError
from pyciliumlib.policy.answer import Answer, Request, answer
from pyciliumlib.policy.model import Party, PortMatch, Rule, Verdict
from pyciliumlib.policy.settings import PolicySettings
from pyciliumlib.policy.verdict import Decision, Reason, decide
from pyciliumlib.types import Direction, PortProto, Protocol

_ROWS_MAX: Final = 50
_TEXT_MAX: Final = 300
_ECHO_REQUEST: Final = {Protocol.ICMP: 8, Protocol.ICMPv6: 128}

#: What `explain` takes as port: "8080/TCP", "8/ICMP", "ICMP" (an echo request), "GRE", or a
#: PortProto.
Target = str | PortProto


@frozen
class Explanation:
    """The verdict on a connection: egress of its source, then ingress of its destination.

    A direction is None where no policy can apply: the world and other nodes have none here.
    """

    source: Party
    destination: Party
    protocol: Protocol
    port: int
    egress: Decision | None
    ingress: Decision | None
    #: The request that was asked about, and what the proxies of the directions say to it.
    request: Request | None = None
    answers: tuple[tuple[Direction, Answer], ...] = ()

    @property
    def decisions(self) -> tuple[Decision, ...]:
        """The directions that policy decided."""
        return tuple(decision for decision in (self.egress, self.ingress) if decision)

    @property
    def verdict(self) -> Verdict:
        """What becomes of the connection: denied if either side denies it.

        With a request, what becomes of that: the proxies' answers count in place of redirects.
        """
        verdicts = {decision.verdict for decision in self.decisions}
        if self.request is not None:
            verdicts.discard(Verdict.REDIRECT)
            if not all(answer.allowed for _, answer in self.answers):
                return Verdict.DENY
        for verdict in (Verdict.DENY, Verdict.REDIRECT):
            if verdict in verdicts:
                return verdict
        return Verdict.ALLOW

    @property
    def missing(self) -> tuple[str, ...]:
        """The allow rules that would have to be there, one for each side that denies by default."""
        return tuple(
            _missing(decision, self.target)
            for decision in self.decisions
            if decision.reason is Reason.DEFAULT_DENY
        )

    @property
    def target(self) -> PortMatch:
        """The port (or ICMP type) in question."""
        return PortMatch(self.protocol, self.port, self.port)

    def lines(self) -> Iterator[tuple[str, str]]:
        """What is to be said, as (topic, text)."""
        for direction, decision, party in (
            (Direction.EGRESS, self.egress, self.source),
            (Direction.INGRESS, self.ingress, self.destination),
        ):
            topic = f"{direction} of {party}"
            if decision is None:
                yield topic, "allow: no policy applies here"
                continue
            yield topic, _because(decision)
            for text in decision.logged:
                yield "log", text
            if decision.passed:
                by = "; ".join(dict.fromkeys(str(clause.source) for clause in decision.passed))
                yield "before that", f"passed on by {by}"
            for answered, said in self.answers:
                if answered is direction:
                    yield "proxy", str(said)
                    yield from (("near", miss) for miss in said.near)
            if decision.verdict is Verdict.DENY or decision.audited:
                for near in decision.near_misses:
                    yield "near", str(near)
            if decision.reason is Reason.DEFAULT_DENY:
                yield "missing", _missing(decision, self.target)

    @property
    def _what(self) -> str:
        return f"{self.target} {self.request}" if self.request else str(self.target)

    def __str__(self) -> str:
        head = f"{self.verdict}: {self.source} -> {self.destination} {self._what}"
        return "\n".join([head, *(f"  {topic}: {text}" for topic, text in self.lines())])

    def _repr_html_(self) -> str:
        shown = [
            f"<tr><th>{_cell(topic)}</th><td>{_cell(text)}</td></tr>"
            for topic, text in list(self.lines())[:_ROWS_MAX]
        ]
        head = _cell(f"{self.verdict}: {self.source} → {self.destination} {self._what}")
        return f"<table><caption>{head}</caption>{''.join(shown)}</table>"


def _cell(text: str) -> str:
    return html.escape(text if len(text) <= _TEXT_MAX else text[: _TEXT_MAX - 1] + "…")


def _because(decision: Decision) -> str:
    if decision.audited:
        to_be = f"authentication {decision.authentication}" if decision.authentication else "deny"
        return f"allow for the audit, else {to_be}: {_why(decision)}"
    return f"{decision.verdict}: {_why(decision)}"


def _why(decision: Decision) -> str:
    by = "; ".join(dict.fromkeys(str(clause.source) for clause in decision.clauses))
    if by:
        must = f" (authentication: {decision.authentication})" if decision.authentication else ""
        return f"{decision.reason.value}, {by}{must}"
    if decision.reason is Reason.DEFAULT_DENY and decision.governing:
        rules = "; ".join(
            str(rule.source)
            for rule in decision.governing
            if decision.direction in rule.default_deny
        )
        return f"{decision.reason.value}; default deny comes from {rules}"
    return decision.reason.value


def _missing(decision: Decision, target: PortMatch) -> str:
    word = "fromEndpoints" if decision.direction is Direction.INGRESS else "toEndpoints"
    if any(label.source == "cidr" for label in decision.peer.labels):
        word = word.replace("Endpoints", "CIDR")
    elif any(label.source == "reserved" for label in decision.peer.labels):
        word = word.replace("Endpoints", "Entities")
    return (
        f"an {decision.direction} rule of a policy that selects {decision.subject}, "
        f"with {word} {decision.peer} and port {target}"
    )


def parse_target(target: Target) -> tuple[Protocol, int]:
    """The protocol and the one port (or ICMP type, 0 if it has neither) that `target` names.

    Raises PolicyError if it names none or several, UnitError if it is no port at all.

    >>> parse_target("8080/TCP"), parse_target("ICMP")
    ((<Protocol.TCP: 6>, 8080), (<Protocol.ICMP: 1>, 8))
    """
    if isinstance(target, str) and "ICMP" in target.upper():
        kind, slash, name = target.partition("/")
        protocol = Protocol.parse(name if slash else kind)
        kind = kind if slash else str(_ECHO_REQUEST[protocol])
        if kind.isascii() and kind.isdigit() and int(kind) <= 255:
            return protocol, int(kind)
        raise PolicyError(f"{target!r}: ICMP types are 0 to 255; write 8/ICMP")
    ports = PortProto.parse(target)
    if ports.protocol.extended:
        return ports.protocol, 0
    if ports.first != ports.last or ports.protocol is Protocol.ANY:
        raise PolicyError(
            f"{str(target)!r}: one connection has one port and one protocol; write 8080/TCP"
        )
    return ports.protocol, ports.first


def explain(
    rules_of: Callable[[Party], Sequence[Rule]],
    settings: PolicySettings,
    source: Party,
    destination: Party,
    target: Target,
    request: Request | None = None,
) -> Explanation:
    """Decide a connection, and a request in it, by the rules.

    `rules_of` finds the ones that may govern a subject.
    """
    protocol, port = parse_target(target)

    def side(subject: Party, peer: Party, direction: Direction) -> Decision | None:
        if not subject.governable or (subject.is_host and not settings.host_firewall):
            return None
        rules = rules_of(subject)
        return decide(rules, settings, subject, peer, direction, protocol, port)

    egress = side(source, destination, Direction.EGRESS)
    ingress = side(destination, source, Direction.INGRESS)
    answers = [
        (decision.direction, answer(decision, request, settings))
        for decision in (egress, ingress)
        if request is not None and decision and decision.verdict is Verdict.REDIRECT
    ]
    return Explanation(
        source, destination, protocol, port, egress, ingress, request, tuple(answers)
    )
