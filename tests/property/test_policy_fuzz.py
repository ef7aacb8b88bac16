"""Documents that nobody would write: the parser refuses them with a typed error, or reads them."""

from __future__ import annotations

import itertools
import json
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyciliumlib.errors import PolicyError, UnitError
from pyciliumlib.identity.cidr import cidr_labels
from pyciliumlib.policy import (
    Documents,
    HTTPRequest,
    PodBandwidth,
    PolicySettings,
    Repository,
    annotated_bandwidth,
    cluster_policy,
    fields,
    kubernetes,
    parse,
)
from pyciliumlib.policy.entries import PolicyEntries
from pyciliumlib.policy.schema import Form, Schema
from tests.property import objects, strategies

_TEXTS = ("", "a", "k8s:app", "reserved:host", "80", "http", "TCP", "ANY", "10.0.0.0/8", "::/0",
          "all", "world", "In", "Exists", "(", "*", "IPv4", "CiliumNetworkPolicy",
          "NetworkPolicy", "Namespace", "cilium.io/v2", "v1", "Admin", "Deny", "10M", "10mbit",
          "(a+)+$", "(.{1,1000}){1000}", "(?P<n>a)\\1", "[" * 600, "x" * 5000, "9" * 5000,
          "10.0.0.0/" + "9" * 5000, "*." * 200, "\x00", "\ud800", "65536", "-1")  # fmt: skip
_SCHEMAS = [
    item
    for module in (fields, kubernetes, cluster_policy)
    for item in vars(module).values()
    if isinstance(item, Schema)
]
_SELECTOR = ("matchLabels", "matchExpressions", "key", "operator", "values")
_NAMES = sorted({name for schema in _SCHEMAS for name in schema.fields}.union(_SELECTOR))
_KINDS = {
    "CiliumNetworkPolicy": "cilium.io/v2",
    "CiliumClusterwideNetworkPolicy": "cilium.io/v2",
    "NetworkPolicy": "networking.k8s.io/v1",
    "ClusterNetworkPolicy": "policy.networking.k8s.io/v1alpha2",
    "CiliumCIDRGroup": "cilium.io/v2",
    "Service": "v1",
    "Endpoints": "v1",
    "EndpointSlice": "discovery.k8s.io/v1",
    "Namespace": "v1",
}

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-1, 1 << 40),
    st.sampled_from([1 << 64, 10**4000, -(10**4000)]),
    st.floats(allow_nan=True),
    st.sampled_from(_TEXTS),
    st.text(max_size=5),
)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.one_of(st.sampled_from(_NAMES), scalars), inner, max_size=4),
    ),
    max_leaves=20,
)
_OF_FORM: dict[Form, st.SearchStrategy[Any]] = {
    Form.TEXT: st.sampled_from(_TEXTS),
    Form.BOOL: st.booleans(),
    Form.NUMBER: st.sampled_from([0, 1, 80, 65535, 65536, 1 << 40, -1, 10**4000]),
    Form.ANY: values,
}
_ROOTS = {
    "CiliumNetworkPolicy": fields.RULE,
    "CiliumClusterwideNetworkPolicy": fields.RULE,
    "NetworkPolicy": kubernetes._SPEC,
    "ClusterNetworkPolicy": cluster_policy._SPEC,
    "CiliumCIDRGroup": fields.CIDR_GROUP,
}


@st.composite
def of_schema(draw: st.DrawFn, schema: Schema, depth: int = 0) -> dict[str, Any]:
    """An object with the fields of a table, each of its form; what they hold is any table's."""
    names = draw(st.sets(st.sampled_from(sorted(schema.fields)), max_size=4))
    found: dict[str, Any] = {}
    for name in sorted(names.union(schema.required)):
        form = schema.fields[name].form
        inner = st.one_of(_OF_FORM[Form.TEXT], _OF_FORM[Form.NUMBER])
        if depth < 5:
            inner |= st.sampled_from(_SCHEMAS).flatmap(lambda s: of_schema(s, depth + 1))
        if form is Form.LIST:
            found[name] = draw(st.lists(inner, max_size=2))
        elif form is Form.OBJECT:
            found[name] = draw(of_schema(draw(st.sampled_from(_SCHEMAS)), depth + 1))
        else:
            found[name] = draw(_OF_FORM[form])
    return found


def _state(repository: Repository) -> tuple[Any, ...]:
    """Everything that a change of documents may touch."""
    cache = repository._cache
    return (
        repository.revision,
        repository.documents,
        repository.namespaces,
        repository.prefixes(),
        repository.cloud_groups(),
        {str(s): sorted(found.identities) for s, found in cache._selections.items()},
        _bytes(repository.policy(1).entries()),
    )


