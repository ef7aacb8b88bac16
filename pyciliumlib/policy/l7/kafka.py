"""What Kafka rules say to a request, as Cilium (1.17 and older) weighs them.

https://kafka.apache.org/protocol
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from attrs import field, frozen

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


@frozen
class KafkaRequest:
    """The parts of a request that rules are about."""

    api_key: int
    api_version: int = 0
    client_id: str = ""
    topics: tuple[str, ...] = field(default=(), converter=tuple)

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
