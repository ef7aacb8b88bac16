"""Numbers of a scope that only this node knows: prefixes, names learned from DNS, remote nodes."""

from __future__ import annotations

from collections.abc import Iterator

from attrs import define

from pyciliumlib.errors import ExhaustedError
from pyciliumlib.identity.labels import Labels
from pyciliumlib.identity.numeric import Identity


@define
class _Used:
    identity: Identity
    references: int = 1


class LocalNumbers:
    """Reference-counted numbers out of one range; the caller holds a lock.

    Numbers go up and wrap, so that one that was freed is not soon another's. A withheld number is
    given only to who asks for it: those of the run before a restart.
    """

    def __init__(self, numbers: range) -> None:
        self._range = numbers
        self._next = numbers.start
        self._withheld: set[int] = set()
        self._by_labels: dict[Labels, _Used] = {}
        self._by_id: dict[int, _Used] = {}

    def allocate(self, labels: Labels, previous: int | None = None) -> tuple[Identity, bool]:
        """The identity of `labels`, and whether it is new; `previous` is taken if it is free.

        Raises ExhaustedError when every number is used or withheld.
        """
        used = self._by_labels.get(labels)
        if used is not None:
            used.references += 1
            return used.identity, False
        if previous is not None and previous in self._range and previous not in self._by_id:
            number = previous
            self._withheld.discard(number)
        else:
            number = self._take()
        used = _Used(Identity(number, labels))
        self._by_labels[labels] = self._by_id[number] = used
        return used.identity, True

    def _take(self) -> int:
        if len(self._by_id) + len(self._withheld) >= len(self._range):
            raise ExhaustedError(
                f"all {len(self._range)} local identities from {self._range.start:#x} are in use; "
                "release some, or write policies with fewer prefixes"
            )
        number = self._next
        while number in self._by_id or number in self._withheld:
            number = self._after(number)
        self._next = self._after(number)
        return number

    def _after(self, number: int) -> int:
        return number + 1 if number + 1 in self._range else self._range.start

    def release(self, labels: Labels) -> tuple[Identity, bool] | None:
        """Drop one reference: the identity, and whether that was the last; None if not used."""
        used = self._by_labels.get(labels)
        if used is None:
            return None
        used.references -= 1
        if used.references:
            return used.identity, False
        del self._by_labels[labels]
        del self._by_id[used.identity.id]
        return used.identity, True

    def withhold(self, number: int) -> None:
        """Keep a free number for who asks for it."""
        if number not in self._by_id:
            self._withheld.add(number)

    def give_back(self, number: int) -> None:
        """Let a withheld number be anybody's again."""
        self._withheld.discard(number)

    def get(self, number: int) -> Identity | None:
        """The identity of `number`, or None."""
        used = self._by_id.get(number)
        return used.identity if used else None

    def find(self, labels: Labels) -> Identity | None:
        """The identity of `labels`, or None."""
        used = self._by_labels.get(labels)
        return used.identity if used else None

    def __contains__(self, number: object) -> bool:
        """Whether the number lies in the range, used or not."""
        return number in self._range

    def __iter__(self) -> Iterator[Identity]:
        return (used.identity for used in self._by_id.values())

    def __len__(self) -> int:
        return len(self._by_id)
