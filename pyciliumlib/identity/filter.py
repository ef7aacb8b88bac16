"""Label filters: which labels of an endpoint make its identity, and which only inform.

A filter entry is `[source:][!]regexp`, anchored at the start of the key alone; `!` excludes.
A label stays if its longest matching include is longer than its shortest matching exclude, or if
no exclude matches and the user has configured no include.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from attrs import field, frozen

from pyciliumlib.errors import LabelError
from pyciliumlib.identity.labels import Label, Labels, check_source


@frozen
class FilterEntry:
    """One entry; an empty source matches every source."""

    pattern: str
    source: str = ""
    exclude: bool = False
    _expression: re.Pattern[str] = field(init=False, eq=False, repr=False)

    @_expression.default
    def _compile(self) -> re.Pattern[str]:
        if not self.pattern:
            raise LabelError(f"label filter {str(self)!r}: the pattern is empty")
        try:
            return re.compile(self.pattern)
        except re.error as error:
            raise LabelError(f"label filter {str(self)!r}: {error}") from error

    @classmethod
    def parse(cls, text: str) -> FilterEntry:
        """Read `[source:][!]regexp`.

        >>> FilterEntry.parse("k8s:!io\\\\.kubernetes")
        FilterEntry(pattern='io\\\\.kubernetes', source='k8s', exclude=True)
        """
        source, colon, rest = text.partition(":")
        if not colon:
            source, rest = "", text
        if source:
            check_source(source, f"label filter {text!r}")
        return cls(rest.removeprefix("!"), source, rest.startswith("!"))

    def match_length(self, label: Label) -> int:
        """How much of the key matches; 0 if the entry is not about this label."""
        if self.source and self.source != label.source:
            return 0
        match = self._expression.match(label.key)
        return match.end() if match else 0

    def __str__(self) -> str:
        source = f"{self.source}:" if self.source else ""
        return f"{source}{'!' if self.exclude else ''}{self.pattern}"


DEFAULT_ENTRIES: Final = tuple(
    FilterEntry.parse(text)
    for text in (
        r"reserved:.*",
        r"io\.kubernetes\.pod\.namespace",
        r"io\.cilium\.k8s\.namespace\.labels",
        r"app\.kubernetes\.io",
        r"io\.cilium\.k8s\.policy\.cluster",
        r"io\.cilium\.k8s\.policy\.serviceaccount",
        r"!io\.kubernetes",
        r"!kubernetes\.io",
        r"!statefulset\.kubernetes\.io/pod-name",
        r"!apps\.kubernetes\.io/pod-index",
        r"!batch\.kubernetes\.io/job-completion-index",
        r"!batch\.kubernetes\.io/controller-uid",
        r"!.*beta\.kubernetes\.io",
        r"!k8s\.io",
        r"!pod-template-generation",
        r"!pod-template-hash",
        r"!controller-revision-hash",
        r"!controller-uid",
        r"!annotation.*",
        r"!etcd_node",
        r"!topology\.kubernetes\.io",
    )
)
_FILE_VERSION: Final = 1


@frozen
class LabelFilter:
    """Splits an endpoint's labels; without arguments, by Cilium's defaults.

    >>> identity, info = LabelFilter().split(Labels.parse(["k8s:app=web", "k8s:etcd_node=a"]))
    >>> str(identity), str(info)
    ('k8s:app=web', 'k8s:etcd_node=a')
    """

    entries: tuple[FilterEntry, ...] = DEFAULT_ENTRIES
    only_included: bool = False
    """Whether a label that no include matches is dropped: so once the user configures one."""

    @classmethod
    def parse(cls, text: str | Iterable[str], base: LabelFilter | None = None) -> LabelFilter:
        """Add the user's entries, separated by spaces or as a list, to `base` (the defaults)."""
        words = text.split() if isinstance(text, str) else text
        added = tuple(FilterEntry.parse(word) for word in words)
        base = base if base is not None else cls()
        return cls(
            (*base.entries, *added),
            base.only_included or any(not entry.exclude for entry in added),
        )

    @classmethod
    def load(cls, path: str | Path) -> LabelFilter:
        """Read a label-prefix file (JSON, version 1), which replaces the defaults.

        Raises LabelError naming the file and the entry.
        """
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
        except (ValueError, OSError) as error:
            raise LabelError(f"label prefix file {path}: {error}") from error
        if not isinstance(data, dict) or data.get("version") != _FILE_VERSION:
            raise LabelError(f"label prefix file {path}: expected an object with version 1")
        items = data.get("valid-prefixes")
        if not isinstance(items, list) or not items:
            raise LabelError(f"label prefix file {path}: valid-prefixes is missing or empty")
        entries = tuple(
            _from_file(item, f"label prefix file {path}, {i}") for i, item in enumerate(items)
        )
        return cls(entries, any(not entry.exclude for entry in entries))

    def keeps(self, label: Label) -> bool:
        """Whether `label` is part of the identity."""
        lengths = [(entry.exclude, entry.match_length(label)) for entry in self.entries]
        included = max((length for exclude, length in lengths if not exclude), default=0)
        excluded = min((length for exclude, length in lengths if exclude and length), default=0)
        return included > excluded or (not self.only_included and excluded == 0)

    def split(self, labels: Labels) -> tuple[Labels, Labels]:
        """The labels of the identity, and those that only inform."""
        kept = Labels(label for label in labels if self.keeps(label))
        return kept, Labels(label for label in labels if label not in kept)


def _from_file(item: object, where: str) -> FilterEntry:
    if not isinstance(item, dict) or not set(item) <= {"prefix", "source", "invert"}:
        raise LabelError(f"{where}: expected an object of prefix, source, invert; found {item!r}")
    prefix, source, invert = item.get("prefix"), item.get("source", ""), item.get("invert", False)
    if not (isinstance(prefix, str) and isinstance(source, str) and isinstance(invert, bool)):
        raise LabelError(f"{where}: prefix and source are texts, invert is true or false")
    return FilterEntry(prefix, check_source(source, where) if source else "", invert)
