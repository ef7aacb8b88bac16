"""The ipcache: from an address to the identity behind it.

Whoever knows something about a prefix says so as `Metadata` under a resource name. The longest
prefix that covers an address decides; for one prefix the contributions are merged (`metadata`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Final

from attrs import frozen

from pyciliumlib.errors import InvalidError
from pyciliumlib.identity.allocator import IdentityAllocator
from pyciliumlib.identity.labels import Labels, LabelsLike
from pyciliumlib.identity.metadata import Metadata, Resolved, Source, merge
from pyciliumlib.identity.numeric import Identity
from pyciliumlib.types import (
    Address,
    AddressLike,
    Network,
    NetworkLike,
    parse_address,
    parse_network,
)

#: The resource of what is assigned by hand.
ASSIGNED: Final = "assigned"


@frozen
class IPCacheEntry:
    """Who is behind a prefix, and how to get there."""

    prefix: Network
    identity: int
    source: Source = Source.UNSPEC
    tunnel_peer: Address | None = None
    encrypt_key: int = 0
    flags: int = 0

    def __str__(self) -> str:
        return f"{self.prefix} is {self.identity} ({self.source})"


@frozen
class Change:
    """What became of a prefix: None before an addition, None after a removal."""

    prefix: Network
    old: IPCacheEntry | None
    new: IPCacheEntry | None

    @property
    def inverse(self) -> Change:
        """The change that undoes this one."""
        return Change(self.prefix, self.new, self.old)


#: Told of changes under the ipcache's lock. One that raises must have changed nothing.
Listener = Callable[[Sequence[Change]], None]
#: A prefix, the resource that speaks of it, and what it says (None: nothing any more).
Update = tuple[NetworkLike, str, Metadata | None]


class IPCache:
    """Prefixes, what is said about them, and the identity that follows; safe under threads.

    Contributions that carry labels and no number need an `allocator`, which numbers them; the
    reference is dropped only after the listeners have heard that the prefix is another's.
    `ipv4` and `ipv6` say which families the node has.

    >>> cache = IPCache()
    >>> cache.upsert("10.0.0.5", "pod/web", Metadata(Source.LOCAL, identity=5001))
    >>> cache.lookup("10.0.0.5").identity, cache.lookup("10.0.0.6")
    (5001, None)
    """

    def __init__(
        self, allocator: IdentityAllocator | None = None, ipv4: bool = True, ipv6: bool = True
    ) -> None:
        self._allocator = allocator
        self._ipv4 = ipv4
        self._ipv6 = ipv6
        self._lock = threading.RLock()
        self._said: dict[Network, dict[str, Metadata]] = {}
        self._index = _PrefixIndex()
        self._held: dict[Network, Identity] = {}
        self._listeners: list[Listener] = []

    # what is said

    def upsert(self, prefix: NetworkLike, resource: str, metadata: Metadata) -> None:
        """Say something about a prefix, in the place of what `resource` said before."""
        self.update([(prefix, resource, metadata)])

    def assign(
        self,
        prefix: NetworkLike,
        identity: int | None = None,
        labels: LabelsLike | None = None,
        source: Source = Source.API,
    ) -> None:
        """Say by hand who is behind a prefix: the number of an identity, or labels.

        It takes the place of what was assigned before; `remove(prefix, ASSIGNED)` takes it back.
        """
        if (identity is None) == (labels is None):
            raise InvalidError(f"prefix {prefix}: give an identity, or labels")
        said = Metadata(source, Labels.parse(labels or ()), identity)
        self.upsert(prefix, ASSIGNED, said)

    def remove(self, prefix: NetworkLike, resource: str) -> bool:
        """Take back what `resource` said; whether it had said anything."""
        network = parse_network(prefix)
        with self._lock:
            if resource not in self._said.get(network, {}):
                return False
            self.update([(network, resource, None)])
            return True

    def update(self, updates: Iterable[Update]) -> list[Change]:
        """Do many at once, wholly or not at all; what became of the prefixes.

        A contribution gives way only to one of its own resource whose source ranks as high or
        higher; a lower one is ignored. Raises UnitError for a bad prefix, InvalidError for labels
        without an allocator, and what the allocator or a listener raises.
        """
        parsed = [(parse_network(prefix), name, data) for prefix, name, data in updates]
        with self._lock:
            said = self._said_after(parsed)
            taken: dict[Network, Identity] = {}
            try:
                entries = {
                    prefix: self._resolve(prefix, names, taken) for prefix, names in said.items()
                }
                changes = [
                    Change(prefix, old, new)
                    for prefix, new in entries.items()
                    if (old := self._index.get(prefix)) != new
                ]
                self._tell(changes)
            except BaseException:
                self._release(taken.values())
                raise
            self._commit(said, changes)
            dropped = [self._held.pop(prefix) for prefix in said if prefix in self._held]
            self._held.update(taken)
            self._release(dropped)
            return changes

    def _said_after(
        self, updates: Iterable[tuple[Network, str, Metadata | None]]
    ) -> dict[Network, dict[str, Metadata]]:
        said: dict[Network, dict[str, Metadata]] = {}
        for prefix, resource, metadata in updates:
            names = said.setdefault(prefix, dict(self._said.get(prefix, {})))
            before = names.get(resource)
            if metadata is None:
                names.pop(resource, None)
            elif before is None or metadata.source >= before.source:
                names[resource] = metadata
        return said

    def _resolve(
        self, prefix: Network, names: Mapping[str, Metadata], taken: dict[Network, Identity]
    ) -> IPCacheEntry | None:
        resolved = merge(prefix, names, self._ipv4, self._ipv6)
        if resolved is None:
            return None
        number = resolved.identity
        if number is None:
            taken[prefix] = self._allocate(prefix, resolved)
            number = taken[prefix].id
        return IPCacheEntry(
            prefix,
            number,
            resolved.source,
            resolved.tunnel_peer,
            resolved.encrypt_key,
            resolved.flags,
        )

    def _allocate(self, prefix: Network, resolved: Resolved) -> Identity:
        if self._allocator is None:
            raise InvalidError(
                f"prefix {prefix}: labels {resolved.labels} need a number; give the number, or "
                "make the IPCache with an allocator"
            )
        return self._allocator.allocate(resolved.labels)

    def _release(self, identities: Iterable[Identity]) -> None:
        if self._allocator is not None:
            for identity in identities:
                self._allocator.release(identity)

    def _tell(self, changes: Sequence[Change]) -> None:
        told: list[Listener] = []
        if not changes:
            return
        try:
            for listener in self._listeners:
                listener(changes)
                told.append(listener)
        except BaseException:
            inverse = [change.inverse for change in reversed(changes)]
            for listener in reversed(told):
                listener(inverse)
            raise

    def _commit(
        self, said: Mapping[Network, dict[str, Metadata]], changes: Iterable[Change]
    ) -> None:
        for prefix, names in said.items():
            if names:
                self._said[prefix] = names
            else:
                self._said.pop(prefix, None)
        for change in changes:
            self._index.set(change.prefix, change.new)

    # what follows

    def lookup(self, address: AddressLike) -> IPCacheEntry | None:
        """The entry of the longest prefix that covers `address`; None means the world."""
        wanted = parse_address(address)
        with self._lock:
            return self._index.lookup(wanted)

    def get(self, prefix: NetworkLike) -> IPCacheEntry | None:
        """The entry of exactly this prefix, or None."""
        with self._lock:
            return self._index.get(parse_network(prefix))

    def said_about(self, prefix: NetworkLike) -> Mapping[str, Metadata]:
        """What is said about exactly this prefix, by resource."""
        with self._lock:
            return MappingProxyType(dict(self._said.get(parse_network(prefix), {})))

    def entries(self) -> list[IPCacheEntry]:
        """All entries."""
        with self._lock:
            return list(self._index)

    def __len__(self) -> int:
        with self._lock:
            return len(self._index)

    def __iter__(self) -> Iterator[IPCacheEntry]:
        return iter(self.entries())

    def __repr__(self) -> str:
        return f"<IPCache of {len(self)} prefixes>"

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Tell `listener` of all entries now and of each change before it takes effect here.

        Returns a function that ends it.
        """
        with self._lock:
            listener([Change(entry.prefix, None, entry) for entry in self._index])
            self._listeners.append(listener)

        def cancel() -> None:
            with self._lock:
                if listener in self._listeners:
                    self._listeners.remove(listener)

        return cancel


