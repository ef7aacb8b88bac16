"""Reading the L7 rules of a `toPorts` entry: every fault that Cilium's own validation finds."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

from pyciliumlib.errors import nearest
from pyciliumlib.policy import fields
from pyciliumlib.policy.l7 import DNSRule, GenericRule, HeaderMatch, HTTPRule, KafkaRule
from pyciliumlib.policy.schema import Problems, texts

MISMATCH_ACTIONS: Final = ("LOG", "ADD", "DELETE", "REPLACE")
REGEX_MAX: Final = 4096
NAME_MAX: Final = 255
KAFKA_ROLES: Final = ("produce", "consume")
#: https://kafka.apache.org/protocol#protocol_api_keys, as far as Cilium knows them.
KAFKA_API_KEYS: Final = (
    "produce", "fetch", "offsets", "metadata", "leaderandisr", "stopreplica", "updatemetadata",
    "controlledshutdown", "offsetcommit", "offsetfetch", "findcoordinator", "joingroup",
    "heartbeat", "leavegroup", "syncgroup", "describegroups", "listgroups", "saslhandshake",
    "apiversions", "createtopics", "deletetopics", "deleterecords", "initproducerid",
    "offsetforleaderepoch", "addpartitionstotxn", "addoffsetstotxn", "endtxn",
    "writetxnmarkers", "txnoffsetcommit", "describeacls", "createacls", "deleteacls",
    "describeconfigs", "alterconfigs",
)  # fmt: skip
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


# What RE2 does not know but Python does: look-around, atomic groups, possessive repetition,
# conditions; and back references. https://github.com/google/re2/wiki/Syntax
_NOT_RE2 = re.compile(r"\(\?(=|!|<=|<!|>|\(|P=|#)|[*+?}]\+")
_BACK_REFERENCE = re.compile(r"\\[1-9]")
# Where the characters of such syntax stand for themselves.
_LITERAL = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]")
# What RE2 knows but Python does not, with something that compiles in its place.
_RE2_ONLY = (
    (re.compile(r"\\[pP](\{\^?\w+\}|\w)"), r"\\w"),
    (re.compile(r"\[\^?:\w+:\]"), r"\\w"),
    (re.compile(r"\\z"), r"\\Z"),
    (re.compile(r"\\C"), "."),
    (re.compile(r"\\x\{[0-9A-Fa-f]+\}"), "x"),
    (re.compile(r"\(\?<(?=\w)"), "(?P<"),
)
_REPEAT_MAX = 1000
_REPEAT = re.compile(r"\{(\d+)(?:,(\d*))?\}")


def _check_regex(text: str, path: str, problems: Problems) -> None:
    if len(text) > REGEX_MAX:
        problems.add(path, f"a regular expression of {len(text)} characters; at most {REGEX_MAX}")
        return
    bare = re.sub(r"\\\\", "x", text)  # an escaped backslash escapes nothing
    if found := _BACK_REFERENCE.search(bare) or _NOT_RE2.search(_LITERAL.sub("x", bare)):
        problems.add(path, f"{found.group()!r} is no syntax of RE2, which proxies match with")
        return
    if any(int(n) > _REPEAT_MAX for m in _REPEAT.finditer(bare) for n in m.groups() if n):
        problems.add(path, f"RE2 repeats at most {_REPEAT_MAX} times")
        return
    for pattern, stand_in in _RE2_ONLY:
        bare = pattern.sub(stand_in, bare)
    try:
        re.compile(bare)
    except (re.error, OverflowError, RecursionError) as error:
        problems.add(path, f"{text!r} is no regular expression: {error}")


def read_fqdns(values: list[Any], path: str, problems: Problems) -> Iterator[DNSRule]:
    """The selectors of `toFQDNs`, or the rules of `dns`, as they are written."""
    for item, where in fields.FQDN.read_list(values, path, problems):
        name, pattern = item.get("matchName", ""), item.get("matchPattern", "")
        if name and pattern:
            problems.add(where, "matchName and matchPattern exclude each other; use two entries")
        elif not name and not pattern:
            problems.add(where, "matchName or matchPattern is missing; '*' matches every name")
        else:
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
        _check_known(role, KAFKA_ROLES, f"{where}.role", problems)
        _check_known(key, KAFKA_API_KEYS, f"{where}.apiKey", problems)
        version, topic = item.get("apiVersion", ""), item.get("topic", "")
        if version and not (version.isascii() and version.isdigit() and int(version) < 1 << 15):
            problems.add(f"{where}.apiVersion", f"{version!r}: write a number from 0 to 32767")
        if topic and (len(topic) > NAME_MAX or not _TOPIC.fullmatch(topic)):
            problems.add(
                f"{where}.topic",
                f"{topic!r}: at most {NAME_MAX} letters, digits, '.', '_' or '-'",
            )
        yield KafkaRule(role, key, version, item.get("clientID", ""), topic)


def _check_known(text: str, known: tuple[str, ...], path: str, problems: Problems) -> None:
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
