"""Selectors over labels."""

from __future__ import annotations

from typing import Any

import pytest

from pyciliumlib.errors import LabelError
from pyciliumlib.identity import Labels, Operator, Requirement, Selector

WEB = Labels.parse(["k8s:app=web", "k8s:env=prod", "cidr:10.1.0.0/16", "reserved:world"])


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({}, True),
        ({"matchLabels": None, "matchExpressions": None}, True),
        ({"matchLabels": {"app": "web"}}, True),
        ({"matchLabels": {"k8s:app": "web", "any:env": "prod"}}, True),
        ({"matchLabels": {"app": "api"}}, False),
        ({"matchLabels": {"cni:app": "web"}}, False),
        ({"matchLabels": {"reserved:world": ""}}, True),
        ({"matchLabels": {"cidr:10.0.0.0/8": ""}}, True),
        ({"matchLabels": {"cidr:11.0.0.0/8": ""}}, False),
        ({"matchExpressions": [{"key": "app", "operator": "In", "values": ["a", "web"]}]}, True),
        ({"matchExpressions": [{"key": "app", "operator": "NotIn", "values": ["web"]}]}, False),
        ({"matchExpressions": [{"key": "nope", "operator": "NotIn", "values": ["web"]}]}, True),
        ({"matchExpressions": [{"key": "cni:app", "operator": "NotIn", "values": ["web"]}]}, True),
        ({"matchExpressions": [{"key": "app", "operator": "Exists"}]}, True),
        ({"matchExpressions": [{"key": "app", "operator": "DoesNotExist"}]}, False),
        ({"matchExpressions": [{"key": "cidr:10.0.0.0/8", "operator": "DoesNotExist"}]}, False),
        ({"matchExpressions": [{"key": "nope", "operator": "DoesNotExist", "values": []}]}, True),
    ],
)
def test_matches(data: dict[str, Any], expected: bool) -> None:
    """matchLabels and matchExpressions, all of which must hold."""
    assert expected == Selector.parse(data).matches(WEB)


@pytest.mark.parametrize(
    ("data", "named"),
    [
        ([], "spec"),
        ({"matchLabel": {}}, 'did you mean "matchLabels"'),
        ({"app": "web"}, "labels go under matchLabels"),
        ({"matchLabels": []}, r"spec\.matchLabels"),
        ({"matchLabels": {"app": True}}, r"spec\.matchLabels\[app\].*quote"),
        ({"matchLabels": {5: "x"}}, "quote"),
        ({"matchLabels": {"": "x"}}, "no label key"),
        ({"matchLabels": {"a b": "x"}}, "no label key"),
        ({"matchLabels": {"A.b/c": "x"}}, "no label key"),
        ({"matchLabels": {"x" * 64: "x"}}, "no label key"),
        ({"matchLabels": {"app": "we b"}}, "no label's value"),
        ({"matchLabels": {"app": "x" * 64}}, "no label's value"),
        ({"matchLabels": {"k9s:app": "x"}}, "unknown label source"),
        ({"matchLabels": {"cidr:banana": ""}}, "no address or prefix"),
        ({"matchExpressions": {}}, "expected a list"),
        ({"matchExpressions": ["x"]}, r"spec\.matchExpressions\[0\]"),
        ({"matchExpressions": [{"key": "a"}]}, "operator is missing"),
        ({"matchExpressions": [{"operator": "In"}]}, "key is missing"),
        ({"matchExpressions": [{"key": "a", "operator": "in", "values": ["b"]}]}, "known are In"),
        ({"matchExpressions": [{"key": "a", "operator": "In"}]}, "at least one value"),
        ({"matchExpressions": [{"key": "a", "operator": "In", "values": "b"}]}, "expected a list"),
        ({"matchExpressions": [{"key": "a", "operator": "In", "values": [1]}]}, "quote"),
        ({"matchExpressions": [{"key": "a", "operator": "Exists", "values": ["b"]}]}, "no values"),
        ({"matchExpressions": [{"key": "a", "operator": "Exists", "value": "b"}]}, '"values"'),
    ],
)
def test_parse_refuses(data: Any, named: str) -> None:
    """Each fault is told with the path of its field."""
    with pytest.raises(LabelError, match=named):
        Selector.parse(data, path="spec")


def test_namespace_label_keys() -> None:
    """The label of a namespace is a key behind a prefix, with a domain of its own."""
    key = "k8s:io.cilium.k8s.namespace.labels.kubernetes.io/metadata.name"
    labels = Labels.parse([f"{key}=default"])
    assert Selector.parse({"matchLabels": {key: "default"}}).matches(labels)


def test_canonical_form() -> None:
    """Equal selectors are equal values with one text, however they were written."""
    one = Selector.parse({"matchLabels": {"app": "web", "k8s:b": "c"}})
    other = Selector.parse(
        {
            "matchExpressions": [
                {"key": "k8s:b", "operator": "In", "values": ["c", "c"]},
                {"key": "any:app", "operator": "In", "values": ["web"]},
            ]
        }
    )
    assert one == other
    assert hash(one) == hash(other)
    assert str(one) == "any:app=web,k8s:b=c"
    assert str(Selector()) == "{}"
    assert one == Selector.parse(one.to_json())


def test_building() -> None:
    """`of`, `with_requirement` and `without_key` make new selectors."""
    base = Selector.of("app=web")
    more = base.with_requirement(Requirement("k8s", "ns", Operator.EXISTS))
    assert str(more) == "any:app=web,exists(k8s:ns)"
    assert more.names_key("ns")
    assert more.names_key("ns", "k8s", "any")
    assert not more.names_key("ns", "any")
    assert base == more.without_key("ns")
    assert str(base) == "any:app=web"


def test_requirements_are_checked() -> None:
    """A requirement that is built by hand obeys the same rules."""
    for arguments in (
        ("k8s", "", "Exists"),
        ("k8s", "a", "In"),
        ("k8s", "a", "Exists", ("b",)),
        ("cidr", "10.0.0.0/8", "In", ("b",)),
    ):
        with pytest.raises(LabelError):
            Requirement(*arguments)
