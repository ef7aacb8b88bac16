"""A YAML loader that refuses what YAML forbids and PyYAML lets pass: one key twice.

Of two lists `ingressDeny` in a rule PyYAML keeps the last, so the first one's denials would be
lost without a word (YAML 1.2, 3.2.1.3: the keys of a mapping are unique).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import yaml

if TYPE_CHECKING:
    _Base = yaml.SafeLoader
else:  # libyaml's parser is ten times as fast; PyYAML is built without it here and there
    _Base = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

_MERGE_TAG: Final = "tag:yaml.org,2002:merge"


class DocumentLoader(_Base):
    """The safe loader, less mappings with a key twice; what `<<` brings in may be overridden."""

    def flatten_mapping(self, node: Any) -> None:
        """Resolve merge keys; a node comes here once for itself and for each `<<` that names it."""
        if not hasattr(node, "keys_checked"):
            # only before the first merge: that puts the keys which are overridden into the node
            node.keys_checked = True
            _refuse_repeats(node)
        super().flatten_mapping(node)


def _refuse_repeats(node: Any) -> None:
    seen = set()
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode) or key.tag == _MERGE_TAG:
            continue
        if (key.tag, key.value) in seen:
            raise yaml.constructor.ConstructorError(
                "while reading a mapping",
                node.start_mark,
                f"found the key {key.value!r} twice",
                key.start_mark,
            )
        seen.add((key.tag, key.value))
