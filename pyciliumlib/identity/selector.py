"""Selectors: the LabelSelector of Kubernetes over labels that have a source.

All requirements of a selector must hold. A key without a source selects every source (`any`).
`NotIn` and `DoesNotExist` hold for a set that lacks the key. Requirements are values that can be
looked into, so that an engine can keep an index of selectors by key and value.
https://kubernetes.io/docs/concepts/overview/working-with-objects/labels/#label-selectors
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable, Mapping
from operator import attrgetter
from typing import Any

from attrs import field, frozen

from pyciliumlib.errors import LabelError, nearest
from pyciliumlib.identity.labels import (
    SOURCE_ANY,
    SOURCE_CIDR,
    Label,
    Labels,
    check_source,
    prefix_of_key,
    split_source,
)


class Operator(str, enum.Enum):
    """How a requirement looks at the value of its key."""

    IN = "In"
    NOT_IN = "NotIn"
    EXISTS = "Exists"
    DOES_NOT_EXIST = "DoesNotExist"

    @property
    def negative(self) -> bool:
        """Whether a set without the key satisfies it."""
        return self in (Operator.NOT_IN, Operator.DOES_NOT_EXIST)

    @property
    def takes_values(self) -> bool:
        """Whether it needs values (the others must have none)."""
        return self in (Operator.IN, Operator.NOT_IN)


def _sorted_values(values: Iterable[str]) -> tuple[str, ...]:
    if type(values) is tuple and len(values) < 2:
        return values
    return tuple(sorted(set(values)))


@frozen(order=True, cache_hash=True)
class Requirement:
    """One condition on one key; `values` is sorted and without repeats."""

    source: str
    key: str
    operator: Operator = field(converter=Operator)
    values: tuple[str, ...] = field(default=(), converter=_sorted_values)

    def __attrs_post_init__(self) -> None:
        if not self.key:
            raise LabelError("requirement: the key is empty")
        if self.source == SOURCE_CIDR:
            prefix_of_key(self.key)
            if any(self.values):
                raise LabelError(f"requirement on {self.extended_key!r}: cidr labels have no value")
        if self.operator.takes_values != bool(self.values):
            need = "at least one value" if self.operator.takes_values else "no values"
            raise LabelError(
                f"requirement on {self.extended_key!r}: {self.operator.value} takes {need}"
            )

    @property
    def extended_key(self) -> str:
        """`source:key`."""
        return f"{self.source}:{self.key}"

    def matches(self, labels: Labels) -> bool:
        """Whether `labels` satisfies this condition."""
        label = labels.find(self.source, self.key)
        if label is None:
            return self.operator.negative
        if self.operator is Operator.IN:
            return label.value in self.values
        if self.operator is Operator.NOT_IN:
            return label.value not in self.values
        return self.operator is Operator.EXISTS

    def __str__(self) -> str:
        key = self.extended_key
        if self.operator is Operator.EXISTS:
            return f"exists({key})"
        if self.operator is Operator.DOES_NOT_EXIST:
            return f"!{key}"
        if self.operator is Operator.NOT_IN:
            return f"{key} notin ({','.join(self.values)})"
        if len(self.values) == 1:
            return str(Label(self.source, self.key, self.values[0]))
        return f"{key} in ({','.join(self.values)})"


_parts = attrgetter("source", "key", "operator", "values")


def _normal(requirements: Iterable[Requirement]) -> tuple[Requirement, ...]:
    found = set(requirements)
    return tuple(sorted(found, key=_parts)) if len(found) > 1 else tuple(found)


@frozen(cache_hash=True, repr=False)
class Selector:
    """An immutable, hashable set of requirements; the empty one selects everything.

    >>> selector = Selector.parse({"matchLabels": {"app": "web"}})
    >>> str(selector), selector.matches(Labels.parse(["k8s:app=web"]))
    ('any:app=web', True)
    """

    requirements: tuple[Requirement, ...] = field(default=(), converter=_normal)

    @classmethod
    def of(cls, *labels: str | Label) -> Selector:
        """The selector of all sets that hold each of `labels` (a text without source: any).

        >>> str(Selector.of("k8s:app=web", "reserved:host"))
        'k8s:app=web,reserved:host'
        """
        targets = (
            label if isinstance(label, Label) else Label.parse_selector(label) for label in labels
        )
        return cls(Requirement(t.source, t.key, Operator.IN, (t.value,)) for t in targets)

    @classmethod
    def parse(cls, data: Mapping[str, Any], path: str = "selector") -> Selector:
        """Read a Kubernetes LabelSelector: `matchLabels` and `matchExpressions`, as from YAML.

        `path` is where it stands in its document, for messages. Raises LabelError with the path
        of the field that is wrong.
        """
        if not isinstance(data, Mapping):
            raise LabelError(f"{path}: expected matchLabels or matchExpressions, found {data!r}")
        for name in data:
            if name not in ("matchLabels", "matchExpressions"):
                hint = nearest(str(name), ("matchLabels", "matchExpressions"))
                raise LabelError(f"{path}.{name}: unknown field{hint}; labels go under matchLabels")
        return cls(
            (
                *_match_labels(data.get("matchLabels"), f"{path}.matchLabels"),
                *_match_expressions(data.get("matchExpressions"), f"{path}.matchExpressions"),
            )
        )

    def matches(self, labels: Labels) -> bool:
        """Whether `labels` satisfies every requirement."""
        return all(requirement.matches(labels) for requirement in self.requirements)

    def names_key(self, key: str, *sources: str) -> bool:
        """Whether a requirement is about `key` (with one of `sources`, if any are given)."""
        for requirement in self.requirements:
            if requirement.key == key and (not sources or requirement.source in sources):
                return True
        return False

    def with_requirement(self, *requirements: Requirement) -> Selector:
        """This selector with more conditions."""
        return Selector((*self.requirements, *requirements)) if requirements else self

    def without_key(self, key: str) -> Selector:
        """This selector less its conditions on `key`, whatever their source."""
        return Selector(r for r in self.requirements if r.key != key)

    def to_json(self) -> dict[str, Any]:
        """The LabelSelector that `parse` reads as this one."""
        expressions = []
        for r in self.requirements:
            item: dict[str, Any] = {"key": r.extended_key, "operator": r.operator.value}
            expressions.append({**item, "values": list(r.values)} if r.values else item)
        return {"matchExpressions": expressions} if expressions else {}

    def __str__(self) -> str:
        """The canonical text: the same for equal selectors; `{}` selects everything."""
        return ",".join(map(str, self.requirements)) or "{}"

    def __repr__(self) -> str:
        return f"Selector({str(self)!r})"


# Kubernetes' rules for names and values; they hold for the sources that come from it.
_NAME = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?")
_DOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_NAME_MAX, _DOMAIN_MAX = 63, 253
_NOT_KUBERNETES = frozenset({SOURCE_CIDR, "cidrgroup", "fqdn"})


def parse_key(text: object, path: str) -> tuple[str, str]:
    """Source and key of a selector's key such as `k8s:app`; LabelError names `path`."""
    if not isinstance(text, str):
        raise LabelError(f"{path}: the key {text!r} is no text; quote it")
    source, key = split_source(text)
    source = check_source(source or SOURCE_ANY, path)
    if source == SOURCE_CIDR:
        try:
            prefix_of_key(key)
        except LabelError as error:
            raise LabelError(f"{path}: {error}") from error
    elif source not in _NOT_KUBERNETES and not _is_name(key):
        raise LabelError(
            f"{path}: {key!r} is no label key; write [domain/]name, name of at most {_NAME_MAX} "
            "letters, digits, '-', '_' or '.', with a letter or digit at both ends"
        )
    elif not key:
        raise LabelError(f"{path}: the key is empty")
    return source, key


