"""The ipcache as entries of a longest-prefix map, and the cells that tell of its changes.

Layouts are those of `bpf/lib/ipcache.h`: key {prefixlen, addr}, value {identity, flags}. Flows
remember the cells they were decided under: cell 1 for every prefix that is shorter than an
address, cell 2 + addr_hash(addr) % (n - 2) for an address. A cell is bumped after its entry has
changed, so a flow that read the old entry also holds the old cell; and cell 0 after every other,
so that a flow need not look at the others while it stands.
"""

from __future__ import annotations

import contextlib
import errno
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from attrs import frozen

from pyciliumlib.errors import InvalidError, MapFullError, PyCiliumError
from pyciliumlib.identity.cidr import world_identity
from pyciliumlib.identity.ipcache import Change, IPCache, IPCacheEntry
from pyciliumlib.types import MapLike, network_from_key, network_to_key, parse_network
from pyciliumlib.types.addresses import ADDRESS_BITS

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

_ALL_IPV4: Final = parse_network("0.0.0.0/0")
_SHOWN: Final = 20
#: Cells: any change, a change of a prefix, and the first of those for addresses.
_ANY: Final = 0
_PREFIX: Final = 1
_ADDRESS: Final = 2
_Key = tuple[int, bytes]
_Value = tuple[int, int]


