"""Which names DNS rules and `toFQDNs` mean.

https://docs.cilium.io/en/stable/security/policy/language/#dns-policy-and-ip-discovery
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from attrs import field, frozen

from pyciliumlib.policy.l7.regex import whole
from pyciliumlib.policy.l7.request import check_text
from pyciliumlib.policy.l7.rules import DNSRule

_CHARACTER: Final = "[-a-zA-Z0-9_]"
_ANY_NAME: Final = f"(?:{_CHARACTER}+[.])+|[.]"
_LABELS: Final = f"{_CHARACTER}+(?:[.]{_CHARACTER}+)*"
_STARS: Final = re.compile(r"(\*+)")
_LEADING_STARS: Final = re.compile(r"\*\*+(?=[.])")


def absolute(name: str) -> str:
    """The name in lower case with its last dot.

    >>> absolute("WWW.Example.com")
    'www.example.com.'
    """
    lower = name.strip().lower()
    return lower if lower.endswith(".") else f"{lower}."


def pattern_of(rule: DNSRule, *, subdomains: bool = True) -> str:
    """The regular expression of the names that a rule means, in their absolute form.

    A star is any part of one label, and alone any name. With `subdomains` two or more at the
    beginning are one label or several (Cilium 1.18); without, they are one star.
    """
    if rule.match_name:
        return absolute(rule.match_name).replace(".", "[.]")
    if not rule.match_pattern:
        return ""  # no absolute name is empty
    text = absolute(rule.match_pattern)
    if not text.strip("*.") and text.startswith("*"):
        return _ANY_NAME
    first = ""
    if subdomains and (leading := _LEADING_STARS.match(text)):
        first, text = _LABELS, text[leading.end() :]
    body = _STARS.sub(f"{_CHARACTER}*", text.replace(".", "[.]"))
    return first + body


@frozen
class DNSQuery:
    """A question for the addresses of a name; InvalidError for what is no text."""

    name: str = field(validator=check_text)

    def __str__(self) -> str:
        return f"DNS {self.name}"


class DNSMatcher:
    """The names of one list of rules.

    >>> "www.example.com" in DNSMatcher([DNSRule(match_pattern="*.example.com")])
    True
    """

    def __init__(self, rules: Iterable[DNSRule], *, subdomains: bool = True) -> None:
        self._rules = [(rule, whole(pattern_of(rule, subdomains=subdomains))) for rule in rules]

    def match(self, name: str) -> DNSRule | None:
        """The first rule that means `name`; None if there is none."""
        asked = absolute(name)
        return next((rule for rule, matches in self._rules if matches(asked)), None)

    def __contains__(self, name: str) -> bool:
        return self.match(name) is not None
