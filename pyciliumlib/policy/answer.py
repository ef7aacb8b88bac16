"""What the proxy of a redirect answers to a request, by the rules that sent it there.

A proxy knows the peer's identity and weighs everything that is said about it: the L7 rules of all
clauses that redirect, and plain allows beside them, with which every request passes.
"""

from __future__ import annotations

from typing import Final

from attrs import frozen

from pyciliumlib.errors import InvalidError, PolicyError
from pyciliumlib.policy.enforcement import admits_localhost
from pyciliumlib.policy.l7 import (
    DNSMatcher,
    DNSQuery,
    DNSRule,
    HTTPMatcher,
    HTTPRequest,
    HTTPRule,
    KafkaMatcher,
    KafkaRequest,
    KafkaRule,
    Parser,
)
from pyciliumlib.policy.model import Clause
from pyciliumlib.policy.settings import PolicySettings
from pyciliumlib.policy.verdict import Decision

Request = HTTPRequest | DNSQuery | KafkaRequest
_PARSERS: Final = {
    HTTPRequest: Parser.HTTP,
    DNSQuery: Parser.DNS,
    KafkaRequest: Parser.KAFKA,
}
#: How each proxy refuses.
_REFUSALS: Final = {
    Parser.HTTP: "403 Access denied",
    Parser.DNS: "REFUSED",
    Parser.KAFKA: "topic authorization failed",
}
_NEAR_MAX: Final = 8


@frozen
class Answer:
    """Whether a request passes the proxy of one direction, and why."""

    allowed: bool
    why: str
    clause: Clause | None = None
    near: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{'allow' if self.allowed else 'deny'}: {self.why}"


def one_request(
    http: HTTPRequest | None = None, dns: str | None = None, kafka: KafkaRequest | None = None
) -> Request | None:
    """The one request that is given; PolicyError for several, InvalidError for what is none."""
    for value, kind in ((http, HTTPRequest), (kafka, KafkaRequest)):
        if value is not None and not isinstance(value, kind):
            raise InvalidError(
                f"{type(value).__name__} found as a request; write {kind.__name__}(...)"
            )
    given = [r for r in (http, DNSQuery(dns) if dns is not None else None, kafka) if r is not None]
    if len(given) > 1:
        raise PolicyError("http, dns and kafka: a connection carries one kind of request")
    return given[0] if given else None


def answer(decision: Decision, request: Request, settings: PolicySettings) -> Answer:
    """What the proxy says to which `decision` redirects."""
    local = decision.peer.is_host and admits_localhost(
        decision.governing, settings, decision.subject, decision.direction
    )
    if local:
        return Answer(True, "every request of the local host passes")
    if decision.beside:
        first = decision.beside[0]
        return Answer(True, f"every request passes, {first.source}", first)
    for rule in decision.governing:
        if decision.direction not in rule.default_deny:
            clause = next((c for c in decision.clauses if c in rule.clauses), None)
            if clause is not None:
                return Answer(True, f"every request passes, {rule.source} denies nothing", clause)
    parser = _PARSERS[type(request)]
    asked = [clause for clause in decision.clauses if clause.l7 and clause.l7.parser is parser]
    if not asked:
        other = next(str(clause.l7) for clause in decision.clauses)
        return Answer(False, f"the proxy is for {other}, not for {parser.value}")
    if any(not clause.l7.rules for clause in asked if clause.l7):
        clause = next(c for c in asked if c.l7 and not c.l7.rules)
        return Answer(True, f"every request passes, {clause.source}", clause)
    return _by_rules(asked, request, _REFUSALS[parser], settings)


def _by_rules(
    asked: list[Clause], request: Request, refusal: str, settings: PolicySettings
) -> Answer:
    near: list[str] = []
    for clause in asked:
        rules = clause.l7.rules if clause.l7 else ()
        matched = _matching(rules, request, settings)
        if matched is not None:
            return Answer(True, f"{matched}, {clause.source}", clause)
        near.extend(f"{clause.source} has {miss}" for miss in _misses(rules, request))
    if isinstance(request, KafkaRequest) and _over_all(asked, request):
        return Answer(True, "several rules, one for each topic", asked[0])
    return Answer(False, f"{refusal}, no rule allows {request}", near=tuple(near[:_NEAR_MAX]))


def _matching(
    rules: tuple[object, ...], request: Request, settings: PolicySettings
) -> object | None:
    """The rule that lets a request pass, by itself."""
    if isinstance(request, HTTPRequest):
        return HTTPMatcher(r for r in rules if isinstance(r, HTTPRule)).match(request).rule
    if isinstance(request, DNSQuery):
        names = (r for r in rules if isinstance(r, DNSRule))
        return DNSMatcher(names, subdomains=settings.is_current).match(request.name)
    kafka = (r for r in rules if isinstance(r, KafkaRule))
    return next((rule for rule in kafka if KafkaMatcher([rule]).allows(request)), None)


def _over_all(asked: list[Clause], request: KafkaRequest) -> bool:
    return KafkaMatcher(
        rule
        for clause in asked
        if clause.l7
        for rule in clause.l7.rules
        if isinstance(rule, KafkaRule)
    ).allows(request)


def _misses(rules: tuple[object, ...], request: Request) -> list[str]:
    if isinstance(request, HTTPRequest):
        matcher = HTTPMatcher(r for r in rules if isinstance(r, HTTPRule))
        return [f"{rule}: {wanted} does not match" for rule, wanted in matcher.unmet(request)]
    return [str(rule) for rule in rules]
