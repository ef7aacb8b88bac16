"""What HTTP rules say to a request, as Cilium's filter in Envoy weighs them.

https://docs.cilium.io/en/stable/security/policy/language/#http
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final

from attrs import define, field, frozen

from pyciliumlib.errors import InvalidError
from pyciliumlib.policy.l7.regex import whole
from pyciliumlib.policy.l7.request import check, check_text
from pyciliumlib.policy.l7.rules import HeaderMatch, HTTPRule

#: Header names of a request's first line, as HTTP/2 has them.
_METHOD, _PATH, _AUTHORITY = ":method", ":path", ":authority"
#: What a mismatch does to the header; each but "DELETE" tells which value was missing.
_REMOVING: Final = ("DELETE", "REPLACE")
_WRITING: Final = ("ADD", "REPLACE")

_Test = Callable[["_Headers"], bool]
#: What a rule asks for, in words, and the test of it.
_Named = tuple[str, _Test]


def _pairs(headers: Iterable[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    try:
        pairs = tuple((name, value) for name, value in headers)
    except (TypeError, ValueError):
        raise InvalidError(
            f"headers of a request: {type(headers).__name__} found; write pairs of name and "
            'value, as in [("Accept", "text/html")]'
        ) from None
    for pair in pairs:
        for text in pair:
            check(text, "a header")
    return pairs


@frozen
class HTTPRequest:
    """A request: `path` with its query, `host` as the client wrote it, headers in their order.

    Raises InvalidError for what is no text.

    >>> HTTPRequest("GET", "/items?all", headers=[("Accept", "text/html")]).method
    'GET'
    """

    method: str = field(default="GET", validator=check_text)
    path: str = field(default="/", validator=check_text)
    host: str = field(default="", validator=check_text)
    headers: tuple[tuple[str, str], ...] = field(default=(), converter=_pairs)

    def __str__(self) -> str:
        return f"{self.method} {self.host}{self.path}"


@frozen
class HTTPOutcome:
    """Whether a request goes on, by which rule, and with which headers.

    `missing` and `rejected` are what the access log tells of header matches: name and value, the
    one that a rule wanted, and the one that was there in its place.
    """

    allowed: bool
    rule: HTTPRule | None = None
    headers: tuple[tuple[str, str], ...] = ()
    missing: tuple[tuple[str, str], ...] = ()
    rejected: tuple[tuple[str, str], ...] = ()


@define
class _Headers:
    """The headers of one request, by lower-case names, while rules look at and change them."""

    pairs: list[tuple[str, str]]
    missing: list[tuple[str, str]] = field(factory=list)
    rejected: list[tuple[str, str]] = field(factory=list)

    def get(self, name: str) -> str | None:
        """All values of the name, joined; None if there is none."""
        found = [value for other, value in self.pairs if other == name]
        return ",".join(found) if found else None

    def remove(self, name: str) -> None:
        self.pairs = [pair for pair in self.pairs if pair[0] != name]


class HTTPMatcher:
    """The rules of one list, ready to be asked.

    `secrets` are values by "namespace/name"; a rule that compares with another one never matches.
    Raises UnitError for a pattern that RE2 does not know.

    >>> HTTPMatcher([HTTPRule(method="GET", path="/public/.*")]).match(HTTPRequest()).allowed
    False
    """

    def __init__(self, rules: Iterable[HTTPRule], secrets: Mapping[str, str] | None = None) -> None:
        self._rules = [(rule, _tests(rule, secrets or {})) for rule in rules]
        #: Where a rule may change headers, all have to be asked, also after one that matched.
        self._all = any(match.mismatch for rule, _ in self._rules for match in rule.header_matches)

    def match(self, request: HTTPRequest) -> HTTPOutcome:
        """What becomes of `request`; a list without rules lets everything pass."""
        headers = _headers_of(request)
        by: HTTPRule | None = None
        for rule, tests in self._rules:
            if all(test(headers) for _, test in tests):
                by = by or rule
                if not self._all:
                    break
        plain = tuple(pair for pair in headers.pairs if not pair[0].startswith(":"))
        return HTTPOutcome(
            by is not None or not self._rules,
            by,
            plain,
            tuple(headers.missing),
            tuple(headers.rejected),
        )

    def unmet(self, request: HTTPRequest) -> Iterator[tuple[HTTPRule, str]]:
        """Each rule that does not match, with the first thing that it asks for in vain."""
        for rule, tests in self._rules:
            headers = _headers_of(request)
            wanted = next((what for what, test in tests if not test(headers)), None)
            if wanted is not None:
                yield rule, wanted


def _headers_of(request: HTTPRequest) -> _Headers:
    return _Headers(
        [
            (_METHOD, request.method),
            (_PATH, request.path),
            (_AUTHORITY, request.host),
            *((_lower(name), value) for name, value in request.headers),
        ]
    )


def _lower(name: str) -> str:
    lower = name.lower()
    return _AUTHORITY if lower == "host" else lower


def _tests(rule: HTTPRule, secrets: Mapping[str, str]) -> list[_Named]:
    found: list[_Named] = []
    for name, pattern in ((_METHOD, rule.method), (_PATH, rule.path), (_AUTHORITY, rule.host)):
        if pattern:
            found.append((f"{name[1:]} {pattern}", _by_pattern(name, pattern)))
    for header in rule.headers:
        name, space, value = header.partition(" ")
        test = _equals(_lower(name.removesuffix(":")), value) if space else _is_there(_lower(name))
        found.append((f"header {header}", test))
    # what only looks comes before what changes headers
    for match in sorted(rule.header_matches, key=lambda match: bool(match.mismatch)):
        known = _with_secret(match, secrets)
        if known is None:
            found.append((f"the secret {match.secret}", lambda headers: False))
        else:
            test = _act(known) if match.mismatch else _plain(known)
            found.append((f"header {match.name}: {match.value or match.secret}", test))
    return found


def _by_pattern(name: str, pattern: str) -> _Test:
    matches = whole(pattern)
    return lambda headers: matches(headers.get(name) or "")


def _equals(name: str, value: str) -> _Test:
    return lambda headers: headers.get(name) == value


def _is_there(name: str) -> _Test:
    return lambda headers: headers.get(name) is not None


def _with_secret(match: HeaderMatch, secrets: Mapping[str, str]) -> HeaderMatch | None:
    if not match.secret:
        return match
    value = secrets.get(match.secret)
    return None if value is None else HeaderMatch(match.name, value, "", match.mismatch)


def _plain(match: HeaderMatch) -> _Test:
    name = _lower(match.name)
    return _equals(name, match.value) if match.value else _is_there(name)


def _act(match: HeaderMatch) -> _Test:
    """A match that passes in any case, and puts the headers right if they are not."""
    is_right = _plain(match)
    name, wanted = _lower(match.name), match.value

    def test(headers: _Headers) -> bool:
        if is_right(headers):
            return True
        found = headers.get(name)
        if match.mismatch in _REMOVING and found is not None:
            headers.remove(name)
            headers.rejected.append((name, found))
        if match.mismatch in _WRITING:
            headers.pairs.append((name, wanted))
        if match.mismatch != "DELETE":
            headers.missing.append((name, wanted))
        return True

    return test
