"""The endpoints' policies in the kernel: maps in two generations, switched by one cell.

See docs/design.md, "Policy generations", and `bpf/lib/policy.h` for the programs' side.
"""

from __future__ import annotations

import errno
import functools
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Concatenate, Final, ParamSpec, TypeAlias, TypeVar

import numpy as np
from attrs import evolve

from pyciliumlib.errors import ExhaustedError, ExistsError, MapFullError, NotFoundError
from pyciliumlib.kernel import Map
from pyciliumlib.policy import table
from pyciliumlib.policy.entries import as_bytes
from pyciliumlib.policy.nodes import NOTHING, PolicyNodes, Roots

if TYPE_CHECKING:
    import numpy.typing as npt

    from pyciliumlib.policy.entries import PolicyEntries
    from pyciliumlib.policy.grouped import GroupedEntries

#: Keys and values of an endpoint's map: identities and `struct policy_roots`.
_Rows: TypeAlias = "tuple[npt.NDArray[Any], npt.NDArray[Any]]"

#: The cell of revisions that counts every endpoint's changes; bumped after the endpoint's own.
_ANY_CHANGE: Final = 0
#: Slot 0 belongs to no endpoint; writing it makes the kernel wait for running programs.
_BARRIER_SLOT: Final = 0
#: Maps made ahead, so that adding an endpoint does not wait for the kernel's grace period.
_POOL: Final = 16
#: Rows of a map that is made ahead, and of every other at least. It grows when it is full.
_ROOM: Final = 1024


_P = ParamSpec("_P")
_R = TypeVar("_R")


