"""Documents that nobody would write: the parser refuses them with a typed error, or reads them."""

from __future__ import annotations

from typing import Any

import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from pyciliumlib.errors import PolicyError
from pyciliumlib.policy import Documents, PolicySettings, Repository, fields, parse
from pyciliumlib.policy.schema import Schema
from tests.property import strategies

_NAMES = sorted(
    {name for item in vars(fields).values() if isinstance(item, Schema) for name in item.fields}
    | {"matchLabels", "matchExpressions", "key", "operator", "values", "podSelector", "from",
       "to", "ipBlock", "namespaceSelector", "policyTypes"}
)  # fmt: skip
_TEXTS = ("", "a", "k8s:app", "reserved:host", "80", "http", "TCP", "ANY", "10.0.0.0/8", "::/0",
          "all", "world", "In", "Exists", "(", "*", "IPv4", "CiliumNetworkPolicy",
          "NetworkPolicy", "Namespace", "cilium.io/v2", "v1")  # fmt: skip

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-1, 1 << 40),
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


def _apply(documents: Any) -> None:
    """Parse and apply; a refusal leaves the repository as it was."""
    repository = Repository(PolicySettings(node_selectors=True, host_firewall=True))
    repository.add_endpoint(1, strategies.pod("default", "a", "fe"))
    try:
        repository.apply(documents)
    except PolicyError as error:
        assert error.problems
        assert (repository.revision, repository.documents) == (0, {})
    else:
        repository.policy(1).entries()


@st.composite
def damaged(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Good documents, with anything at all in the place of some of their parts."""
    documents: list[Any] = draw(strategies.document_sets(2))
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


@settings(max_examples=120, deadline=None)
@given(damaged())
def test_damaged_documents(documents: list[Any]) -> None:
    """Nothing but a PolicyError comes out, and nothing is half applied."""
    _apply(documents)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(["CiliumNetworkPolicy", "NetworkPolicy", "Namespace"]), values)
def test_any_spec(kind: str, spec: Any) -> None:
    """Any object at all as the spec of a document."""
    version = {"NetworkPolicy": "networking.k8s.io/v1", "Namespace": "v1"}.get(kind, "cilium.io/v2")
    _apply([{"apiVersion": version, "kind": kind, "metadata": {"name": "x"}, "spec": spec}])


@settings(max_examples=100, deadline=None)
@given(st.one_of(st.text(max_size=60).map(lambda text: text + "\n"), values.map(yaml.safe_dump)))
def test_any_text(text: str) -> None:
    """Any YAML, and any text that is none."""
    try:
        found = parse(text + "\n")
    except PolicyError as error:
        assert error.problems
    else:
        assert isinstance(found, Documents)
