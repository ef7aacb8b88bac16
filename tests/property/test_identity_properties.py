"""What holds for all labels, selectors, prefixes and ports."""

from __future__ import annotations

import ipaddress
import itertools

from hypothesis import assume, given
from hypothesis import strategies as st

from pyciliumlib.errors import LabelError
from pyciliumlib.identity import (
    Label,
    LabelFilter,
    Labels,
    Operator,
    Requirement,
    Selector,
    cidr_label,
    cidr_labels,
    cidr_selector,
)
from pyciliumlib.identity.labels import SOURCES, covers
from pyciliumlib.identity.shared import check_storable
from pyciliumlib.types import (
    PortProto,
    address_from_bytes,
    address_to_bytes,
    network_from_key,
    network_to_key,
    parse_network,
)

KEYS = st.sampled_from(["app", "env", "ns", "io.kubernetes.pod.namespace"])
VALUES = st.sampled_from(["", "a", "b", "c=d", "e;1"])
SOURCE_NAMES = st.sampled_from(["k8s", "any", "reserved", "cni"])
PLAIN = st.builds(Label, SOURCE_NAMES, KEYS, VALUES)
# Prefixes that lie inside each other often, of both families.
NETWORKS = st.one_of(
    st.builds(
        lambda a, n: ipaddress.ip_network((a, n), strict=False),
        st.integers(0, 3).map(lambda a: 0x0A000000 | a << 22 | a),
        st.integers(0, 32),
    ),
    st.builds(
        lambda a, n: ipaddress.ip_network((a, n), strict=False),
        st.integers(0, 3).map(lambda a: 0xFD << 120 | a << 63 | a),
        st.integers(0, 128),
    ),
)
LABELS = st.builds(
    lambda plain, prefixes: Labels([*plain, *map(cidr_label, prefixes)]),
    st.lists(PLAIN, max_size=4),
    st.lists(NETWORKS, max_size=2),
)


def _requirement(source: str, key: str, operator: Operator, values: list[str]) -> Requirement:
    return Requirement(source, key, operator, values if operator.takes_values else ())


REQUIREMENTS = st.builds(
    _requirement,
    SOURCE_NAMES,
    KEYS,
    st.sampled_from(Operator),
    st.lists(VALUES, min_size=1, max_size=3),
) | st.builds(
    lambda network, operator: Requirement("cidr", cidr_label(network).key, operator),
    NETWORKS,
    st.sampled_from([Operator.EXISTS, Operator.DOES_NOT_EXIST]),
)


@given(
    st.sampled_from(sorted(SOURCES - {"cidr"})),
    st.text(min_size=1).filter(lambda key: "=" not in key),
    st.text(),
)
def test_labels_read_as_they_are_written(source: str, key: str, value: str) -> None:
    """Keys may hold `:`, values anything."""
    label = Label(source, key, value)
    assert label == Label.parse(str(label)) == Label.from_json(label.to_json())


@given(LABELS)
def test_sets_read_as_they_are_stored(labels: Labels) -> None:
    """In the sorted form and in JSON."""
    assert labels == Labels.from_sorted_text(labels.sorted_text)
    assert labels == Labels.from_json(labels.to_json())


@given(st.lists(st.builds(Label, SOURCE_NAMES, st.text(min_size=1), st.text()), max_size=3))
def test_no_two_sets_share_a_stored_text(labels: list[Label]) -> None:
    """A set is either told apart in the store or refused."""
    made = Labels(labels)
    try:
        check_storable(made)
    except LabelError:
        return
    assert made == Labels.from_sorted_text(made.sorted_text)


@given(LABELS, LABELS)
def test_merging(one: Labels, other: Labels) -> None:
    """The later set wins, and nothing else is lost."""
    both = one.merge(other)
    assert {label.key for label in both} == {label.key for label in (*one, *other)}
    assert all(label in both for label in other)
    assert both == both.merge(both)