@frozen
class IPCachePlan:
    """What makes the map what it should be; empty where it is so already (then false).

    Each maps (prefixlen, 16 bytes) to (identity, flags).
    """

    adds: Mapping[_Key, _Value]
    changes: Mapping[_Key, _Value]
    deletes: Mapping[_Key, _Value]

    def __len__(self) -> int:
        return len(self.adds) + len(self.changes) + len(self.deletes)

    def __str__(self) -> str:
        lines = [
            f"{sign} {network_from_key(*key)} {identity}"
            for sign, part in (("+", self.adds), ("~", self.changes), ("-", self.deletes))
            for key, (identity, _) in part.items()
        ]
        more = [f"... and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
        return "\n".join([*lines[:_SHOWN], *more]) or "nothing to do"


def addr_hash(address: bytes) -> int:
    """The hash of a 16-byte address that `addr_hash` of bpf/lib/addr.h computes."""
    import numpy as np

    return int(_addr_hashes(np.frombuffer(address, np.uint8).reshape(1, 16))[0])


def _addr_hashes(addresses: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint64]:
    """The hashes of an (n, 16) array; halves are read as the CPU reads them."""
    import numpy as np

    halves = np.ascontiguousarray(addresses).view(np.uint64)
    mixed = halves[:, 0] * np.uint64(0x9E3779B97F4A7C15) ^ halves[:, 1]
    return mixed * np.uint64(0xFF51AFD7ED558CCD) >> np.uint64(32)


class IPCacheTable:
    """Keeps a longest-prefix map (`entries`) equal to an ipcache, and bumps `revisions`.

    IPv4 lies inside the 16-byte IPv6 space, so a short IPv6 prefix would cover it. Therefore the
    map always has an entry for all of IPv4: the world's, unless the ipcache has one.
    One process writes the maps at a time. Safe under threads.
    """

    def __init__(self, entries: MapLike, revisions: MapLike, dual_stack: bool = True) -> None:
        if revisions.max_entries <= _ADDRESS:
            raise InvalidError(
                "ipcache revisions need at least 3 cells: any change, prefixes, addresses"
            )
        self._entries = entries
        self._revisions = revisions
        self._floor = {network_to_key(_ALL_IPV4): (int(world_identity(4, ipv6=dual_stack)), 0)}
        self._count: int | None = None  # counting a kernel map means reading it
        self._lock = threading.RLock()

    def plan(self, wanted: Iterable[IPCacheEntry]) -> IPCachePlan:
        """What would make the map hold exactly `wanted`."""
        target = {**self._floor, **{network_to_key(e.prefix): _value(e) for e in wanted}}
        with self._lock:
            present = self._read()
            self._count = len(present)
        return IPCachePlan(
            adds={k: v for k, v in target.items() if k not in present},
            changes={k: v for k, v in target.items() if k in present and present[k] != v},
            deletes={k: v for k, v in present.items() if k not in target},
        )

    def drift(self, wanted: Iterable[IPCacheEntry]) -> IPCachePlan:
        """How the map differs from `wanted`, as the plan that would mend it."""
        return self.plan(wanted)

    def sync(self, wanted: Iterable[IPCacheEntry]) -> IPCachePlan:
        """Make the map hold exactly `wanted`; what was done. Doing it again does nothing."""
        with self._lock:
            plan = self.plan(wanted)
            self.apply(plan)
            return plan

    def apply(self, plan: IPCachePlan) -> None:
        """Carry out a plan: additions and changes, deletions, and then the cells.

        Raises MapFullError, before anything is written, where the additions do not fit.
        """
        with self._lock:
            self._write(plan, self._room_for(plan))

    def _room_for(self, plan: IPCachePlan) -> int:
        """How many entries there will be; MapFullError where the map cannot hold them."""
        count = len(self._entries) if self._count is None else self._count
        if plan.adds and count + len(plan.adds) > self._entries.max_entries:
            raise MapFullError(
                errno.ENOSPC,
                f"ipcache: {len(plan.adds)} new prefixes do not fit into "
                f"{self._entries.max_entries} entries; make the map larger",
            )
        return count + len(plan.adds) - len(plan.deletes)

    def _write(self, plan: IPCachePlan, count: int) -> None:
        self._count = None
        written = {**plan.adds, **plan.changes}
        try:
            if written:
                self._entries.update_batch(self._keys(written), self._values(written.values()))
            if plan.deletes:
                self._entries.delete_batch(self._keys(plan.deletes))
        finally:  # whatever was written, flows must look again
            self._bump([*written, *plan.deletes])
        self._count = count

    def follow(self, cache: IPCache) -> Callable[[], None]:
        """Make the map what `cache` is, and keep it so; returns a function that ends it."""
        first = True

        def listener(changes: Sequence[Change]) -> None:
            nonlocal first
            if first:
                self.sync(change.new for change in changes if change.new is not None)
                first = False
            else:
                self._apply_whole(changes)

        return cache.listen(listener)

    def _apply_whole(self, changes: Sequence[Change]) -> None:
        """Apply changes, or put back what was: the ipcache does not take effect if this raises."""
        plan = self._plan_changes(changes)
        with self._lock:
            count = self._room_for(plan)
            try:
                self._write(plan, count)
            except BaseException:
                back = self._plan_changes(change.inverse for change in reversed(changes))
                with contextlib.suppress(PyCiliumError):  # the first error is the one to tell
                    self._write(back, count - len(plan.adds) + len(plan.deletes))
                raise

    def _plan_changes(self, changes: Iterable[Change]) -> IPCachePlan:
        adds: dict[_Key, _Value] = {}
        altered: dict[_Key, _Value] = {}
        deletes: dict[_Key, _Value] = {}
        for change in changes:
            key = network_to_key(change.prefix)
            old = None if change.old is None else _value(change.old)
            new = None if change.new is None else _value(change.new)
            old, new = old or self._floor.get(key), new or self._floor.get(key)
            if old == new:
                continue
            if new is None:
                deletes[key] = old or (0, 0)
            elif old is None:
                adds[key] = new
            else:
                altered[key] = new
        return IPCachePlan(adds, altered, deletes)

    def _read(self) -> dict[_Key, _Value]:
        keys, values = self._entries.lookup_batch()
        addresses = keys["addr"].tobytes()
        lengths = keys["prefixlen"].tolist()
        pairs = zip(values["identity"].tolist(), values["flags"].tolist(), strict=True)
        return {
            (length, addresses[16 * i : 16 * i + 16]): pair
            for i, (length, pair) in enumerate(zip(lengths, pairs, strict=True))
        }

    def _keys(self, keys: Iterable[_Key]) -> npt.NDArray[Any]:
        import numpy as np

        pairs = list(keys)
        array = np.zeros(len(pairs), self._entries.key_dtype)
        array["prefixlen"] = [length for length, _ in pairs]
        array["addr"] = np.frombuffer(b"".join(a for _, a in pairs), np.uint8).reshape(-1, 16)
        return array

    def _values(self, values: Iterable[_Value]) -> npt.NDArray[Any]:
        import numpy as np

        pairs = list(values)
        array = np.zeros(len(pairs), self._entries.value_dtype)
        array["identity"] = [identity for identity, _ in pairs]
        array["flags"] = [flags for _, flags in pairs]
        return array

    def _bump(self, keys: Sequence[_Key]) -> None:
        if not keys:
            return
        import numpy as np

        wanted = set()
        addresses = [address for length, address in keys if length == ADDRESS_BITS]
        if len(addresses) < len(keys):
            wanted.add(_PREFIX)
        if addresses:
            hashes = _addr_hashes(np.frombuffer(b"".join(addresses), np.uint8).reshape(-1, 16))
            buckets = np.uint64(self._revisions.max_entries - _ADDRESS)
            wanted.update((_ADDRESS + hashes % buckets).tolist())
        for cell in [*wanted, _ANY]:  # most changes touch a few of many cells, so no batch
            self._revisions.update(cell, self._revisions.lookup(cell) + 1)


def _value(entry: IPCacheEntry) -> _Value:
    return entry.identity, entry.flags