class _PrefixIndex:
    """Entries by prefix, one dict a length, so that a lookup costs a probe per length in use."""

    def __init__(self) -> None:
        self._by_length: dict[int, dict[int, dict[int, IPCacheEntry]]] = {4: {}, 6: {}}

    def get(self, prefix: Network) -> IPCacheEntry | None:
        level = self._by_length[prefix.version].get(prefix.prefixlen, {})
        return level.get(int(prefix.network_address))

    def set(self, prefix: Network, entry: IPCacheEntry | None) -> None:
        lengths = self._by_length[prefix.version]
        level = lengths.setdefault(prefix.prefixlen, {})
        if entry is None:
            level.pop(int(prefix.network_address), None)
        else:
            level[int(prefix.network_address)] = entry
        if not level:
            del lengths[prefix.prefixlen]

    def lookup(self, address: Address) -> IPCacheEntry | None:
        lengths = self._by_length[address.version]
        number, bits = int(address), address.max_prefixlen
        for length in sorted(lengths, reverse=True):
            host_bits = bits - length
            found = lengths[length].get(number >> host_bits << host_bits)
            if found is not None:
                return found
        return None

    def __iter__(self) -> Iterator[IPCacheEntry]:
        for lengths in self._by_length.values():
            for level in lengths.values():
                yield from level.values()

    def __len__(self) -> int:
        return sum(len(level) for lengths in self._by_length.values() for level in lengths.values())
