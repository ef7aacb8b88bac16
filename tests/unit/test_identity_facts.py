"""What the real Cilium answered: labels, filters, identities, prefixes, keys and values.

The folder is `PYCILIUM_CASES`, by default `../shared/cases` beside the project; it is read by its
layout, so that another folder of the same layout runs as well.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from pyciliumlib.errors import LabelError
from pyciliumlib.identity import (
    ClusterRange,
    IPIdentityPair,
    Label,
    LabelFilter,
    Labels,
    ReservedIdentity,
    Scope,
    cidr_labels,
    reserved_id_for_labels,
    well_known_identities,
)
from pyciliumlib.identity.ip_pair import IP_BASE_PATH
from pyciliumlib.identity.numeric import ALLOCATED_MIN, USER_RESERVED_MIN
from pyciliumlib.identity.shared import BASE_PATH, SharedNumbers, check_storable
from pyciliumlib.store import MemoryStore

_PROJECT = Path(__file__).resolve().parents[2]
_CASES = Path(os.environ.get("PYCILIUM_CASES", _PROJECT.parent / "shared" / "cases"))
_FILE = _CASES / "facts.json"


def _facts() -> dict[str, Any]:
    if not _FILE.is_file():
        return {}
    facts: dict[str, Any] = json.loads(_FILE.read_text(encoding="utf-8"))
    return facts


FACTS = _facts()
_PARSED = re.compile(
    r'source="(?P<source>.*)" key="(?P<key>.*)" value="(?P<value>.*)" '
    r'\| as selector: source="(?P<selector>.*)"'
)


def _section(name: str) -> Any:
    return FACTS.get(name, {})


def test_the_cases_are_there() -> None:
    """Without the file nothing here would compare anything."""
    assert FACTS, f"{_FILE} is missing; set PYCILIUM_CASES to the folder of the cases"


@pytest.mark.parametrize(("text", "answer"), _section("parse_label").items())
def test_label_parsing(text: str, answer: str) -> None:
    """Source, key and value of a label, and the source it has in a selector."""
    expected = _PARSED.fullmatch(answer)
    assert expected is not None, answer
    if not expected["key"]:  # Cilium parses it and then calls it invalid
        with pytest.raises(LabelError):
            Label.parse(text)
        return
    label = Label.parse(text)
    assert (expected["source"], expected["key"], expected["value"]) == (
        label.source,
        label.key,
        label.value,
    )
    assert expected["selector"] == Label.parse_selector(text).source


def test_default_label_filter() -> None:
    """Which labels make an identity by default."""
    section = _section("label_filter_default")
    labels = Labels.parse([*section["identity_relevant"], *section["info_only"]])
    identity, info = LabelFilter().split(labels)
    assert sorted(section["identity_relevant"]) == sorted(identity.to_json())
    assert sorted(section["info_only"]) == sorted(info.to_json())


@pytest.mark.parametrize("fact", _section("reserved") or [], ids=lambda fact: fact["name"])
def test_reserved_identities(fact: dict[str, Any]) -> None:
    """Number, name and labels of each reserved identity, and the number for its labels."""
    identity = ReservedIdentity(fact["id"])
    assert fact["name"] == identity.label.key
    assert sorted(fact["labels"]) == sorted(identity.labels.to_json())
    assert fact["id"] == reserved_id_for_labels(identity.labels)


def test_no_reserved_identity_is_missing() -> None:
    """Every reserved number but 0 is among the facts, and none of ours is invented."""
    assert {fact["id"] for fact in FACTS["reserved"]} == set(map(int, ReservedIdentity)) - {0}


def test_well_known_identities() -> None:
    """The table of system pods."""
    expected = {Labels.parse(fact["labels"]): fact["id"] for fact in FACTS["well_known"]}
    assert expected == well_known_identities("default")


def test_constants() -> None:
    """Ranges, scopes and bits."""
    consts = dict(FACTS["consts"])
    assert consts.pop("ClusterIDBits") == 24 - ClusterRange().shift
    assert consts.pop("ClusterIDMax") == ClusterRange().max_clusters
    assert consts.pop("ClusterIDShift") == ClusterRange().shift
    assert consts.pop("IdentityScopeLocal") == Scope.LOCAL
    assert consts.pop("IdentityScopeRemoteNode") == Scope.REMOTE_NODE
    assert consts.pop("MinLocalIdentity") == Scope.LOCAL.numbers[0]
    assert consts.pop("MaxLocalIdentity") == Scope.LOCAL.numbers[-1]
    assert consts.pop("MinimalNumericIdentity") == ALLOCATED_MIN
    assert consts.pop("UserReservedNumericIdentity") == USER_RESERVED_MIN
    for name, value in consts.items():
        if match := re.fullmatch(r"alloc_range_cluster(\d+)", name):
            numbers = ClusterRange(int(match[1])).numbers
            assert value == [numbers[0], numbers[-1]]
        elif match := re.fullmatch(r"clusterid_of_(0x[0-9a-f]+)", name):
            assert value == ClusterRange().cluster_of(int(match[1], 16))
        else:
            pytest.fail(f"a constant that nothing here compares: {name}")


@pytest.mark.parametrize(("case", "labels"), _section("cidr_labels").items())
def test_cidr_labels(case: str, labels: list[str]) -> None:
    """The labels of a prefix on a node of one family (IPv4) and of both."""
    dual, _, prefix = case.partition(" ")
    assert sorted(labels) == sorted(cidr_labels(prefix, ipv6=dual == "dual=true").to_json())


def test_sorted_text() -> None:
    """The stored form of a set of labels, whose values may hold a semicolon."""
    for name in ("sorted_list", "global_identity_key"):
        labels = Labels.from_sorted_text(FACTS[name])
        assert FACTS[name] == labels.sorted_text
        check_storable(labels)


def _identity_keys() -> dict[str, str]:
    return {key: text for key, text in _section("kv").items() if key.startswith(BASE_PATH)}


def test_identity_keys_are_written_as_cilium_writes_them() -> None:
    """Master and slave key of an allocated identity, byte for byte."""
    expected = _identity_keys()
    masters = {key: text for key, text in expected.items() if key.startswith(f"{BASE_PATH}/id/")}
    assert masters
    for master, text in masters.items():
        number = int(master.rpartition("/")[2])
        slaves = [key for key in expected if key.startswith(f"{BASE_PATH}/value/{text}/")]
        node = slaves[0].rpartition("/")[2]
        with MemoryStore() as store:
            shared = SharedNumbers(store, node, range(number, number + 1))
            shared.allocate(Labels.from_sorted_text(text))
            written = {e.key: e.value for e in store.entries(BASE_PATH) if "/locks/" not in e.key}
        assert {master: text, **{key: expected[key] for key in slaves}} == written


@pytest.mark.parametrize(
    ("key", "value"),
    [(key, text) for key, text in _section("kv").items() if key.startswith(IP_BASE_PATH)],
)
def test_address_keys_are_read_and_written_as_cilium_does(key: str, value: str) -> None:
    """The identity of an address in the store, byte for byte."""
    pair = IPIdentityPair.decode(key, value)
    assert value == pair.encode()
    assert key == pair.key()


def test_base_paths() -> None:
    """Where identities and addresses are in the store."""
    assert FACTS["prefixes"]["identities"] == BASE_PATH
    assert FACTS["prefixes"]["ip"] == IP_BASE_PATH


def test_no_key_is_left_out() -> None:
    """Each stored key among the facts is compared by one of the tests above."""
    known = (BASE_PATH, IP_BASE_PATH)
    assert [key for key in FACTS["kv"] if not key.startswith(known)] == []