def _holds(requirement: Requirement, labels: Labels) -> bool:
    """The rules of Kubernetes and of prefixes, written out over the bare labels."""
    found = None
    for label in labels:
        if requirement.source == "cidr":
            if label.source == "cidr":
                outer = ipaddress.ip_network(requirement.key.replace("-", ":"))
                inner = ipaddress.ip_network(label.key.replace("-", ":"))
                if outer.version == inner.version and inner.subnet_of(outer):  # type: ignore[arg-type]
                    found = label
        elif label.key == requirement.key and requirement.source in ("any", label.source):
            found = label
    match requirement.operator:
        case Operator.IN:
            return found is not None and found.value in requirement.values
        case Operator.NOT_IN:
            return found is None or found.value not in requirement.values
        case Operator.EXISTS:
            return found is not None
        case Operator.DOES_NOT_EXIST:
            return found is None


@given(st.lists(REQUIREMENTS, max_size=3), LABELS)
def test_selectors_match_as_written_out(requirements: list[Requirement], labels: Labels) -> None:
    """`matches` and a naive reading of the rules agree."""
    selector = Selector(requirements)
    assert selector.matches(labels) == all(_holds(r, labels) for r in requirements)


@given(st.lists(REQUIREMENTS, max_size=4))
def test_selectors_have_one_form(requirements: list[Requirement]) -> None:
    """Neither order nor repetition counts; equal text means equal selector."""
    selector = Selector(requirements)
    again = Selector([*reversed(requirements), *requirements])
    assert selector == again
    assert str(selector) == str(again)
    assert selector == Selector().with_requirement(*selector.requirements)


@given(NETWORKS, NETWORKS)
def test_prefixes_cover_as_ipaddress_says(one: object, other: object) -> None:
    """And labels of prefixes match just then."""
    outer, inner = parse_network(one), parse_network(other)  # type: ignore[arg-type]
    expected = outer.version == inner.version and inner.subnet_of(outer)  # type: ignore[arg-type]
    assert covers(outer, inner) == expected
    assert cidr_label(inner).matches(cidr_label(outer)) == expected


@given(NETWORKS, st.lists(NETWORKS, max_size=2), NETWORKS)
def test_exceptions_cut_holes(prefix: object, holes: list[object], peer: object) -> None:
    """A peer is selected if it lies inside and in none of the holes."""
    outer, inner = parse_network(prefix), parse_network(peer)  # type: ignore[arg-type]
    assume(inner.prefixlen > 0)
    inside = [parse_network(hole) for hole in holes]  # type: ignore[arg-type]
    inside = [hole for hole in inside if covers(outer, hole)]
    expected = covers(outer, inner) and not any(covers(hole, inner) for hole in inside)
    assert cidr_selector(outer, inside).matches(cidr_labels(inner)) == expected


@given(NETWORKS)
def test_prefix_keys_go_both_ways(network: object) -> None:
    """Also of prefixes so short that they would hold IPv4."""
    prefix = parse_network(network)  # type: ignore[arg-type]
    assert prefix == network_from_key(*network_to_key(prefix))
    assert prefix == cidr_label(prefix).prefix
    address = prefix.network_address
    assert address == address_from_bytes(address_to_bytes(address))


@given(LABELS)
def test_filters_split(labels: Labels) -> None:
    """Each label is in one part, and filtering the kept part keeps it."""
    label_filter = LabelFilter()
    kept, dropped = label_filter.split(labels)
    assert labels == kept.merge(dropped)
    assert len(labels) == len(kept) + len(dropped)
    assert (kept, Labels()) == label_filter.split(kept)


@given(st.integers(0, 65535), st.integers(0, 65535))
def test_port_blocks_make_up_the_range(one: int, other: int) -> None:
    """Each port of the range is in one block, and no other port; no two blocks could be one."""
    first, last = min(one, other), max(one, other)
    blocks = list(PortProto(first, last).blocks())
    at = first
    for port, bits in blocks:
        size = 1 << (16 - bits)
        assert port == at
        assert port % size == 0
        at += size
    assert at == last + 1
    assert len(blocks) <= 30
    pairs = itertools.pairwise(blocks)
    assert not any(
        left[1] == right[1] and left[0] % (2 << (16 - left[1])) == 0 for left, right in pairs
    )
