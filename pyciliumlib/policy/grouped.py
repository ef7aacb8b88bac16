"""The entries of a policy map with those of identities that have the same ones said once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from attrs import frozen

from pyciliumlib.policy.entries import ANY_IDENTITY, PolicyEntries

if TYPE_CHECKING:
    import numpy.typing as npt


@frozen(eq=False)
class GroupedEntries:
    """The entries of any identity, and `templates` with the identities that have those entries.

    `members` are the first template's, as many as the first of `counts`, then the next's.
    """

    anyone: PolicyEntries
    templates: Sequence[PolicyEntries]
    counts: Sequence[int]
    members: npt.NDArray[np.uint32]

    @classmethod
    def of(cls, entries: PolicyEntries) -> GroupedEntries:
        """Sort entries by who shares them."""
        order = np.argsort(entries.keys["identity"], kind="stable")
        keys, values = entries.keys[order], entries.values[order]
        patterns = keys.copy()
        patterns["identity"] = ANY_IDENTITY
        identities, starts = np.unique(keys["identity"], return_index=True)
        found: dict[tuple[bytes, bytes], tuple[PolicyEntries, list[int]]] = {}
        anyone = PolicyEntries.empty()
        ends = np.append(starts, len(keys))[1:]
        for identity, first, last in zip(identities.tolist(), starts, ends, strict=True):
            template = PolicyEntries(patterns[first:last], values[first:last])
            if identity == ANY_IDENTITY:
                anyone = template
                continue
            content = template.keys.tobytes(), template.values.tobytes()
            found.setdefault(content, (template, []))[1].append(identity)
        return cls(
            anyone,
            [template for template, _ in found.values()],
            [len(identities) for _, identities in found.values()],
            np.array([i for _, identities in found.values() for i in identities], np.uint32),
        )

    def spread(self) -> PolicyEntries:
        """Each entry for each identity that has it."""
        if not self.templates:
            return self.anyone
        spread = PolicyEntries.spread(self.templates, self.counts, self.members)
        return PolicyEntries.concatenate([self.anyone, spread])

    def __len__(self) -> int:
        of_peers = zip(self.templates, self.counts, strict=True)
        return len(self.anyone) + sum(len(template) * count for template, count in of_peers)

    def __repr__(self) -> str:
        return f"GroupedEntries({len(self)} entries of {len(self.members)} identities)"
