"""Gives numbers to sets of labels: the same set, the same number, on every node of a store.

What is reserved, well-known or fixed has its number already. A prefix, a name learned from DNS
and the like get one of this node's own (`local`); all else a global one (`shared`).
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from attrs import field, frozen

from pyciliumlib.closeable import Closeable
from pyciliumlib.errors import ClosedError, InvalidError, LabelError, NotFoundError, nearest
from pyciliumlib.identity.labels import SOURCE_RESERVED, Label, Labels, LabelsLike
from pyciliumlib.identity.local import LocalNumbers
from pyciliumlib.identity.numeric import (
    ALLOCATED_MIN,
    USER_RESERVED_MIN,
    ClusterRange,
    Identity,
    ReservedIdentity,
    Scope,
    reserved_id_for_labels,
    scope_for_labels,
    well_known_identities,
)
from pyciliumlib.identity.shared import SharedNumbers
from pyciliumlib.store import Event, MemoryStore, Store

_log = logging.getLogger(__name__)

#: Called with the identities that came and those that went, in the order of the changes.
#: One that refuses those that came, by raising, hears of them as gone: unknown ones are no error.
Observer = Callable[[Sequence[Identity], Sequence[Identity]], None]


@frozen
class AllocatorSettings:
    """How a node allocates.

    `node` is the name (in Cilium the IP) under which it says what it uses. `fixed` are the
    user-reserved identities, number (128 to 255) to name. `well_known` turns the table of system
    pods on, `cluster` is the name it is for. `nodes_have_labels` gives each remote node its own.
    """

    node: str = "127.0.0.1"
    cluster: str = "default"
    cluster_id: int = 0
    max_clusters: int = 255
    fixed: Mapping[int, str] = field(factory=dict)
    well_known: bool = False
    nodes_have_labels: bool = False

    def __attrs_post_init__(self) -> None:
        ClusterRange(self.cluster_id, self.max_clusters)
        if not self.node or "/" in self.node:
            raise InvalidError(f"node {self.node!r}: write a name or an address, without '/'")
        for number, name in self.fixed.items():
            if not USER_RESERVED_MIN <= number < ALLOCATED_MIN:
                raise InvalidError(
                    f"fixed identity {number}={name}: numbers are {USER_RESERVED_MIN} "
                    f"to {ALLOCATED_MIN - 1}"
                )
            if any(name == identity.label.key for identity in ReservedIdentity):
                raise InvalidError(f"fixed identity {number}={name}: {name!r} is reserved already")
        if len(set(self.fixed.values())) != len(self.fixed):
            raise InvalidError("fixed identities: two numbers have the same name")


class IdentityAllocator(Closeable):
    """Reference-counted numbers for sets of labels; safe under threads.

    >>> with IdentityAllocator() as allocator:
    ...     web = allocator.allocate(["k8s:app=web"])
    ...     web.id >= 256, allocator.allocate(["k8s:app=web"]) == web
    (True, True)

    Without a `store` the numbers are this process's own; a store that is passed stays the
    caller's to close. Each allocator of a store needs a node name of its own. Call `poll` to hear
    of what other nodes did, and `refresh` every few minutes.
    """

    def __init__(
        self, store: Store | None = None, settings: AllocatorSettings | None = None
    ) -> None:
        self.settings = settings if settings is not None else AllocatorSettings()
        self._lock = threading.RLock()
        self._polling = threading.Lock()
        self._own_store: Store | None = None
        if store is None:
            store = self._own_store = MemoryStore()
        cluster = ClusterRange(self.settings.cluster_id, self.settings.max_clusters)
        self._shared = SharedNumbers(store, self.settings.node, cluster.numbers)
        self._local = {scope: LocalNumbers(scope.numbers) for scope in _LOCAL_SCOPES}
        self._static = _static_identities(self.settings)
        self._well_known = (
            well_known_identities(self.settings.cluster) if self.settings.well_known else {}
        )
        self._fixed = {name: number for number, name in self.settings.fixed.items()}
        self._observers: list[Observer] = []
        #: Changes of other nodes that an observer refused, by key; told again by the next `poll`.
        self._refused: dict[str, Event] = {}
        self._closed = False

    # use

    def allocate(self, labels: LabelsLike, previous: int | None = None) -> Identity:
        """The identity of `labels`, with one more reference; give it back with `release`.

        `previous` is the number that the labels had before a restart; in a local scope they get
        it again if it is free. Raises LabelError for labels that can have no identity,
        ExhaustedError when the range is used up, StateError when the store fails, and what an
        observer raises; then nothing is allocated.
        """
        wanted = Labels.parse(labels)
        with self._open():
            fixed = self._fixed_identity(wanted)
            if fixed is not None:
                return fixed
            scope = scope_for_labels(wanted)
            if scope is Scope.GLOBAL:
                identity, new = self._shared.allocate(wanted)
            else:
                identity, new = self._local[scope].allocate(wanted, previous)
            if new:
                self._introduce(identity)
            return identity

    def release(self, identity: Identity) -> bool:
        """Drop one reference; whether it was the last here.

        A local number then goes at once; a global one stays its labels' until it is collected.
        Raises NotFoundError where `identity` is not allocated here.
        """
        with self._open():
            if self._static.get(identity.id) is not None:
                return False
            scope = Scope.of(identity.id)
            released = (
                self._shared.release(identity.labels)
                if scope is Scope.GLOBAL
                else self._local[scope].release(identity.labels)
            )
            if released is None:
                raise NotFoundError(
                    f"identity {identity} is not in use here; was it released twice?"
                )
            if released[1] and scope is not Scope.GLOBAL:
                self._announce([], [released[0]])
            return released[1]

    def withhold(self, numbers: Iterable[int]) -> None:
        """Keep local numbers of the run before for those who ask with `previous`."""
        with self._open():
            for number in numbers:
                for local in self._local.values():
                    if number in local:
                        local.withhold(number)

    def give_back(self, numbers: Iterable[int]) -> None:
        """End the withholding of numbers that nobody asked for."""
        with self._open():
            for number in numbers:
                for local in self._local.values():
                    local.give_back(number)

    # what is known

    def get(self, number: int) -> Identity | None:
        """The identity of a number, or None."""
        with self._open():
            if number in self._static:
                return self._static[number]
            local = next((n for n in self._local.values() if number in n), None)
            return local.get(number) if local is not None else self._shared.get(number)

    def find(self, labels: LabelsLike) -> Identity | None:
        """The identity that `labels` have already, or None; takes no reference."""
        wanted = Labels.parse(labels)
        with self._open():
            fixed = self._fixed_identity(wanted)
            if fixed is not None:
                return fixed
            scope = scope_for_labels(wanted)
            return (
                self._shared.find(wanted)
                if scope is Scope.GLOBAL
                else self._local[scope].find(wanted)
            )

    def identities(self) -> list[Identity]:
        """All that are known, sorted by number: reserved, this node's, and other nodes'."""
        with self._open():
            return sorted(self._all())

    def __iter__(self) -> Iterator[Identity]:
        return iter(self.identities())

    def __len__(self) -> int:
        return len(self.identities())

    # changes

    def observe(self, observer: Observer) -> Callable[[], None]:
        """Tell `observer` of all identities now and of each change from now on.

        It is called under the allocator's lock, so it hears changes in order and must not
        wait for another thread that allocates. Returns a function that ends it.
        """
        with self._open():
            observer(sorted(self._all()), [])
            self._observers.append(observer)

        def cancel() -> None:
            with self._lock:
                if observer in self._observers:
                    self._observers.remove(observer)

        return cancel

    def poll(self, timeout: float = 0.0) -> int:
        """Take in what other nodes changed, waiting `timeout` seconds for the first; how much.

        Raises what an observer raises; the identities that came are then as if they had not, and
        the next call tells of them again.
        """
        with self._polling:
            events = self._shared.watch.poll(0.0 if self._refused else timeout)
            with self._open():
                news = self._refused | {event.key: event for event in events}
                added, removed = self._shared.apply(news.values())
                self._refused = {}
                try:
                    self._announce(added, removed)
                except BaseException:
                    self._refused = news
                    self._shared.forget(added)
                    self._announce([], [*removed, *added])
                    raise
                return len(added) + len(removed)

    def refresh(self) -> None:
        """Write again what the store may have lost of this node's use; for a timer."""
        with self._open():
            self._shared.refresh()

    def close(self) -> None:
        """Stop using all identities; a second call does nothing."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._observers.clear()
                self._shared.close()
                if self._own_store is not None:
                    self._own_store.close()

    def __repr__(self) -> str:
        return f"<IdentityAllocator node {self.settings.node}, {len(self._shared)} global>"

    @contextmanager
    def _open(self) -> Iterator[None]:
        with self._lock:
            if self._closed:
                raise ClosedError("the allocator was closed")
            yield

    def _all(self) -> Iterator[Identity]:
        return itertools.chain(self._static.values(), self._shared, *self._local.values())

    def _announce(self, added: Sequence[Identity], removed: Sequence[Identity]) -> None:
        """Tell every observer, also those behind one that raises; then raise what the first did."""
        if not (added or removed):
            return
        failures = []
        for observer in tuple(self._observers):
            try:
                observer(added, removed)
            except Exception as error:
                failures.append(error)
        for further in failures[1:]:
            _log.error("an observer of identities failed too", exc_info=further)
        if failures:
            raise failures[0]

    def _introduce(self, identity: Identity) -> None:
        """Announce what was just allocated; if an observer raises, it is as if it never was.

        An identity that some observer does not know would be judged by rules for anybody.
        """
        try:
            self._announce([identity], [])
        except BaseException:
            scope = Scope.of(identity.id)
            if scope is Scope.GLOBAL:
                self._shared.disown(identity)
            else:
                self._local[scope].release(identity.labels)
            self._announce([], [identity])
            raise

    def _fixed_identity(self, labels: Labels) -> Identity | None:
        if not labels:
            raise LabelError('no labels: an identity needs at least one; write ["k8s:app=web"]')
        number = reserved_id_for_labels(
            labels, self._fixed, self._well_known, self.settings.nodes_have_labels
        )
        if number is not None and number in self._static:
            return self._static[number]
        if not self.settings.nodes_have_labels or labels != ReservedIdentity.REMOTE_NODE.labels:
            self._refuse_unknown_reserved(labels)
        return None

    def _refuse_unknown_reserved(self, labels: Labels) -> None:
        if len(labels) == 1 and labels.from_source(SOURCE_RESERVED):
            known = [str(label) for i in self._static.values() for label in i.labels]
            raise LabelError(
                f"label {labels}: no such reserved identity{nearest(str(labels), known)}"
            )


_LOCAL_SCOPES = (Scope.LOCAL, Scope.REMOTE_NODE)


def _static_identities(settings: AllocatorSettings) -> dict[int, Identity]:
    """The identities that exist without being allocated."""
    static = {int(i): Identity(i, i.labels) for i in ReservedIdentity if i.given_to_traffic}
    for number, name in settings.fixed.items():
        static[number] = Identity(number, Labels((Label(SOURCE_RESERVED, name),)))
    if settings.well_known:
        for labels, number in well_known_identities(settings.cluster).items():
            static[number] = Identity(number, labels)
    return static