def _bytes(entries: PolicyEntries) -> tuple[bytes, bytes]:
    return entries.keys.tobytes(), entries.values.tobytes()


_GOOD = {
    "apiVersion": "cilium.io/v2",
    "kind": "CiliumNetworkPolicy",
    "metadata": {"name": "good"},
    "spec": {
        "endpointSelector": {},
        "ingress": [{"fromCIDRSet": [{"cidrGroupRef": "p0"}, {"cidr": "10.0.0.0/8"}]}],
    },
}


def _apply(documents: Any) -> None:
    """Parse and apply over good rules; a refusal leaves all as it was, and so does an undo."""
    repository = Repository(PolicySettings(node_selectors=True, host_firewall=True))
    repository.update_identities(strategies.PARSED)
    repository.add_endpoint(1, strategies.pod("default", "a", "fe"))
    repository.add_endpoint(2, ["reserved:host"])
    repository.apply(_GOOD)
    before = _state(repository)
    try:
        change = repository.apply(documents)
    except PolicyError as error:
        assert error.problems
        assert _state(repository) == before
    else:
        repository.policy(2).entries()
        repository.undo(change)
        assert _state(repository)[1:] == before[1:]


@st.composite
def damaged(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Good documents, with anything at all in the place of some of their parts."""
    documents: list[Any] = draw(objects.all_kinds())
    for _ in range(draw(st.integers(1, 3))):
        node: Any = documents
        while isinstance(node, (dict, list)) and node:
            places = sorted(node, key=str) if isinstance(node, dict) else range(len(node))
            place = draw(st.sampled_from(places))
            deeper = node[place]
            if not isinstance(deeper, (dict, list)) or not deeper or draw(st.integers(0, 5)) == 0:
                node[place] = draw(values)
                break
            node = deeper
    return documents


@settings(max_examples=50, deadline=None)
@given(damaged())
def test_damaged_documents(documents: list[Any]) -> None:
    """Nothing but a PolicyError comes out, and nothing is half applied."""
    _apply(documents)


@settings(max_examples=20, deadline=None)
@given(objects.all_kinds())
def test_whole_documents(documents: list[Any]) -> None:
    """What the damage is done to is right: without it everything is applied."""
    Repository(PolicySettings(node_selectors=True, host_firewall=True)).apply(documents)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(sorted(_KINDS)), values)
def test_any_spec(kind: str, spec: Any) -> None:
    """Any object at all as the spec of a document, or in its place."""
    document = {"apiVersion": _KINDS[kind], "kind": kind, "metadata": {"name": "x"}}
    _apply([{**document, "spec": spec}])
    if isinstance(spec, dict):
        _apply([{**spec, **document}])


@settings(max_examples=100, deadline=None)
@given(st.data(), st.sampled_from(sorted(_ROOTS)))
def test_objects_of_the_tables(data: st.DataObject, kind: str) -> None:
    """Known fields of the right form in the wrong places, by the tables that the parser reads."""
    spec = data.draw(of_schema(_ROOTS[kind]))
    _apply([{"apiVersion": _KINDS[kind], "kind": kind, "metadata": {"name": "x"}, "spec": spec}])


def _yaml(value: Any) -> str:
    """Flow YAML, which is JSON as far as it goes; longer numbers than Python writes are in hex."""
    if isinstance(value, dict):
        pairs = (f"? {_yaml(key)} : {_yaml(item)}" for key, item in value.items())
        return "{" + ", ".join(pairs) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_yaml, value)) + "]"
    return hex(value) if type(value) is int else json.dumps(value)


@st.composite
def aliased(draw: st.DrawFn) -> str:
    """YAML in which any part may be an alias of one before it, or of one that it is inside."""
    anchors = itertools.count()
    begun: list[str] = []

    def node(levels: int) -> str:
        if begun and draw(st.integers(0, 2)) == 0:
            return f"*{draw(st.sampled_from(begun))}"
        if not levels:
            return _yaml(draw(scalars))
        begun.append(anchor := f"a{next(anchors)}")
        parts = [node(levels - 1) for _ in range(draw(st.integers(0, 3)))]
        if draw(st.booleans()):
            return f"&{anchor} [{', '.join(parts)}]"
        names = draw(st.lists(st.sampled_from([*_NAMES, "<<"]), min_size=3, max_size=3))
        pairs = (f"{name}: {part}" for name, part in zip(names, parts, strict=False))
        return f"&{anchor} {{{', '.join(pairs)}}}"

    kind = draw(st.sampled_from(sorted(_KINDS)))
    head = f"apiVersion: {_KINDS[kind]}\nkind: {kind}\nmetadata: {{name: x}}\n"
    return f"{head}spec: {node(6)}\n"


@settings(max_examples=100, deadline=None)
@given(st.one_of(st.text(max_size=60), values.map(_yaml), aliased()))
def test_any_text(text: str) -> None:
    """Any YAML, and any text that is none."""
    try:
        found = parse(text + "\n")
    except PolicyError as error:
        assert error.problems
    else:
        assert isinstance(found, Documents)


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.sampled_from(["egress", "ingress"]), scalars | st.sampled_from(_TEXTS)))
def test_annotations(found: dict[str, Any]) -> None:
    """Whatever the annotations of a pod say, it is a limit or a typed error."""
    annotations = {f"kubernetes.io/{word}-bandwidth": text for word, text in found.items()}
    try:
        limits = annotated_bandwidth(annotations)
    except UnitError as error:
        assert "bandwidth" in str(error)
    else:
        assert isinstance(limits, PodBandwidth)
        assert repr(limits)


def _rule(**sections: Any) -> dict[str, Any]:
    return {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumNetworkPolicy",
        "metadata": {"name": "large"},
        "spec": {"endpointSelector": {}, **sections},
    }


_HOLES = [f"10.{n >> 8}.{n & 255}.0/24" for n in range(3000)]
_RANGES = [{"port": str(n), "endPort": 65536 - n, "protocol": "ANY"} for n in range(1, 41)]
LARGE: dict[str, Any] = {
    "exceptions": [_rule(ingress=[{"fromCIDRSet": [{"cidr": "10.0.0.0/8", "except": _HOLES}]}])],
    "exceptions of a group": [
        {"apiVersion": "cilium.io/v2", "kind": "CiliumCIDRGroup", "metadata": {"name": "g"},
         "spec": {"externalCIDRs": [f"11{hole[2:]}" for hole in _HOLES]}},
        _rule(ingress=[{"fromCIDRSet": [{"cidrGroupRef": "g", "except": _HOLES}]}]),
    ],
    "prefixes": [_rule(ingressDeny=[{"fromCIDR": _HOLES}])],
    "ranges": [_rule(ingress=[{"toPorts": [{"ports": _RANGES}] * 20}])],
    "selectors": [
        _rule(egress=[{"toEndpoints": [{"matchLabels": {f"a{n}": "b"}} for n in range(3000)]}])
    ],
    "values": [
        _rule(egress=[{"toEndpoints": [{"matchExpressions": [
            {"key": "app", "operator": "NotIn", "values": [f"a{n}" for n in range(10000)]}
        ]}]}])
    ],
    "patterns": [
        _rule(ingress=[{"toPorts": [
            {"ports": [{"port": "80", "protocol": "TCP"}], "rules": {"http": [
                {"method": "(G|E|T)*(E*)*T", "path": path}
                for path in ("(a+)+$", "(a|aa)*b", "(.*)*x", "((a*)*)*b")
            ]}}
        ]}])
    ],
}  # fmt: skip


@pytest.mark.parametrize("case", LARGE)
def test_large_documents_take_no_time(case: str) -> None:
    """Thousands of everything in a second or two of computing, and what is asked too."""
    repository = Repository()
    repository.update_identities({(1 << 24) + n: cidr_labels(h) for n, h in enumerate(_HOLES)})
    subject = strategies.pod("default", "a", "fe")
    repository.add_endpoint(1, subject)
    begin = time.process_time()
    repository.apply(LARGE[case])
    repository.policy(1).entries()
    request = HTTPRequest("GET" * 1000, "/" + "a" * 5000)
    repository.explain(cidr_labels("10.1.2.3/32"), subject, "80/TCP", http=request)
    assert time.process_time() - begin < 10


def test_large_texts_take_no_time() -> None:
    """A hundred thousand faults are all told, and a name of megabytes is shown in part."""
    begin = time.process_time()
    for spec, count in (
        ({f"unknown{n}": 1 for n in range(20000)}, 20002),
        ({"endpointSelector": {}, "ingress": [{"fromEntities": ["worl"] * 20000}]}, 20000),
        ({"endpointSelector": {}, "ingress": [{}], "x" * 1000000: 1}, 1),
    ):
        with pytest.raises(PolicyError) as caught:
            parse({**_rule(), "spec": spec})
        assert len(caught.value.problems) == count
    assert time.process_time() - begin < 10
