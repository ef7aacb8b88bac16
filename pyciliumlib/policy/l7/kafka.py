"""What Kafka rules say to a request, as Cilium (1.17 and older) weighs them.

https://kafka.apache.org/protocol
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from attrs import field, frozen

from pyciliumlib.errors import InvalidError
from pyciliumlib.policy.l7.request import check, check_text
from pyciliumlib.policy.l7.rules import KafkaRule

#: https://kafka.apache.org/protocol#protocol_api_keys, as far as Cilium knows them, by number.
API_KEYS: Final = (
    "produce", "fetch", "offsets", "metadata", "leaderandisr", "stopreplica", "updatemetadata",
    "controlledshutdown", "offsetcommit", "offsetfetch", "findcoordinator", "joingroup",
    "heartbeat", "leavegroup", "syncgroup", "describegroups", "listgroups", "saslhandshake",
    "apiversions", "createtopics", "deletetopics", "deleterecords", "initproducerid",
    "offsetforleaderepoch", "addpartitionstotxn", "addoffsetstotxn", "endtxn",
    "writetxnmarkers", "txnoffsetcommit", "describeacls", "createacls", "deleteacls",
    "describeconfigs", "alterconfigs",
)  # fmt: skip
#: The requests that a client of a role has to send.
ROLES: Final = {
    "produce": frozenset({0, 3, 18}),
    "consume": frozenset({1, 2, 3, 8, 9, 10, 11, 12, 13, 14, 18}),
}
#: The requests that name topics.
_OF_TOPICS: Final = frozenset({0, 1, 2, 3, 4, 5, 6, 8, 9, 19, 20, 21, 23, 24, 27, 28, 34, 35, 37})
#: Numbers of the protocol are of 16 bits, with a sign that neither key nor version uses.
_NUMBER_MAX: Final = (1 << 15) - 1


def _check_number(request: object, attribute: Any, value: Any) -> None:
    del request
    if type(value) is not int or not 0 <= value <= _NUMBER_MAX:
        short = isinstance(value, str) or (isinstance(value, int) and value.bit_length() <= 64)
        shown = f"{value!r:.40}" if short else type(value).__name__
        raise InvalidError(
            f"{attribute.name} of a request: {shown} found; write a number, 0 to {_NUMBER_MAX}"
        )


def _check_key(request: object, attribute: Any, value: Any) -> None:
    if isinstance(value, str) and value.lower() in API_KEYS:
        number = API_KEYS.index(value.lower())
        raise InvalidError(f"{attribute.name} of a request: {value!r} has the number {number}")
    _check_number(request, attribute, value)


def _topics(topics: Iterable[str]) -> tuple[str, ...]:
    if isinstance(topics, str) or not isinstance(topics, Iterable):
        raise InvalidError(
            f"topics of a request: {type(topics).__name__} found; write a list of texts"
        )
    found = tuple(topics)
    for topic in found:
        check(topic, "a topic")
    return found


@frozen
class KafkaRequest:
    """The parts of a request that rules are about; `api_key` is a place in `API_KEYS`.

    Raises InvalidError for a key or version that is no number of 16 bits, and for what is no text.
    """

    api_key: int = field(validator=_check_key)
    api_version: int = field(default=0, validator=_check_number)
    client_id: str = field(default="", validator=check_text)
    topics: tuple[str, ...] = field(default=(), converter=_topics)

    def __str__(self) -> str:
        name = API_KEYS[self.api_key] if self.api_key < len(API_KEYS) else f"key {self.api_key}"
        return " ".join([name, *self.topics])


def api_keys(rule: KafkaRule) -> frozenset[int] | None:
    """The requests that a rule is about, None for all.

    >>> sorted(api_keys(KafkaRule(role="produce")))
    [0, 3, 18]
    """
    if rule.role:
        return ROLES[rule.role]
    return frozenset({API_KEYS.index(rule.api_key)}) if rule.api_key else None


class KafkaMatcher:
    """The rules of one list."""

    def __init__(self, rules: Iterable[KafkaRule]) -> None:
        self._rules = tuple(rules)

    def allows(self, request: KafkaRequest) -> bool:
        """Whether the request may be sent: each of its topics needs a rule that allows it."""
        wanted = set(request.topics)
        for rule in self._rules:
            if not _is_about(rule, request):
                continue
            if not rule.topic or request.api_key not in _OF_TOPICS:
                return True
            wanted.discard(rule.topic)
            if request.topics and not wanted:
                return True
        return False


def _is_about(rule: KafkaRule, request: KafkaRequest) -> bool:
    keys = api_keys(rule)
    return (
        (keys is None or request.api_key in keys)
        and (not rule.api_version or int(rule.api_version) == request.api_version)
        and (not rule.client_id or rule.client_id == request.client_id)
    )