# A label of a namespace is a label of its pods under this prefix; what follows is a key itself.
_NAMESPACE_LABELS = "io.cilium.k8s.namespace.labels."


def _is_name(key: str) -> bool:
    domain, slash, name = key.removeprefix(_NAMESPACE_LABELS).rpartition("/")
    if slash and not (len(domain) <= _DOMAIN_MAX and _DOMAIN.fullmatch(domain)):
        return False
    return len(name) <= _NAME_MAX and _NAME.fullmatch(name) is not None


def _value(value: object, source: str, path: str) -> str:
    if not isinstance(value, str):
        raise LabelError(f"{path}: the value {value!r} is no text; quote numbers, true and false")
    if source in _NOT_KUBERNETES or not value:
        return value
    if len(value) > _NAME_MAX or not _NAME.fullmatch(value):
        raise LabelError(
            f"{path}: {value!r} can be no label's value; at most {_NAME_MAX} letters, digits, "
            "'-', '_' or '.', with a letter or digit at both ends"
        )
    return value


def _match_labels(data: object, path: str) -> list[Requirement]:
    if data is None:
        return []
    if not isinstance(data, Mapping):
        raise LabelError(f"{path}: expected a mapping of keys to values, found {data!r}")
    found = []
    for text, value in data.items():
        where = f"{path}[{text}]"
        source, key = parse_key(text, where)
        found.append(Requirement(source, key, Operator.IN, (_value(value, source, where),)))
    return found


def _match_expressions(data: object, path: str) -> list[Requirement]:
    if data is None:
        return []
    if not isinstance(data, list):
        raise LabelError(f"{path}: expected a list of key, operator, values; found {data!r}")
    return [_expression(item, f"{path}[{index}]") for index, item in enumerate(data)]


def _expression(item: object, path: str) -> Requirement:
    if not isinstance(item, Mapping):
        raise LabelError(f"{path}: expected key, operator and values, found {item!r}")
    for name in item:
        if name not in ("key", "operator", "values"):
            hint = nearest(str(name), ("key", "operator", "values"))
            raise LabelError(f"{path}.{name}: unknown field{hint}")
    for name in ("key", "operator"):
        if name not in item:
            raise LabelError(f"{path}: {name} is missing")
    source, key = parse_key(item["key"], f"{path}.key")
    try:
        operator = Operator(item["operator"])
    except ValueError:
        known = [operator.value for operator in Operator]
        raise LabelError(
            f"{path}.operator: unknown operator {item['operator']!r}"
            f"{nearest(str(item['operator']), known)}; known are {', '.join(known)}"
        ) from None
    values = item.get("values")
    if values is None:
        values = []
    if not isinstance(values, list):
        raise LabelError(f"{path}.values: expected a list, found {values!r}")
    if operator.takes_values != bool(values):
        need = "needs at least one value" if operator.takes_values else "takes no values"
        raise LabelError(f"{path}.values: {operator.value} {need}")
    checked = [_value(v, source, f"{path}.values[{i}]") for i, v in enumerate(values)]
    return Requirement(source, key, operator, checked)
