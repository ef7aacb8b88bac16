"""The selectors in use and whom they select, kept up as identities come and go."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from attrs import define, field, frozen

from pyciliumlib.identity.labels import Labels
from pyciliumlib.identity.selector import Selector
from pyciliumlib.policy.identity_index import IdentityIndex
from pyciliumlib.policy.model import PortNames
from pyciliumlib.policy.selector_index import SelectorIndex

if TYPE_CHECKING:
    import numpy.typing as npt


_NO_PORTS: Final[PortNames] = frozenset()


@define(eq=False)
class Selection:
    """A selector in use, and the identities that it selects now.

    `users` are those who hold it, each with its own number for it.
    """

    selector: Selector
    identities: set[int]
    users: dict[Any, int] = field(factory=dict)
    _column: npt.NDArray[np.uint32] | None = None

    def column(self) -> npt.NDArray[np.uint32]:
        """The identities as an array, in no order."""
        if self._column is None:
            self._column = np.fromiter(self.identities, np.uint32, len(self.identities))
        return self._column

    def join(self, identities: Iterable[int]) -> None:
        """Select these too."""
        self.identities.update(identities)
        self._column = None

    def leave(self, identities: Iterable[int]) -> None:
        """Select these no more."""
        self.identities.difference_update(identities)
        self._column = None

    def __repr__(self) -> str:
        return f"Selection({str(self.selector)!r}, {len(self.identities)} identities)"


@frozen(eq=False)
class IdentityGroup:
    """Identities in the same selections, with the same names for their ports.

    `masks` tells each user of a selection which of its own numbers these are, as bits.
    """

    identities: list[int]
    named_ports: PortNames
    masks: Mapping[Any, int]


@define
class IdentityDelta:
    """Identities that came and went, in groups; one that changed did both."""

    added: list[IdentityGroup] = field(factory=list)
    removed: list[IdentityGroup] = field(factory=list)


@define
class SelectorCache:
    """Selectors in use, each with its identities.

    Whoever calls it, or reads a selection, holds `lock`.
    """

    lock: threading.RLock = field(factory=threading.RLock)
    index: IdentityIndex = field(factory=IdentityIndex)
    named_ports: dict[int, PortNames] = field(factory=dict)
    _selections: dict[Selector, Selection] = field(factory=dict)
    _by_labels: SelectorIndex = field(factory=SelectorIndex)

    def acquire(self, selector: Selector, user: Any, number: int) -> Selection:
        """The selection of `selector`, which `user` knows by `number` until it releases it."""
        selection = self._selections.get(selector)
        if selection is None:
            selection = Selection(selector, self.index.select(selector))
            self._selections[selector] = selection
            self._by_labels.add(selector)
        selection.users[user] = number
        return selection

    def release(self, selection: Selection, user: Any) -> None:
        """Give a selection back; the last user takes it out of the cache."""
        del selection.users[user]
        if not selection.users:
            del self._selections[selection.selector]
            self._by_labels.remove(selection.selector)

    def update(
        self, added: Mapping[int, tuple[Labels, PortNames]], removed: Iterable[int]
    ) -> IdentityDelta:
        """Let identities go, then come; a number that gets other labels or ports does both.

        Those that are there as they are, and unknown ones to remove, are passed over.
        """
        leaving = {*removed, *(i for i in added if self._differs(i, *added[i]))}
        gone = {i: self._remove(i) for i in leaving if i in self.index.labels}
        come = {i: item for i, item in added.items() if i not in self.index.labels}
        for identity, (labels, named_ports) in come.items():
            self.index.add(identity, labels)
            if named_ports:
                self.named_ports[identity] = named_ports
        return IdentityDelta(
            removed=self._regroup(gone, Selection.leave), added=self._regroup(come, Selection.join)
        )

    def _differs(self, identity: int, labels: Labels, named_ports: PortNames) -> bool:
        known = self.index.labels.get(identity, labels)
        return known != labels or self.named_ports.get(identity, _NO_PORTS) != named_ports

    def _remove(self, identity: int) -> tuple[Labels, PortNames]:
        return self.index.remove(identity), self.named_ports.pop(identity, _NO_PORTS)

    def _regroup(
        self, identities: Mapping[int, tuple[Labels, PortNames]], move: Any
    ) -> list[IdentityGroup]:
        """Move identities into or out of their selections, a group at a time."""
        members: dict[tuple[tuple[Selector, ...], PortNames], list[int]] = {}
        for identity, (labels, named_ports) in identities.items():
            key = self._by_labels.matching(labels), named_ports
            members.setdefault(key, []).append(identity)
        groups = []
        for (selectors, named), listed in members.items():
            masks: dict[Any, int] = {}
            for selector in selectors:
                selection = self._selections[selector]
                move(selection, listed)
                for user, number in selection.users.items():
                    masks[user] = masks.get(user, 0) | 1 << number
            groups.append(IdentityGroup(listed, named, masks))
        return groups

    def __len__(self) -> int:
        return len(self._selections)
