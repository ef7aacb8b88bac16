"""Global numbers in a store, in Cilium's key layout, so that nodes agree on them.

`<base>/id/<number>` holds the sorted text of the labels (the master key; it has no session).
`<base>/value/<sorted labels>/<node>` holds the number while that node uses it.
`<base>/locks/<sorted labels>` is held while a number is chosen.
"""

from __future__ import annotations

import logging
import time
import zlib
from collections.abc import Iterable, Iterator
from typing import Final

from pyciliumlib.errors import ExhaustedError, LabelError, StateError
from pyciliumlib.identity.labels import Labels
from pyciliumlib.identity.numeric import ALLOCATED_MIN, WIRE_BITS, Identity
from pyciliumlib.store import Event, Session, Store, locked

_log = logging.getLogger(__name__)

BASE_PATH: Final = "cilium/state/identities/v1"
SESSION_TTL: Final = 15 * 60.0
_ATTEMPTS: Final = 16
_FIRST_BACKOFF: Final = 0.001


def master_key(base: str, number: int) -> str:
    """The key that says what a number stands for."""
    return f"{base}/id/{number}"


def slave_prefix(base: str, labels: Labels) -> str:
    """What the keys of all nodes that use `labels` begin with."""
    return f"{base}/value/{labels.sorted_text}/"


