"""Reading the L7 rules of a `toPorts` entry: every fault that Cilium's own validation finds."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any, Final

from pyciliumlib.errors import nearest
from pyciliumlib.policy import fields
from pyciliumlib.policy.l7.kafka import API_KEYS, ROLES
from pyciliumlib.policy.l7.regex import whole
from pyciliumlib.policy.l7.rules import DNSRule, GenericRule, HeaderMatch, HTTPRule, KafkaRule
from pyciliumlib.policy.schema import Problems, texts

MISMATCH_ACTIONS: Final = ("LOG", "ADD", "DELETE", "REPLACE")
NAME_MAX: Final = 255
_VERSION = re.compile(r"[0-9]{1,9}")
_TOPIC = re.compile(r"[A-Za-z0-9._-]+")
_FQDN_NAME = re.compile(r"[-a-zA-Z0-9_.]+")
_FQDN_PATTERN = re.compile(r"[-a-zA-Z0-9_.*]+")


def read_http(values: list[Any], path: str, problems: Problems) -> Iterator[HTTPRule]:
    """The rules of `http`."""
    for item, where in fields.HTTP.read_list(values, path, problems):
        for name in ("method", "path", "host"):
            _check_regex(item.get(name, ""), f"{where}.{name}", problems)
        headers = texts(item.get("headers", []), f"{where}.headers", problems)
        matches = _read_header_matches(
            item.get("headerMatches", []), f"{where}.headerMatches", problems
        )
        yield HTTPRule(
            item.get("method", ""),
            item.get("path", ""),
            item.get("host", ""),
            tuple(header for header, _ in headers),
            tuple(matches),
        )


def _read_header_matches(values: list[Any], path: str, problems: Problems) -> Iterator[HeaderMatch]:
    for item, where in fields.HEADER_MATCH.read_list(values, path, problems):
        if not item.get("name"):
            problems.add(where, "name is missing; it says which header is compared")
        mismatch = item.get("mismatch", "")
        if mismatch and mismatch not in MISMATCH_ACTIONS:
            problems.add(
                f"{where}.mismatch",
                f"unknown action {mismatch!r}{nearest(mismatch, MISMATCH_ACTIONS)}; "
                f"known are {', '.join(MISMATCH_ACTIONS)}",
            )
        secret = (
            read_secret(item["secret"], f"{where}.secret", problems) if ("secret" in item) else ""
        )
        yield HeaderMatch(item.get("name", ""), item.get("value", ""), secret, mismatch)


def read_secret(value: object, path: str, problems: Problems) -> str:
    """`namespace/name` of a secret."""
    item = fields.SECRET.read(value, path, problems)
    return f"{item.get('namespace', '')}/{item.get('name', '')}"


def _check_regex(text: str, path: str, problems: Problems) -> None:
    with problems.catching(path):
        whole(text)


def read_fqdns(values: list[Any], path: str, problems: Problems) -> Iterator[DNSRule]:
    """The selectors of `toFQDNs`, or the rules of `dns`, as they are written.

    One without a name means no name: it is kept, since no rules at all would allow every request.
    """
    for item, where in fields.FQDN.read_list(values, path, problems):
        name, pattern = item.get("matchName", ""), item.get("matchPattern", "")
        if name and pattern:
            problems.add(where, "matchName and matchPattern exclude each other; use two entries")
        else:
            if not name and not pattern:
                problems.warn(where, "no name is meant; matchPattern '*' would mean every name")
            _check_fqdn(name, f"{where}.matchName", _FQDN_NAME, "'.', '-' and '_'", problems)
            _check_fqdn(
                pattern, f"{where}.matchPattern", _FQDN_PATTERN, "'.', '-', '_' and '*'", problems
            )
            yield DNSRule(name, pattern)


def _check_fqdn(
    text: str, path: str, allowed: re.Pattern[str], marks: str, problems: Problems
) -> None:
    if text and not allowed.fullmatch(text):
        problems.add(path, f"{text!r} may hold letters, digits, {marks} only")
    if len(text) > NAME_MAX:
        problems.add(path, f"a name of {len(text)} characters; at most {NAME_MAX}")


def read_kafka(values: list[Any], path: str, problems: Problems) -> Iterator[KafkaRule]:
    """The rules of `kafka`."""
    for item, where in fields.KAFKA.read_list(values, path, problems):
        role, key = item.get("role", "").lower(), item.get("apiKey", "").lower()
        if role and key:
            problems.add(where, "role and apiKey exclude each other; a role stands for its keys")
        _check_known(role, ROLES, f"{where}.role", problems)
        _check_known(key, API_KEYS, f"{where}.apiKey", problems)
        version, topic = item.get("apiVersion", ""), item.get("topic", "")
        if version and not (_VERSION.fullmatch(version) and int(version) < 1 << 15):
            problems.add(f"{where}.apiVersion", f"{version!r}: write a number from 0 to 32767")
        if topic and (len(topic) > NAME_MAX or not _TOPIC.fullmatch(topic)):
            problems.add(
                f"{where}.topic",
                f"{topic!r}: at most {NAME_MAX} letters, digits, '.', '_' or '-'",
            )
        yield KafkaRule(role, key, version, item.get("clientID", ""), topic)


def _check_known(text: str, known: Iterable[str], path: str, problems: Problems) -> None:
    if text and text not in known:
        problems.add(path, f"unknown {text!r}{nearest(text, known)}")


def read_generic(values: list[Any], path: str, problems: Problems) -> Iterator[GenericRule]:
    """The rules of `l7`: each an object of texts."""
    for index, value in enumerate(values):
        where = f"{path}[{index}]"
        if not isinstance(value, dict) or not all(
            isinstance(k, str) and isinstance(v, str) for k, v in value.items()
        ):
            problems.add(where, "expected an object of texts")
            continue
        if "" in value:
            problems.add(where, "a key is empty")
        yield GenericRule(tuple(sorted(value.items())))