def _alone(
    method: Callable[Concatenate[PolicyTries, _P], _R],
) -> Callable[Concatenate[PolicyTries, _P], _R]:
    """Let no other thread change the tries meanwhile."""

    @functools.wraps(method)
    def locked(self: PolicyTries, /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        with self._lock:
            return method(self, *args, **kwargs)

    return locked


class PolicyTries:
    """Every endpoint's map of identities to tries: filled in place for an endpoint that is new,
    replaced together for all others.

    Owns the maps it makes and none of those it is given. Any thread may call, since endpoints come
    and go while the allocator's observers write: each call has all of it for itself. Another
    process, or another of these on the same maps, may not write at the same time.
    """

    def __init__(self, maps: Mapping[str, Map], max_endpoints: int, entries: int) -> None:
        """`maps` are those of a loaded object; `entries` is how many identities a policy may be
        about, and how many entries each may have."""
        self._lock = threading.RLock()
        self._policies = maps["policies"]
        self._generation = maps["policy_generation"]
        self._revisions = maps["policy_rev"]
        self._template = evolve(maps["policy_template"].spec, max_entries=entries)
        self._max_endpoints = max_endpoints
        self._nodes = PolicyNodes(maps["policy_nodes"], maps["policy_entries"])
        self._tries: dict[int, Map] = {}
        #: By endpoint: the tries of any identity.
        self._anyone: dict[int, Roots] = {}
        self._spare: list[int] = []
        #: Endpoints whose slot in the half that is not in force holds an older map.
        self._behind: set[int] = set()
        #: Endpoints whose slots are empty, so that the programs drop all of their packets.
        self._locked: set[int] = set()
        self._adopt()

    @_alone
    def close(self) -> None:
        """Let go of the maps; the kernel keeps those that its maps hold."""
        for trie in self._tries.values():
            trie.close()
        self._tries.clear()

    # ------------------------------------------------------------------ endpoints come and go

    @_alone
    def allocate(self) -> int:
        """An endpoint id whose map is in place and empty: everything is denied until it is filled.

        Raises ExhaustedError when all ids are taken.
        """
        if not self._spare:
            self._refill()
        return self._spare.pop(0)

    @_alone
    def claim(self, endpoint: int) -> None:
        """Take a given id, as after a restart.

        One whose slots are empty was locked down; it stays closed, with a map that denies all.
        """
        if endpoint not in self._tries:
            self._make([endpoint])
        if endpoint in self._spare:
            self._spare.remove(endpoint)

    @_alone
    def release(self, endpoint: int) -> None:
        """Empty the map of an endpoint that is gone, and let its id be used again."""
        trie = self._trie(endpoint)
        self._empty(endpoint)
        if endpoint in self._locked:
            self._write({**self._slots(0, {endpoint: trie}), **self._slots(1, {endpoint: trie})})
            self._locked.remove(endpoint)
        self.bump([endpoint])
        self._spare.append(endpoint)

    def _refill(self) -> None:
        free = [n for n in range(1, self._max_endpoints) if n not in self._tries][:_POOL]
        if not free:
            raise ExhaustedError(
                f"all {self._max_endpoints - 1} endpoint ids are taken; raise max_endpoints"
            )
        self._make(free)

    def _make(self, endpoints: Iterable[int]) -> None:
        """Empty maps for ids that have none."""
        made: dict[int, Map] = {}
        try:
            for endpoint in endpoints:
                made[endpoint] = self._create(0)
            self._write({**self._slots(0, made), **self._slots(1, made)})
        except BaseException:
            for trie in made.values():
                trie.close()
            raise
        self._tries.update(made)
        self._spare.extend(made)

    @_alone
    def clear_spare(self) -> None:
        """Empty the maps of ids that nobody has: a crash may have left something in them."""
        for endpoint in self._spare:
            self._empty(endpoint)

    def _empty(self, endpoint: int) -> None:
        self._trie(endpoint).clear()
        self._anyone.pop(endpoint, None)

    # ------------------------------------------------------------------ contents

    @_alone
    def read(self, endpoint: int) -> PolicyEntries:
        """What programs find of the endpoint's policy now."""
        return table.read(self._trie(endpoint), self._nodes)

    @_alone
    def misplaced(self, endpoint: int) -> bool:
        """Whether a slot of the endpoint holds anything but its map."""
        trie = self._trie(endpoint)
        slots = [slot for half in (0, 1) for slot in self._slots(half, {endpoint: trie})]
        return any(self._policies.get(slot) != trie.info.id for slot in slots)

    @_alone
    def fill(self, endpoint: int, policy: GroupedEntries) -> None:
        """Write the policy of an endpoint that no packet reaches yet, whose map is empty.

        Raises MapFullError; what was written may then stay until `release`.
        """
        rows = self._rows({endpoint: policy})[endpoint]
        if len(rows[0]) > self._trie(endpoint).max_entries:
            self._replace({endpoint: rows})
        else:
            self._trie(endpoint).update_batch(*rows)
            self._use(endpoint, rows)

    @_alone
    def add(self, endpoint: int, identities: GroupedEntries) -> None:
        """Write all entries of identities; each one's come, or are replaced, at one moment.

        A new row is written in place. One that differs is never written over, since a program that
        looks for it meanwhile may miss it and judge as any identity is judged: the endpoint gets
        another map, as by `replace`. Raises MapFullError, with some of them written.
        """
        if not len(identities.members):
            return
        trie = self._trie(endpoint)
        keys, values = (column[1:] for column in self._rows({endpoint: identities})[endpoint])
        values["any"] = self._anyone.get(endpoint, NOTHING)
        rows = np.ascontiguousarray(keys), values.view(trie.value_dtype)
        if endpoint in self._locked:  # no program reads it
            trie.update_batch(*rows)
        else:
            self._add_rows(endpoint, rows)

    def _add_rows(self, endpoint: int, rows: _Rows) -> None:
        trie = self._trie(endpoint)
        try:
            trie.update_batch(*rows, mode="new")
            return
        except MapFullError:
            if trie.max_entries > self._template.max_entries:
                raise
        except ExistsError:
            held = trie.lookup_batch()
            # a row has its key in it
            other = ~np.isin(as_bytes(rows[1]), as_bytes(held[1]))
            if not np.any(np.isin(rows[0][other], held[0])):
                self._add_rows(endpoint, (rows[0][other], rows[1][other]))
                return
        self._write_anew(endpoint, rows)

    def _write_anew(self, endpoint: int, more: _Rows) -> None:
        """The same with `more` rows, in another map."""
        held = self._trie(endpoint).lookup_batch()
        kept = ~np.isin(held[0], more[0])
        rows = tuple(np.concatenate([h[kept], m]) for h, m in zip(held, more, strict=True))
        self._replace({endpoint: rows})  # type: ignore[dict-item]  # a pair, as `held` is

    @_alone
    def discard(self, endpoint: int, identities: npt.NDArray[np.uint32]) -> None:
        """Delete the rows of identities in place, that no address has any more."""
        if len(identities):
            self._trie(endpoint).delete_batch(identities)

    @_alone
    def lock_down(self, endpoint: int) -> None:
        """Let every packet of an endpoint be dropped (ENDPOINT_NOT_READY), until it is replaced.

        For one whose map cannot hold what it should: without an entry that denies, a packet might
        pass.
        """
        self._locked.add(endpoint)
        self._hide([endpoint], halves=(0, 1))
        self.bump([endpoint])

    @property
    @_alone
    def locked(self) -> frozenset[int]:
        """The endpoints that are locked down."""
        return frozenset(self._locked)

    def _hide(self, endpoints: Iterable[int], halves: Iterable[int]) -> None:
        for half in halves:
            for slot in self._slots(half, {n: self._trie(n) for n in endpoints}):
                self._policies.delete(slot)

    @_alone
    def replace(self, policies: Mapping[int, GroupedEntries]) -> None:
        """Give several endpoints new policies at one moment.

        When this returns, every packet is decided under the new ones. Raises MapFullError, with
        nothing changed, if a policy has more entries than it may. A KernelError after the switch
        leaves the new ones in force; flows of these endpoints may then be decided again only at
        the next call.
        """
        for endpoint in policies:
            self._trie(endpoint)
        if policies:
            self._replace(self._rows(policies))

    def _replace(self, policies: Mapping[int, _Rows]) -> None:
        now = self.generation
        if self._behind:
            self._catch_up(now)
        made: dict[int, Map] = {}
        try:
            for endpoint, rows in policies.items():
                made[endpoint] = self._create(len(rows[0]))
                made[endpoint].update_batch(*rows)
            self._write(self._slots(now + 1, made))
        except BaseException:
            self._behind.update(made)
            try:
                self._catch_up(now)
            finally:
                for trie in made.values():
                    trie.close()
            raise
        self._generation[0] = now + 1
        # In force from here on: what is left must happen, now or, if it fails, at the next call.
        self._locked.difference_update(made)
        for endpoint, trie in made.items():
            self._tries[endpoint].close()
            self._tries[endpoint] = trie
            self._use(endpoint, policies[endpoint])
        self._behind.update(made)
        self.bump(made)
        self._wait_for_programs()
        self._write(self._slots(now, made))
        self._behind.difference_update(made)

    def _catch_up(self, now: int) -> None:
        """Put the maps in force into the other half too: a replacement that failed did not."""
        behind = {endpoint: self._tries[endpoint] for endpoint in self._behind - self._locked}
        self.bump(behind)
        self._wait_for_programs()
        self._write(self._slots(now + 1, behind))
        self._hide(self._behind & self._locked, halves=[now + 1])
        self._behind.clear()

    @_alone
    def bump(self, endpoints: Iterable[int]) -> None:
        """Make every flow of these endpoints be decided again on its next packet."""
        for cell in (*endpoints, _ANY_CHANGE):
            self._revisions[cell] = self._revisions[cell] + 1

    @property
    def generation(self) -> int:
        """How often policies were replaced; its lowest bit is the half in force."""
        return int(self._generation[0])

    # ------------------------------------------------------------------ rows

    def _rows(self, policies: Mapping[int, GroupedEntries]) -> dict[int, _Rows]:
        """Rows whose tries are in the kernel; MapFullError where a policy is too large."""
        most = self._template.max_entries
        for endpoint, policy in policies.items():
            longest = max(map(len, (policy.anyone, *policy.templates)))
            if longest > most or len(policy.members) > most:
                raise MapFullError(
                    errno.ENOSPC,
                    f"the policy of endpoint {endpoint} is about {len(policy.members)} identities, "
                    f"with up to {longest} entries each; its map takes {most} entries, make it "
                    "larger",
                )
        try:
            return self._make_rows(policies)
        except MapFullError:
            self._collect()
            return self._make_rows(policies)

    def _make_rows(self, policies: Mapping[int, GroupedEntries]) -> dict[int, _Rows]:
        try:
            made = {endpoint: self._nodes.rows(policy) for endpoint, policy in policies.items()}
            self._nodes.flush()
        except BaseException:
            self._nodes.forget_new()
            raise
        dtype = self._template.value.dtype
        return {endpoint: (keys, values.view(dtype)) for endpoint, (keys, values) in made.items()}

    def _collect(self) -> None:
        """Let the nodes be used again that no endpoint's rows lead to."""
        if self._behind:
            self._catch_up(self.generation)
        self._wait_for_programs()
        self._nodes.keep(self._cells())

    def _cells(self) -> set[int]:
        """Where the tries of all rows begin."""
        rows = (trie.lookup_batch()[1] for trie in self._tries.values())
        found: set[int] = set()
        for values in rows:
            found.update(np.unique(values["own"]).tolist(), np.unique(values["any"]).tolist())
        return found

    def _use(self, endpoint: int, rows: _Rows) -> None:
        """Know the rows that are in force."""
        keys, values = rows
        of_anyone = values["any"][keys == 0].tolist()
        self._anyone[endpoint] = tuple(of_anyone[0]) if of_anyone else NOTHING

    def _create(self, rows: int) -> Map:
        """An endpoint's map with room for twice the rows, as far as a policy may have them.

        Least kernel for maps inside that differ in size: 5.10 (commit 134fede4eecf).
        """
        room = min(max(_ROOM, 2 * rows), self._template.max_entries + 1)
        return evolve(self._template, max_entries=room).create()

    # ------------------------------------------------------------------ slots

    def _trie(self, endpoint: int) -> Map:
        try:
            return self._tries[endpoint]
        except KeyError:
            raise NotFoundError(f"there is no endpoint {endpoint}") from None

    def _slots(self, generation: int, tries: Mapping[int, Map]) -> dict[int, Map]:
        half = (generation & 1) * self._max_endpoints
        return {half + endpoint: trie for endpoint, trie in tries.items()}

    def _write(self, slots: Mapping[int, Map]) -> None:
        """Write slots; the kernel has waited for running programs when this returns."""
        keys = np.fromiter(slots, np.uint32, len(slots))
        fds = np.fromiter((trie.fd for trie in slots.values()), np.uint32, len(slots))
        self._policies.update_batch(keys, fds)

    def _wait_for_programs(self) -> None:
        with self._create(0) as nothing:
            self._write({_BARRIER_SLOT: nothing})

    def _adopt(self) -> None:
        """Find the maps that a pinned one holds, and make both halves those in force."""
        half = (self.generation & 1) * self._max_endpoints
        slots = self._policies.lookup_batch()[0].tolist()
        for slot in slots:
            endpoint = slot - half
            if 0 < endpoint < self._max_endpoints:
                self._tries[endpoint] = trie = self._policies.open_inner(slot)
                self._spare.append(endpoint)
                self._use(endpoint, trie.lookup_batch())
        if self._tries:
            self._nodes.adopt(self._cells())
            self._write(self._slots(self.generation + 1, self._tries))