class SharedNumbers:
    """This node's view of the global numbers and its use of them; the caller holds a lock.

    `watch` alone may be used without it: it belongs to whoever polls.
    """

    def __init__(self, store: Store, node: str, numbers: range, base: str = BASE_PATH) -> None:
        self._store = store
        self._node = node
        self._range = numbers
        self._base = base
        self._session: Session = store.session(SESSION_TTL)
        self._labels: dict[int, Labels] = {}
        self._numbers: dict[Labels, set[int]] = {}
        self._references: dict[Labels, int] = {}
        self._used: dict[Labels, int] = {}
        self.watch = store.watch(f"{base}/id/")
        self.apply(self.watch.poll())

    # what is known

    def get(self, number: int) -> Identity | None:
        """The identity of `number`, or None."""
        labels = self._labels.get(number)
        return None if labels is None else Identity(number, labels)

    def find(self, labels: Labels) -> Identity | None:
        """The identity of `labels`: the one in use here, else the lowest known, else None."""
        number = self._used.get(labels)
        if number is None:
            number = min(self._numbers.get(labels, ()), default=None)
        return None if number is None else Identity(number, labels)

    def __iter__(self) -> Iterator[Identity]:
        return (Identity(number, labels) for number, labels in self._labels.items())

    def __len__(self) -> int:
        return len(self._labels)

    def apply(self, events: Iterable[Event]) -> tuple[list[Identity], list[Identity]]:
        """Take in changes of the masters: the identities that came, and those that went."""
        added: list[Identity] = []
        removed: list[Identity] = []
        for event in events:
            number = self._number_of(event)
            if number is None:
                continue
            labels = None if event.value is None else self._labels_of(event)
            known = self.get(number)
            if known is not None and known.labels == labels:
                continue
            if known is not None and self._used.get(known.labels) == number:
                # Somebody took away what this node uses: put it back rather than follow.
                _log.warning("identity %s is in use here but its master key changed", known)
                self._store.put(master_key(self._base, number), known.labels.sorted_text)
                continue
            if known is not None:
                self.forget([known])
                removed.append(known)
            if labels is not None:
                added.append(self._learn(number, labels))
        return added, removed

    def _number_of(self, event: Event) -> int | None:
        text = event.key.rpartition("/")[2]
        if text.isdecimal() and ALLOCATED_MIN <= int(text) < 1 << WIRE_BITS:
            return int(text)
        _log.warning("store key %r is not that of a global identity; ignored", event.key)
        return None

    def _labels_of(self, event: Event) -> Labels | None:
        try:
            return Labels.from_sorted_text(event.value or "")
        except LabelError as error:
            _log.warning("store key %r: %s; ignored", event.key, error)
            return None

    def _learn(self, number: int, labels: Labels) -> Identity:
        self._labels[number] = labels
        self._numbers.setdefault(labels, set()).add(number)
        return Identity(number, labels)

    def forget(self, identities: Iterable[Identity]) -> None:
        """Know these no more, none of which this node uses; the store keeps its keys."""
        for identity in identities:
            del self._labels[identity.id]
            numbers = self._numbers[identity.labels]
            numbers.discard(identity.id)
            if not numbers:
                del self._numbers[identity.labels]

    # use

    def allocate(self, labels: Labels) -> tuple[Identity, bool]:
        """The identity of `labels`, and whether it was unknown here.

        Raises LabelError for labels whose stored text would read as others, ExhaustedError when
        the range is used up, StateError when the store cannot be agreed with.
        """
        if labels in self._used:
            self._references[labels] += 1
            return Identity(self._used[labels], labels), False
        check_storable(labels)
        number = self._join(labels) or self._choose(labels)
        new = number not in self._labels
        self._learn(number, labels)
        self._used[labels] = number
        self._references[labels] = 1
        return Identity(number, labels), new

    def release(self, labels: Labels) -> tuple[Identity, bool] | None:
        """Drop one reference: the identity, and whether that was the last; None if not used.

        The number stays known, and the labels', until a garbage collector deletes the master.
        """
        if labels not in self._used:
            return None
        identity = Identity(self._used[labels], labels)
        if self._references[labels] > 1:
            self._references[labels] -= 1
            return identity, False
        self._store.delete(self._slave(labels))
        del self._references[labels], self._used[labels]
        return identity, True

    def disown(self, identity: Identity) -> None:
        """Undo the `allocate` that made an identity known here; its number stays in the store.

        The next to ask for its labels, here or elsewhere, makes it known again.
        """
        self.release(identity.labels)
        self.forget([identity])

    def refresh(self) -> None:
        """Write again what the store lost of this node's: masters, slaves, a session that ended."""
        if not self._session.renew():
            self._session = self._store.session(SESSION_TTL)
        for labels, number in self._used.items():
            self._store.create(master_key(self._base, number), labels.sorted_text)
            slave = self._slave(labels)
            if not self._store.create(slave, str(number), self._session):
                entry = self._store.get(slave)
                if entry is None or entry.value != str(number):
                    self._store.put(slave, str(number), self._session)

    def close(self) -> None:
        """Stop using everything; the numbers stay in the store."""
        self.watch.close()
        self._session.close()

    def _slave(self, labels: Labels) -> str:
        return slave_prefix(self._base, labels) + self._node

    def _join(self, labels: Labels) -> int | None:
        """Use the number that is known for `labels`, if its master is still there."""
        known = self.find(labels)
        return known.id if known and self._claim(known.id, labels) else None

    def _claim(self, number: int, labels: Labels) -> bool:
        slave, master = self._slave(labels), master_key(self._base, number)
        if self._store.create(slave, str(number), self._session, requires=master):
            return True
        if self._store.get(master) is None:
            return False
        self._store.put(slave, str(number), self._session)  # left by this node's earlier run
        return True

    def _choose(self, labels: Labels) -> int:
        """Agree on a number for `labels` with the other nodes."""
        with locked(self._store, f"{self._base}/locks/{labels.sorted_text}"):
            wait = _FIRST_BACKOFF
            for _ in range(_ATTEMPTS):
                number = self._number_in_store(labels)
                if number is not None and self._claim(number, labels):
                    return number
                number = self._create_master(labels)
                if self._claim(number, labels):
                    return number
                time.sleep(wait)
                wait *= 2
        raise StateError(
            f"identity for {labels}: its keys in the store kept vanishing; is another process "
            "collecting garbage without regard for the locks?"
        )

    def _number_in_store(self, labels: Labels) -> int | None:
        """The number under which another node uses exactly `labels`."""
        prefix = slave_prefix(self._base, labels)
        for entry in self._store.entries(prefix):
            node = entry.key[len(prefix) :]
            # A value with "/" in it could make a longer set of labels begin with this prefix.
            if "/" not in node and entry.value.isdecimal() and int(entry.value) in self._range:
                return int(entry.value)
        return None

    def _create_master(self, labels: Labels) -> int:
        """Create the master of the first free number, beginning where the labels point to.

        So the same labels tend to get the same number even from an empty store.
        """
        text = labels.sorted_text
        start = zlib.crc32(text.encode()) % len(self._range)
        for step in range(len(self._range)):
            number = self._range[(start + step) % len(self._range)]
            if number not in self._labels and self._store.create(
                master_key(self._base, number), text
            ):
                return number
        raise ExhaustedError(
            f"all {len(self._range)} identities of the cluster are in use; collect the garbage, "
            "or let fewer labels be part of identities (label filter)"
        )


def check_storable(labels: Labels) -> None:
    """LabelError if the stored text of `labels` would be read as other labels."""
    try:
        same = Labels.from_sorted_text(labels.sorted_text) == labels
    except LabelError:
        same = False
    if not same:
        raise LabelError(
            f"labels {labels}: a value holds ';' in such a way that the stored text would read as "
            "other labels; change the value, or filter the label out of the identity"
        )
