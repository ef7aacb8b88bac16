"""Labels: the triple (source, key, value), and sets of them.

The text form is `source:key=value`, or `source:key` where the value is empty. The source ends at
the first `:`, the value begins at the first `=` after that, so values may hold `=` and keys `:`.
A set is indexed by key alone: two labels of one key and different sources cannot both be in it.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any, Final, NamedTuple

from attrs import field, frozen

from pyciliumlib.errors import LabelError, nearest

SOURCE_ANY: Final = "any"
SOURCE_CIDR: Final = "cidr"
SOURCE_CIDR_GROUP: Final = "cidrgroup"
SOURCE_FQDN: Final = "fqdn"
SOURCE_K8S: Final = "k8s"
SOURCE_NODE: Final = "node"
SOURCE_RESERVED: Final = "reserved"
SOURCE_UNSPEC: Final = "unspec"

#: Every source that a set of labels or a selector may name.
SOURCES: Final = frozenset(
    {
        SOURCE_ANY,
        SOURCE_CIDR,
        SOURCE_CIDR_GROUP,
        SOURCE_FQDN,
        SOURCE_K8S,
        SOURCE_NODE,
        SOURCE_RESERVED,
        SOURCE_UNSPEC,
        "cni",
        "container",
        "directory",
        "gen",
    }
)

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@lru_cache(maxsize=65536)
def prefix_of_key(key: str) -> Network:
    """The prefix that the key of a `cidr` label stands for; IPv6 has `-` in the place of `:`.

    >>> prefix_of_key("0--1/128")
    IPv6Network('::1/128')
    """
    try:
        return ipaddress.ip_network(key.replace("-", ":"), strict=False)
    except ValueError as error:
        raise LabelError(
            f"cidr label {key!r}: no address or prefix; write cidr:10.0.0.0/8 or cidr:fd00--0/64"
        ) from error


def covers(outer: Network, inner: Network) -> bool:
    """Whether every address of `inner` lies in `outer`; prefixes of two families never do."""
    if outer.version != inner.version or outer.prefixlen > inner.prefixlen:
        return False
    host_bits = outer.max_prefixlen - outer.prefixlen
    difference = int(outer.network_address) ^ int(inner.network_address)
    return difference >> host_bits == 0


def split_source(text: str) -> tuple[str, str]:
    """The source (empty if none is given) and the rest; a leading `$` means `reserved:`.

    >>> split_source("k8s:app"), split_source("$host"), split_source("app")
    (('k8s', 'app'), ('reserved', 'host'), ('', 'app'))
    """
    if text.startswith("$"):
        return SOURCE_RESERVED, text[1:]
    source, colon, rest = text.partition(":")
    return (source, rest) if colon else ("", text)


def check_source(source: str, where: str) -> str:
    """`source` if it is one of `SOURCES`; LabelError otherwise."""
    if source not in SOURCES:
        raise LabelError(
            f"{where}: unknown label source {source!r}{nearest(source, SOURCES)}; "
            f"known are {', '.join(sorted(SOURCES))}"
        )
    return source


class _LabelFields(NamedTuple):
    source: str
    key: str
    value: str = ""


class Label(_LabelFields):
    """One label. `Label.parse` reads the text form; the fields are taken as they are.

    A tuple, since labels are looked up by the million.

    >>> Label.parse("k8s:app=web")
    Label('k8s:app=web')
    """

    __slots__ = ()

    def __new__(cls, source: str, key: str, value: str = "") -> Label:
        label = super().__new__(cls, source, key, value)
        if not key:
            raise LabelError(f"label {str(label)!r}: the key is empty; write source:key=value")
        if source == SOURCE_CIDR:
            if value:
                raise LabelError(f"label {str(label)!r}: a cidr label has no value")
            prefix_of_key(key)
        return label

    @classmethod
    def parse(cls, text: str) -> Label:
        """Read the label of an identity: without a source it is `unspec`.

        Raises LabelError for an empty key and for a cidr label that is no prefix.
        """
        return _parse(text, SOURCE_UNSPEC)

    @classmethod
    def parse_selector(cls, text: str) -> Label:
        """Read a label that selects: without a source it is `any`."""
        return _parse(text, SOURCE_ANY)

    @classmethod
    def from_json(cls, data: object) -> Label:
        """Read either form that Cilium writes: an object with source, key, value, or the text."""
        if isinstance(data, str):
            return cls.parse(data)
        if not isinstance(data, Mapping):
            raise LabelError(f"label {data!r}: expected a text or an object with source and key")
        unknown = set(data) - {"source", "key", "value"}
        if unknown:
            raise LabelError(
                f"label {dict(data)!r}: unknown field {sorted(map(str, unknown))[0]!r}"
            )
        source, key, value = (data.get(name, "") for name in ("source", "key", "value"))
        if not (isinstance(source, str) and isinstance(key, str) and isinstance(value, str)):
            raise LabelError(f"label {dict(data)!r}: source, key and value are texts")
        return cls(source or SOURCE_UNSPEC, key, value)

    def to_json(self) -> dict[str, str]:
        """The object form: source, key, value."""
        return {"source": self.source, "key": self.key, "value": self.value}

    @property
    def extended_key(self) -> str:
        """`source:key`."""
        return f"{self.source}:{self.key}"

    @property
    def prefix(self) -> Network | None:
        """The prefix of a cidr label, None for any other."""
        return prefix_of_key(self.key) if self.source == SOURCE_CIDR else None

    def has_key(self, source: str, key: str) -> bool:
        """Whether this label answers to the key of a selector.

        The source `any` accepts every source; a cidr selector accepts each prefix inside its own.
        """
        if source == SOURCE_CIDR and self.source == SOURCE_CIDR:
            return covers(prefix_of_key(key), prefix_of_key(self.key))
        return self.key == key and source in (self.source, SOURCE_ANY)

    def matches(self, target: Label) -> bool:
        """Whether this label of an identity satisfies `target`, a selector's; not symmetric.

        >>> Label.parse("k8s:app=web").matches(Label.parse_selector("app=web"))
        True
        """
        return self.value == target.value and self.has_key(target.source, target.key)

    def __str__(self) -> str:
        text = f"{self.source}:{self.key}"
        return f"{text}={self.value}" if self.value else text

    def __repr__(self) -> str:
        return f"Label({str(self)!r})"


def _parse(text: str, default_source: str) -> Label:
    if not isinstance(text, str):
        raise LabelError(f"label {text!r}: expected a text such as k8s:app=web")
    source, rest = split_source(text)
    key, _, value = rest.partition("=")
    if not key and source == SOURCE_RESERVED:
        key, value = value, ""  # "reserved:=host": a reserved label carries no value
    return Label(source or default_source, key, value)


LabelLike = str | Label
#: What `Labels.parse` takes: texts, labels, a mapping of key (with or without source) to value.
LabelsLike = Iterable[LabelLike] | Mapping[str, str]


def _in_order(labels: Iterable[Label]) -> tuple[Label, ...]:
    by_key = {label.key: label for label in labels}
    return tuple(by_key[key] for key in sorted(by_key))


@frozen(cache_hash=True, repr=False)
class Labels:
    """An immutable, hashable set of labels, indexed by key; a later label of one key wins.

    >>> labels = Labels.parse({"app": "web", "k8s:env": "prod"}, source="k8s")
    >>> str(labels), labels.sorted_text
    ('k8s:app=web,k8s:env=prod', 'k8s:app=web;k8s:env=prod;')
    """

    _sorted: tuple[Label, ...] = field(default=(), converter=_in_order, alias="labels")
    _by_key: dict[str, Label] = field(init=False, eq=False)
    _cidrs: tuple[Label, ...] = field(init=False, eq=False)

    @_by_key.default
    def _index(self) -> dict[str, Label]:
        return {label.key: label for label in self._sorted}

    @_cidrs.default
    def _find_cidrs(self) -> tuple[Label, ...]:
        return tuple(label for label in self._sorted if label.source == SOURCE_CIDR)

    @classmethod
    def parse(cls, labels: LabelsLike, source: str = SOURCE_UNSPEC) -> Labels:
        """Read labels from texts, `Label`s, another set, or a mapping of keys to values.

        `source` is that of labels which name none. Raises LabelError, naming the label, for an
        unknown source, an empty key, a value that is no text, or a bare string for `labels`.
        """
        if isinstance(labels, Labels):
            return labels
        if isinstance(labels, (str, Label)):
            raise LabelError(f"labels {labels!r}: expected a list of labels; write [{labels!r}]")
        if not isinstance(labels, Iterable):
            raise LabelError(f"labels {labels!r}: expected a list of labels, or keys and values")
        check_source(source, "labels")
        if isinstance(labels, Mapping):
            return cls(_from_item(key, value, source) for key, value in labels.items())
        return cls(
            label if isinstance(label, Label) else _known(_parse(label, source)) for label in labels
        )

    @classmethod
    def from_sorted_text(cls, text: str) -> Labels:
        """Read what `sorted_text` wrote.

        Values may hold `;`, so a piece that is no label by itself belongs to the value before it.
        Raises LabelError where the text is not the sorted text of any set.
        """
        pieces: list[str] = []
        if text and not text.endswith(";"):
            raise LabelError(f"stored labels {text!r}: the final ';' is missing; the text was cut")
        for piece in text[:-1].split(";") if text else ():
            source, rest = split_source(piece)
            if pieces and not (source in SOURCES and "=" in rest):
                pieces[-1] += ";" + piece
            else:
                pieces.append(piece)
        labels = cls(Label.parse(piece) for piece in pieces)
        if labels.sorted_text != text:
            raise LabelError(f"stored labels {text!r}: not in the sorted form of a set of labels")
        return labels

    @classmethod
    def from_json(cls, data: Iterable[object]) -> Labels:
        """Read a list of labels, each in either JSON form."""
        return cls(Label.from_json(item) for item in data)

    def to_json(self) -> list[str]:
        """The texts of the labels, sorted by key."""
        return [str(label) for label in self._sorted]

    @property
    def sorted_text(self) -> str:
        """The form that stores use as key: sorted by key, each `source:key=value;`."""
        return "".join(f"{label.source}:{label.key}={label.value};" for label in self._sorted)

    def get(self, key: str) -> Label | None:
        """The label of `key`, or None."""
        return self._by_key.get(key)

    def find(self, source: str, key: str) -> Label | None:
        """The label that answers to a selector's source and key, or None (see `Label.has_key`)."""
        if source == SOURCE_CIDR:
            return next((label for label in self._cidrs if label.has_key(source, key)), None)
        label = self._by_key.get(key)
        return label if label is not None and label.has_key(source, key) else None

    def has(self, target: Label) -> bool:
        """Whether a label of this set satisfies `target`, a selector's label."""
        if target.source == SOURCE_CIDR:
            return any(label.matches(target) for label in self._cidrs)
        label = self._by_key.get(target.key)
        return label is not None and label.matches(target)

    def merge(self, other: LabelsLike) -> Labels:
        """Both sets together; where a key is in both, `other` wins."""
        return Labels((*self._sorted, *Labels.parse(other)))

    def without(self, *keys: str) -> Labels:
        """This set less the labels of `keys`."""
        return Labels(label for label in self._sorted if label.key not in keys)

    def from_source(self, source: str) -> tuple[Label, ...]:
        """The labels of one source, sorted by key."""
        return tuple(label for label in self._sorted if label.source == source)

    def __iter__(self) -> Iterator[Label]:
        return iter(self._sorted)

    def __len__(self) -> int:
        return len(self._sorted)

    def __contains__(self, label: object) -> bool:
        """Whether exactly this label is in the set."""
        return isinstance(label, Label) and self._by_key.get(label.key) == label

    def __str__(self) -> str:
        return ",".join(map(str, self._sorted))

    def __repr__(self) -> str:
        return f"Labels.parse({self.to_json()!r})"


def _known(label: Label) -> Label:
    check_source(label.source, f"label {str(label)!r}")
    return label


def _from_item(key: Any, value: Any, default_source: str) -> Label:
    if not isinstance(key, str) or not isinstance(value, str):
        raise LabelError(
            f"label {key!r}: {value!r}: keys and values are texts; quote numbers, true and false"
        )
    source, rest = split_source(key)
    return _known(Label(source or default_source, rest, value))
