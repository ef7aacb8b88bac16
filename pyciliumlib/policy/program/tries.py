"""The endpoints' policies in the kernel: tries in two generations, switched by one cell.

See docs/design.md, "Policy generations", and `bpf/lib/policy.h` for the programs' side.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np

from pyciliumlib.errors import ExhaustedError, NotFoundError
from pyciliumlib.kernel import Map

if TYPE_CHECKING:
    import numpy.typing as npt

    from pyciliumlib.kernel import MapSpec

#: Keys and values of one trie: arrays of `struct policy_key` and `struct policy_entry`.
Entries: TypeAlias = "tuple[npt.NDArray[Any], npt.NDArray[Any]]"

#: The cell of revisions that counts every endpoint's changes; bumped after the endpoint's own.
_ANY_CHANGE: Final = 0
#: Slot 0 belongs to no endpoint; writing it makes the kernel wait for running programs.
_BARRIER_SLOT: Final = 0
#: Tries made ahead, so that adding an endpoint does not wait for the kernel's grace period.
_POOL: Final = 16


class PolicyTries:
    """Every endpoint's trie: filled in place for one that is new, replaced together for all others.

    Owns the tries it makes and neither of the maps it is given. One writer at a time; the caller
    holds the lock.
    """

    def __init__(
        self, policies: Map, generation: Map, revisions: Map, template: MapSpec, max_endpoints: int
    ) -> None:
        self._policies = policies
        self._generation = generation
        self._revisions = revisions
        self._template = template
        self._max_endpoints = max_endpoints
        self._tries: dict[int, Map] = {}
        self._spare: list[int] = []
        #: Endpoints whose slot in the half that is not in force holds an older trie.
        self._behind: set[int] = set()
        #: Endpoints whose slots are empty, so that the programs drop all of their packets.
        self._locked: set[int] = set()
        self._adopt()

    def close(self) -> None:
        """Let go of the tries; the kernel keeps those that its maps hold."""
        for trie in self._tries.values():
            trie.close()
        self._tries.clear()

    # ------------------------------------------------------------------ endpoints come and go

    def allocate(self) -> int:
        """An endpoint id whose trie is in place and empty: everything is denied until it is filled.

        Raises ExhaustedError when all ids are taken.
        """
        if not self._spare:
            self._refill()
        return self._spare.pop(0)

    def claim(self, endpoint: int) -> None:
        """Take a given id, as after a restart.

        One whose slots are empty was locked down; it stays closed, with a trie that denies all.
        """
        if endpoint not in self._tries:
            self._make([endpoint])
        if endpoint in self._spare:
            self._spare.remove(endpoint)

    def release(self, endpoint: int) -> None:
        """Empty the trie of an endpoint that is gone, and let its id be used again."""
        trie = self._trie(endpoint)
        trie.delete_batch(trie.lookup_batch()[0])
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
        """Empty tries for ids that have none."""
        made: dict[int, Map] = {}
        try:
            for endpoint in endpoints:
                made[endpoint] = self._template.create()
            self._write({**self._slots(0, made), **self._slots(1, made)})
        except BaseException:
            for trie in made.values():
                trie.close()
            raise
        self._tries.update(made)
        self._spare.extend(made)

    def clear_spare(self) -> None:
        """Empty the tries of ids that nobody has: a crash may have left something in them."""
        for endpoint in self._spare:
            trie = self._trie(endpoint)
            trie.delete_batch(trie.lookup_batch()[0])

    # ------------------------------------------------------------------ contents

    def read(self, endpoint: int) -> Entries:
        """What the endpoint's trie holds now."""
        return self._trie(endpoint).lookup_batch()

    def misplaced(self, endpoint: int) -> bool:
        """Whether a slot of the endpoint holds anything but its trie."""
        trie = self._trie(endpoint)
        slots = [slot for half in (0, 1) for slot in self._slots(half, {endpoint: trie})]
        return any(self._policies.get(slot) != trie.info.id for slot in slots)

    def add(self, endpoint: int, entries: Entries) -> None:
        """Write entries in place: for an endpoint that no packet reaches yet, or for identities
        that no address has yet."""
        keys, values = entries
        if len(keys):
            self._trie(endpoint).update_batch(keys, values)

    def discard(self, endpoint: int, keys: npt.NDArray[Any]) -> None:
        """Delete entries in place, of identities that no address has any more."""
        if len(keys):
            self._trie(endpoint).delete_batch(keys)

    def lock_down(self, endpoint: int) -> None:
        """Let every packet of an endpoint be dropped (ENDPOINT_NOT_READY), until it is replaced.

        For one whose trie cannot hold what it should: without an entry that denies, a packet might
        pass.
        """
        self._locked.add(endpoint)
        self._hide([endpoint], halves=(0, 1))
        self.bump([endpoint])

    @property
    def locked(self) -> frozenset[int]:
        """The endpoints that are locked down."""
        return frozenset(self._locked)

    def _hide(self, endpoints: Iterable[int], halves: Iterable[int]) -> None:
        for half in halves:
            for slot in self._slots(half, {n: self._trie(n) for n in endpoints}):
                self._policies.delete(slot)

    def replace(self, policies: Mapping[int, Entries]) -> None:
        """Give several endpoints new policies at one moment.

        When this returns, every packet is decided under the new ones. Raises MapFullError, with
        nothing changed, if a policy has more entries than a trie holds. A KernelError after the
        switch leaves the new ones in force; flows of these endpoints may then be decided again only
        at the next call.
        """
        if not policies:
            return
        now = self.generation
        if self._behind:
            self._catch_up(now)
        made: dict[int, Map] = {}
        try:
            for endpoint, (keys, values) in policies.items():
                self._trie(endpoint)
                made[endpoint] = self._template.create()
                if len(keys):
                    made[endpoint].update_batch(keys, values)
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
        self._behind.update(made)
        self.bump(made)
        self._wait_for_programs()
        self._write(self._slots(now, made))
        self._behind.difference_update(made)

    def _catch_up(self, now: int) -> None:
        """Put the tries in force into the other half too: a replacement that failed did not."""
        behind = {endpoint: self._tries[endpoint] for endpoint in self._behind - self._locked}
        self.bump(behind)
        self._wait_for_programs()
        self._write(self._slots(now + 1, behind))
        self._hide(self._behind & self._locked, halves=[now + 1])
        self._behind.clear()

    def bump(self, endpoints: Iterable[int]) -> None:
        """Make every flow of these endpoints be decided again on its next packet."""
        for cell in (*endpoints, _ANY_CHANGE):
            self._revisions[cell] = self._revisions[cell] + 1

    @property
    def generation(self) -> int:
        """How often policies were replaced; its lowest bit is the half in force."""
        return int(self._generation[0])

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
        with self._template.create() as nothing:
            self._write({_BARRIER_SLOT: nothing})

    def _adopt(self) -> None:
        """Find the tries that a pinned map holds, and make both halves those in force."""
        half = (self.generation & 1) * self._max_endpoints
        slots = self._policies.lookup_batch()[0].tolist()
        for slot in slots:
            endpoint = slot - half
            if 0 < endpoint < self._max_endpoints:
                self._tries[endpoint] = Map.from_id(self._policies[slot], self._template)
                self._spare.append(endpoint)
        if self._tries:
            self._write(self._slots(self.generation + 1, self._tries))
