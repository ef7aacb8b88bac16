"""L7 rules: as values, and what they say to a request.

The matchers know no connection and no proxy: `explain` asks them what a proxy would do, and a proxy
may use them as they are.
"""

from __future__ import annotations

from pyciliumlib.policy.l7.dns import DNSMatcher, DNSQuery
from pyciliumlib.policy.l7.http import HTTPMatcher, HTTPOutcome, HTTPRequest
from pyciliumlib.policy.l7.kafka import KafkaMatcher, KafkaRequest
from pyciliumlib.policy.l7.rules import (
    L7,
    DNSRule,
    GenericRule,
    HeaderMatch,
    HTTPRule,
    KafkaRule,
    L7Rule,
    Parser,
)

__all__ = [
    "L7",
    "DNSMatcher",
    "DNSQuery",
    "DNSRule",
    "GenericRule",
    "HTTPMatcher",
    "HTTPOutcome",
    "HTTPRequest",
    "HTTPRule",
    "HeaderMatch",
    "KafkaMatcher",
    "KafkaRequest",
    "KafkaRule",
    "L7Rule",
    "Parser",
]
