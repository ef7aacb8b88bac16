"""Labels and sets of them."""

from __future__ import annotations

import pytest

from pyciliumlib.errors import LabelError
from pyciliumlib.identity import Label, Labels


@pytest.mark.parametrize(
    ("text", "source", "key", "value"),
    [
        ("k8s:a=b=c", "k8s", "a", "b=c"),
        ("k8s:io:x=1", "k8s", "io:x", "1"),
        ("foo", "unspec", "foo", ""),
        (":foo", "unspec", "foo", ""),
        ("$world", "reserved", "world", ""),
        ("reserved:=host", "reserved", "host", ""),
        ("cidr:fd00--0/64", "cidr", "fd00--0/64", ""),
        ("k8s:empty=", "k8s", "empty", ""),
    ],
)
def test_parse(text: str, source: str, key: str, value: str) -> None:
    """Each form that Cilium reads."""
    assert Label(source, key, value) == Label.parse(text)


@pytest.mark.parametrize(
    "text", ["", "k8s:", "k8s:=x", ":", "$", "cidr:banana", "cidr:10.0.0.0/33", "cidr:10.0.0.0/8=x"]
)
def test_parse_refuses(text: str) -> None:
    """An empty key, and a cidr label that is no prefix or has a value."""
    with pytest.raises(LabelError):
        Label.parse(text)


@pytest.mark.parametrize(
    ("label", "target", "expected"),
    [
        ("k8s:foo=bar", "any:foo=bar", True),
        ("k8s:foo=bar", "foo=bar", True),
        ("any:foo=bar", "k8s:foo=bar", False),
        ("k8s:foo=bar", "k8s:foo", False),
        ("cidr:10.0.0.1/32", "cidr:10.0.0.0/24", True),
        ("cidr:10.0.0.0/24", "cidr:10.0.0.1/32", False),
        ("cidr:10.0.1.1/32", "cidr:10.0.0.0/24", False),
        ("cidr:fd00--1/128", "cidr:fd00--0/64", True),
        ("cidr:10.0.0.1/32", "cidr:0--0/0", False),
        ("cidr:10.0.0.1/32", "any:10.0.0.0/24", False),
    ],
)
def test_matches(label: str, target: str, expected: bool) -> None:
    """Matching is not symmetric, and between prefixes it is containment."""
    one, wanted = Label.parse(label), Label.parse_selector(target)
    assert expected == one.matches(wanted)
    assert expected == Labels([one]).has(wanted)


def test_json_forms() -> None:
    """Both forms are read; what is no label is refused."""
    label = Label("k8s", "app", "web")
    assert label == Label.from_json("k8s:app=web") == Label.from_json(label.to_json())
    for bad in (5, {"source": "k8s"}, {"key": "a", "value": 1}, {"key": "a", "extra": ""}):
        with pytest.raises(LabelError):
            Label.from_json(bad)


def test_one_label_a_key() -> None:
    """The later label of a key wins, whatever its source."""
    labels = Labels.parse(["k8s:app=web", "any:app=api"])
    assert labels.to_json() == ["any:app=api"]
    assert labels.merge(["k8s:app=x"]).to_json() == ["k8s:app=x"]


def test_sets_are_values() -> None:
    """Order of insertion counts for nothing; sets hash, and cannot be changed."""
    one, other = Labels.parse(["k8s:b=1", "k8s:a=2"]), Labels.parse({"k8s:a": "2", "k8s:b": "1"})
    assert one == other
    assert hash(one) == hash(other)
    assert [str(label) for label in one] == ["k8s:a=2", "k8s:b=1"]
    assert one == eval(repr(one))
    with pytest.raises(AttributeError):
        one._sorted = ()  # type: ignore[misc]


def test_a_mapping_takes_the_source_given() -> None:
    """Keys that name a source keep it."""
    labels = Labels.parse({"app": "web", "any:x": "y"}, source="k8s")
    assert labels.to_json() == ["k8s:app=web", "any:x=y"]


@pytest.mark.parametrize(
    ("labels", "named"),
    [
        ("k8s:app=web", "list"),
        (["k9s:app=web"], "k8s"),
        ({"app": True}, "quote"),
        ({"app": 80}, "quote"),
        ([5], "text"),
    ],
)
def test_parse_of_sets_refuses(labels: object, named: str) -> None:
    """A bare text, an unknown source (the nearest is named), values that are no text."""
    with pytest.raises(LabelError, match=named):
        Labels.parse(labels)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text", ["k8s:a=1", "k8s:a=1;x", "k8s:b=1;k8s:a=1;", "a;", "k8s:a=1;k8s:a=2;"]
)
def test_stored_text_that_no_set_has(text: str) -> None:
    """Cut off, out of order, without a source, a key twice."""
    with pytest.raises(LabelError):
        Labels.from_sorted_text(text)


def test_find_by_key() -> None:
    """`find` answers as a selector's key asks; `get` by the bare key."""
    labels = Labels.parse(["k8s:app=web", "cidr:10.1.0.0/16"])
    assert labels.find("any", "app") == labels.find("k8s", "app") == labels.get("app")
    assert labels.find("cidr", "10.0.0.0/8") == Label.parse("cidr:10.1.0.0/16")
    assert labels.find("reserved", "app") is None
    assert labels.without("app").to_json() == ["cidr:10.1.0.0/16"]
    assert [str(label) for label in labels.from_source("k8s")] == ["k8s:app=web"]
