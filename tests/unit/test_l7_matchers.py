"""What HTTP, DNS and Kafka rules say to a request, beside what the cases of Cilium cover."""

from __future__ import annotations

import time

import pytest

from pyciliumlib.errors import UnitError
from pyciliumlib.policy.l7 import (
    DNSMatcher,
    DNSRule,
    HeaderMatch,
    HTTPMatcher,
    HTTPRequest,
    HTTPRule,
    KafkaMatcher,
    KafkaRequest,
    KafkaRule,
)
from pyciliumlib.policy.l7.regex import REGEX_MAX, whole

WRONG, RIGHT = ("x-a", "2"), ("x-a", "1")
#: What a mismatch of "X-A: 1" does to a request with "X-A: 2": headers, missing, rejected.
MISMATCHES = {
    "LOG": ((WRONG,), (RIGHT,), ()),
    "ADD": ((WRONG, RIGHT), (RIGHT,), ()),
    "DELETE": ((), (), (WRONG,)),
    "REPLACE": ((RIGHT,), (RIGHT,), (WRONG,)),
}


@pytest.mark.parametrize("action", MISMATCHES)
def test_what_a_mismatch_does(action: str) -> None:
    """The rule matches all the same; the log tells what was there and what was wanted."""
    matcher = HTTPMatcher([HTTPRule(header_matches=(HeaderMatch("X-A", "1", "", action),))])
    outcome = matcher.match(HTTPRequest(headers=[("X-A", "2")]))
    assert outcome.allowed
    assert (outcome.headers, outcome.missing, outcome.rejected) == MISMATCHES[action]
    kept = matcher.match(HTTPRequest(headers=[("X-A", "1")]))
    assert (kept.headers, kept.missing, kept.rejected) == ((RIGHT,), (), ())


def test_a_match_without_action_decides() -> None:
    matcher = HTTPMatcher([HTTPRule(header_matches=(HeaderMatch("X-A", "1"),))])
    assert matcher.match(HTTPRequest(headers=[("x-A", "1")])).allowed
    assert not matcher.match(HTTPRequest(headers=[("X-A", "2")])).allowed
    assert not matcher.match(HTTPRequest()).allowed


def test_headers_are_changed_by_every_rule_that_matches() -> None:
    """Once a rule may change headers, all are asked; the first that matched is named."""
    rules = [
        HTTPRule(path="/.*"),
        HTTPRule(method="GET", header_matches=(HeaderMatch("X-B", "b", "", "REPLACE"),)),
        HTTPRule(method="PUT", header_matches=(HeaderMatch("X-C", "c", "", "REPLACE"),)),
    ]
    outcome = HTTPMatcher(rules).match(HTTPRequest())
    assert (outcome.rule, outcome.headers) == (rules[0], (("x-b", "b"),))


def test_secrets_are_compared_and_a_missing_one_matches_nobody() -> None:
    rule = HTTPRule(header_matches=(HeaderMatch("Authorization", secret="shop/key"),))
    request = HTTPRequest(headers=[("authorization", "s3cret")])
    assert HTTPMatcher([rule], {"shop/key": "s3cret"}).match(request).allowed
    assert not HTTPMatcher([rule], {"shop/key": "other"}).match(request).allowed
    assert not HTTPMatcher([rule]).match(request).allowed
    logged = HTTPRule(header_matches=(HeaderMatch("Authorization", "", "shop/key", "LOG"),))
    assert not HTTPMatcher([logged]).match(request).allowed


def test_host_is_the_authority() -> None:
    """HTTP/1 calls it a header, and proxies the authority; a rule may name either."""
    rule = HTTPRule(headers=("Host: shop.test",))
    assert HTTPMatcher([rule]).match(HTTPRequest(host="shop.test")).allowed


def test_no_rules_let_everything_pass() -> None:
    """As a list that was emptied by a wider allow has to."""
    assert HTTPMatcher([]).match(HTTPRequest()).allowed


def test_a_hostile_pattern_takes_no_time() -> None:
    """A backtracking engine needs 2**40 steps for this one."""
    start = time.perf_counter()
    assert not whole("(a*)*b")("a" * 4000)
    assert time.perf_counter() - start < 1


@pytest.mark.parametrize("pattern", ["(", r"(a)\1", "a{5000}", "x" * (REGEX_MAX + 1), "(?=a)"])
def test_what_is_no_pattern(pattern: str) -> None:
    with pytest.raises(UnitError):
        whole(pattern)


NAMES = {
    ("**.a.test", "x.a.test"): (True, True),
    ("**.a.test", "x.y.a.test"): (True, False),
    ("**.a.test", "a.test"): (False, False),
    ("*.a.test", "x.y.a.test"): (False, False),
    ("x**y.test", "xzzy.test"): (True, True),
    ("*", "anything.at.all"): (True, True),
    ("**", "anything.at.all"): (True, True),
}


@pytest.mark.parametrize(("pattern", "name"), NAMES)
def test_subdomains(pattern: str, name: str) -> None:
    """Two stars at the beginning stand for several labels, from Cilium 1.18 on."""
    rule = DNSRule(match_pattern=pattern)
    found = tuple(name in DNSMatcher([rule], subdomains=on) for on in (True, False))
    assert found == NAMES[pattern, name]


def test_topics_may_be_allowed_by_several_rules() -> None:
    """A request is let through once each of its topics has a rule."""
    matcher = KafkaMatcher([KafkaRule("produce", topic="a"), KafkaRule("produce", topic="b")])
    for topics, allowed in ((("a", "b"), True), (("b",), True), (("a", "c"), False), ((), False)):
        assert matcher.allows(KafkaRequest(0, topics=topics)) is allowed
