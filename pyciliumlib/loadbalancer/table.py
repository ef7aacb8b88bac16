"""Services as entries of the load balancer's maps, changed in an order that is always safe.

What comes is written from the end to the beginning (backends, slots, ranges, members, then the
service's entries, then the filter's bits), and what goes is removed the other way, so that a
program that runs meanwhile finds everything that it is led to. Layouts: `bpf/lib/lb.h`.
"""

from __future__ import annotations

import contextlib
import errno
import time
from collections import ChainMap
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from attrs import evolve

from pyciliumlib.errors import ExistsError, MapFullError, NotFoundError, PyCiliumError, nearest
from pyciliumlib.flow import FlowService
from pyciliumlib.loadbalancer import columns, rows, selection
from pyciliumlib.loadbalancer.backend import Backend
from pyciliumlib.loadbalancer.config import LoadBalancerConfig
from pyciliumlib.loadbalancer.documents import LocalNode
from pyciliumlib.loadbalancer.filter import FilterTable
from pyciliumlib.loadbalancer.frontends import FrontendTable
from pyciliumlib.loadbalancer.installed import Applied, Change, Held, Installed
from pyciliumlib.loadbalancer.mirror import Mirror
from pyciliumlib.loadbalancer.numbers import Clock, Numbers
from pyciliumlib.loadbalancer.plan import ServicePlan
from pyciliumlib.loadbalancer.quarantine import Quarantine
from pyciliumlib.loadbalancer.rows import Entry, Spot
from pyciliumlib.loadbalancer.saved import Journal, Saved
from pyciliumlib.loadbalancer.service import Service, ServiceKey
from pyciliumlib.loadbalancer.slots import SlotTable
from pyciliumlib.types import MapLike, address_to_bytes
from pyciliumlib.types.collector import collector_at_rest

_UNTOLD = Journal()


class ServiceTable:
    """Keeps the maps of a load balancer equal to a set of services.

    `maps` are those of `bpf/lib/lb*.h` by name, empty at first (else: `RestoredTable`);
    `lb_frontends` may be missing. One writer at a time; the caller holds the lock.
    """

    def __init__(
        self,
        maps: Mapping[str, MapLike],
        config: LoadBalancerConfig,
        node: LocalNode | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        self._config, self._node = config, node or LocalNode()
        self._own = frozenset(map(address_to_bytes, self._node.addresses))
        self._entries = Mirror(maps["lb_services"], "frontends")
        self._members = Mirror(maps["lb_members"], "backends of services")
        self._ranges = Mirror(maps["lb_ranges"], "source ranges")
        self._backend_rows = Mirror(maps["lb_backends"], "backends", array=True)
        self._revision_rows = Mirror(maps["lb_revisions"], "services", array=True)
        self._filter = FilterTable(maps["lb_filter"])
        self._frontends = FrontendTable(maps.get("lb_frontends"), clock)
        self._mirrors = (
            self._entries, self._members, self._ranges, self._backend_rows, self._revision_rows,
            *self._frontends.mirrors,
        )  # fmt: skip
        self._slots = SlotTable(maps["lb_slots"], config.maglev(), clock)
        last_service = maps["lb_revisions"].max_entries - 1
        last_backend = maps["lb_backends"].max_entries - 1
        self._service_ids = Numbers(1, last_service, "services", clock)
        self._backend_ids = Numbers(1, last_backend, "backends", clock)
        self._range_ids = Numbers(1, (1 << 32) - 1, "sets of source ranges", clock)
        self._installed: dict[ServiceKey, Installed] = {}
        self._wanted: dict[ServiceKey, Service] = {}
        self._in_force: dict[ServiceKey, Service] = {}
        self._quarantine = Quarantine()
        self._backends: dict[int, Backend] = {}
        self._held: dict[bytes, Held] = {}
        self._revisions: dict[int, int] = {}
        self._backend_revisions: dict[int, int] = {}
        self._owners: dict[Spot, ServiceKey] = {}
        self._others: dict[bytes, int] = {}

    # ------------------------------------------------------------------ what is there

    @property
    def services(self) -> Mapping[ServiceKey, Service]:
        """The services as they were given; a view that follows."""
        return MappingProxyType(self._wanted)

    @property
    def in_force(self) -> Mapping[ServiceKey, Service]:
        """The services as the maps hold them: less what is quarantined; a view that follows."""
        return MappingProxyType(self._in_force)

    def serves(self, backend: Backend) -> list[Service]:
        """The services that have the backend, as they were given; NotFoundError if none has."""
        held = self._held.get(backend.key)
        if held is None:
            raise NotFoundError(f"no service has the backend {backend}")
        return [self._wanted[key] for key in held.users]

    def service_id(self, key: ServiceKey) -> int:
        """The number by which the maps know a service."""
        return self._installed[key].id

    def service_of(self, frontend: int) -> FlowService | None:
        """The service behind a frontend's number, as events of the programs give it; or None."""
        return self._frontends.service(frontend)

    @property
    def backends(self) -> Mapping[int, Backend]:
        """The backends by the numbers by which the maps know them; a view that follows."""
        return MappingProxyType(self._backends)

    @property
    def free_slots(self) -> int:
        """Slots that no service has."""
        return self._slots.free

    @property
    def quarantine(self) -> Quarantine:
        """The backends that are in quarantine."""
        return self._quarantine

    def saved(self) -> list[Saved]:
        """The services with their numbers, for a `RestoredTable`."""
        return [
            _saved(self._wanted[key], made, self._held) for key, made in self._installed.items()
        ]

    def differences(self) -> Iterator[str]:
        """How the maps differ from what was written, in words."""
        for mirror in self._mirrors:
            yield from mirror.differences()
        yield from self._slots.differences(self._backends)
        yield from self._filter.differences()

    # ------------------------------------------------------------------ changes

    def plan(self, wanted: Iterable[Service], *, whole: bool = True) -> ServicePlan:
        """What makes the maps hold `wanted`, and with `whole` nothing else."""
        return ServicePlan.between(self._in_force, wanted, whole=whole, quarantine=self._quarantine)

    def plan_deletion(self, keys: Iterable[ServiceKey]) -> ServicePlan:
        """What takes these services away; NotFoundError for one that is not there."""
        deletes = {}
        for key in keys:
            if key not in self._in_force:
                known = map(str, self._in_force)
                raise NotFoundError(f"there is no service {key}{nearest(str(key), known)}")
            deletes[key] = self._in_force[key]
        return ServicePlan({}, deletes, {}, self._quarantine)

    def plan_quarantine(self, backends: Iterable[Backend], *, out: bool) -> ServicePlan:
        """What quarantines these backends in all services or, with `out`, lets them out again.

        Raises NotFoundError for one that no service has.
        """
        listed = list(backends)
        touched = {one.key: one for backend in listed for one in self.serves(backend)}
        after = self._quarantine.adding(listed)
        if out:
            after = self._quarantine.without(backend.key for backend in listed)
        return ServicePlan.between(self._in_force, touched.values(), whole=False, quarantine=after)

    def apply(self, plan: ServicePlan, journal: Journal = _UNTOLD) -> Applied:
        """Carry out a plan, all of it or nothing; who is new, and which numbers are nobody's now.

        Raises ExistsError where two services would have one frontend, MapFullError where
        something does not fit, KernelError, and what `journal` raises.
        """
        with collector_at_rest():
            return self._apply(plan, journal)

    def _apply(self, plan: ServicePlan, journal: Journal) -> Applied:
        change = Change(gone={key: self._installed[key] for key in plan.deletes})
        try:
            self._check_owners(plan)
            for key, (_, service) in plan.upserts.items():
                change.fresh[key] = self._prepare(service, change)
            for key, found in change.gone.items():
                self._let_go(key, found.service.all_backends, change)
            quarantine = plan.quarantine.without(
                key for key, held in change.held.items() if not held.users
            )
            journal.begin(self._to_save(plan, change), quarantine)
            self._write(change)
            journal.commit()
        except BaseException:
            for step in (*reversed(change.undo), self._frontends.bump):
                with contextlib.suppress(PyCiliumError):  # the first error is the one to tell
                    step()
            self._give_up(change)
            journal.abort()
            raise
        new = {held.id: held.backend for key, held in change.held.items() if key not in self._held}
        unused = [held.id for held in change.held.values() if not held.users]
        self._commit(change)
        self._wanted.update(plan.wanted)
        self._quarantine = quarantine
        gone = [found.id for found in change.gone.values()]
        return Applied(new, unused, gone, change.parted)

    def _to_save(self, plan: ServicePlan, change: Change) -> dict[ServiceKey, Saved | None]:
        """What a plan makes of services, also of those that it leaves as they are in force."""
        after: dict[ServiceKey, Saved | None] = dict.fromkeys(change.gone)
        held = ChainMap(change.held, self._held)
        for key, service in plan.wanted.items():
            if key in change.fresh:
                after[key] = _saved(service, change.fresh[key], held)
            elif service is not self._wanted[key] and service != self._wanted[key]:
                after[key] = _saved(service, self._installed[key], held)
        return after

    def _check_owners(self, plan: ServicePlan) -> None:
        touched = plan.upserts.keys() | plan.deletes.keys()
        new: dict[Spot, ServiceKey] = {}
        for key, (_, service) in plan.upserts.items():
            for spot, frontend in self._spots(service).items():
                there = new.get(spot, self._owners.get(spot))
                if there is not None and there != key and (spot in new or there not in touched):
                    raise ExistsError(f"{frontend} of service {key} is {there}'s already")
                new[spot] = key

    def _spots(self, service: Service) -> dict[Spot, Any]:
        here = selection.is_installed(service, self._node)
        return dict(rows.spots(service, self._node)) if here else {}

    # ------------------------------------------------------------------ one service

    def _prepare(self, service: Service, change: Change) -> Installed:
        """Take what the service needs; nothing is written yet."""
        key = service.key
        old = self._installed.get(key)
        made = Installed(service, old.id if old else self._take_service_id(change))
        ids = {backend.key: self._hold(key, backend, change) for backend in service.all_backends}
        if old is not None:
            kept = ids.keys()
            self._let_go(key, (b for b in old.service.all_backends if b.key not in kept), change)
        change.fresh[key] = made  # from here on its slots are given back if all is given up
        self._set_ranges(made, old, change)
        spots = self._spots(service)
        bare = {spot: self._entry(made, frontend, spot[-1], ids)
                for spot, frontend in spots.items() if rows.is_open(service, frontend)}  # fmt: skip
        made.reserved = tuple(spots.keys() - bare.keys())
        made.revision = self._revisions.get(made.id, 0)
        anew = old is None or _decides_anew(old, bare, made)
        made.revision += anew
        made.frontends = self._frontends.number(bare, old, change.frontend_numbers, anew=anew)
        made.entries = {spot: _numbered(entry, spot, made) for spot, entry in bare.items()}
        made.bits = self._filter.bits(rows.filter_needs(bare, self._own))
        return made

    def _take_service_id(self, change: Change) -> int:
        change.service_ids.append(self._service_ids.take())
        return change.service_ids[-1]

    def _set_ranges(self, made: Installed, old: Installed | None, change: Change) -> None:
        networks = made.service.source_ranges
        made.range_rows = rows.range_rows(networks) if networks else []
        if old is not None and old.range_rows == made.range_rows:
            made.ranges = old.ranges
        elif made.range_rows:
            made.ranges = self._range_ids.take()
            change.range_ids.append(made.ranges)

    def _entry(self, made: Installed, frontend: Any, scope: int, ids: dict[Any, int]) -> Entry:
        service, config, direction = made.service, self._config, rows.DIRECTIONS[scope]
        found = selection.takers(service, frontend, direction, self._node)
        takes = 1 << scope if selection.has_two_scopes(service, frontend) else rows.BOTH_SCOPES
        for backend in service.all_backends:
            made.members.setdefault(ids[backend.key], 0)
        for backend in found:
            made.members[ids[backend.key]] |= takes
        how = selection.algorithm(service, frontend, direction, config)
        slots = self._slots.acquire(how, {ids[backend.key]: backend for backend in found})
        made.slots.append(slots)
        checked = scope == rows.EXTERNAL and selection.checks_source(service, frontend, config)
        return Entry(
            id=made.id,
            first=slots.first if slots else 0,
            slots=slots.count if slots else 0,
            ranges=made.ranges if checked else 0,
            affinity=service.affinity_timeout,
            flags=rows.flags_of(service, frontend, direction, config),
        )

    # ------------------------------------------------------------------ backends

    def _staged(self, backend: Backend, change: Change) -> Held:
        """The backend as it will be; what is in force stays as it is until all is written."""
        held = change.held.get(backend.key)
        if held is None:
            known = self._held.get(backend.key)
            if known is not None:
                held = Held(known.id, backend, known.revision, dict(known.users))
            else:
                number = self._backend_ids.take()
                change.backend_ids.append(number)
                held = Held(number, backend, self._backend_revisions.get(number, 0) + 1)
            change.held[backend.key] = held
        return held

    def _hold(self, key: ServiceKey, backend: Backend, change: Change) -> int:
        held = self._staged(backend, change)
        held.users[key] = backend.state
        held.backend = backend
        return held.id

    def _let_go(self, key: ServiceKey, backends: Iterable[Backend], change: Change) -> None:
        for backend in backends:
            self._staged(backend, change).users.pop(key, None)

    # ------------------------------------------------------------------ writing

    def _write(self, change: Change) -> None:
        fresh, gone = change.fresh, change.gone
        before = [self._installed[key] for key in fresh if key in self._installed]
        leaving = [*before, *gone.values()]
        entries = {spot: e for made in fresh.values() for spot, e in made.entries.items()}
        old_spots = [spot for found in leaving for spot in found.entries]
        others = self._others_after(entries, old_spots)
        entries.update(
            {rows.other_ports(address): Entry(0, flags=rows.FLAG_OTHER_PORTS)
             for address, count in others.items() if count}
        )  # fmt: skip
        dead_spots = [spot for spot in old_spots if spot not in entries]
        dead_spots += [rows.other_ports(address) for address, count in others.items() if not count]

        self._put(self._backend_rows, self._backend_columns(change, alive=True), change)
        self._slots.flush()
        self._put(self._ranges, columns.range_columns(self._ranges, fresh.values()), change)
        self._put(self._members, columns.member_columns(self._members, fresh.values()), change)
        self._put(self._entries, columns.entry_columns(self._entries, entries), change)
        self._put(
            self._revision_rows, columns.revision_columns(self._revision_rows, change), change
        )
        stale = self._frontends.write(fresh.values(), leaving, change.undo)
        self._change_filter(fresh.values(), leaving, change)

        self._entries.drop(columns.spot_keys(self._entries, dead_spots), change.undo)
        change.parted = self._dead_members(before, change)
        self._members.drop(columns.member_keys(self._members, change.parted), change.undo)
        kept = {made.ranges for made in fresh.values()}
        dead = [found for found in leaving if found.ranges not in kept]
        self._ranges.drop(columns.range_columns(self._ranges, dead)[0], change.undo)
        stale += self._put(self._backend_rows, self._backend_columns(change, alive=False), change)
        if stale:
            self._frontends.bump()

    def _backend_columns(self, change: Change, *, alive: bool) -> columns.Columns:
        return columns.backend_columns(self._backend_rows, change.held.values(), alive=alive)

    def _dead_members(self, before: Iterable[Installed], change: Change) -> list[tuple[int, int]]:
        dead = [(found.id, backend) for found in change.gone.values() for backend in found.members]
        for found in before:
            kept = change.fresh[found.service.key].members
            dead += [(found.id, backend) for backend in found.members if backend not in kept]
        return dead

    def _put(self, mirror: Mirror, wanted: columns.Columns, change: Change) -> int:
        keys, values = wanted
        missing = mirror.missing(keys)
        if missing > mirror.free:
            raise MapFullError(
                errno.ENOSPC,
                f"{missing} new {mirror.name} do not fit, {mirror.free} more do; load with larger "
                "maps",
            )
        return mirror.put(keys, values, change.undo)

    def _others_after(self, new: Iterable[Spot], old: Iterable[Spot]) -> dict[bytes, int]:
        """How many frontends the addresses that are touched will have."""
        counts: dict[bytes, int] = {}
        for spots, step in ((new, 1), (old, -1)):
            for address in self._guarded(spots):
                present = counts.setdefault(address, self._others.get(address, 0))
                counts[address] = present + step
        return counts

    def _change_filter(
        self, fresh: Iterable[Installed], leaving: Iterable[Installed], change: Change
    ) -> None:
        none = [np.empty(0, np.int64)]
        added = np.concatenate(none + [made.bits for made in fresh])
        removed = np.concatenate(none + [found.bits for found in leaving])
        change.undo.append(lambda: self._filter.change(removed, added))
        self._filter.change(added, removed)

    # ------------------------------------------------------------------ afterwards

    def _give_up(self, change: Change) -> None:
        self._slots.forget_unwritten()
        for made in change.fresh.values():
            for slots in made.slots:
                self._slots.release(slots)
        # a program may have met them for a moment, so the next who has the number differs
        for made in change.fresh.values():
            if made.revision > self._revisions.get(made.id, 0):
                self._revisions[made.id] = made.revision + 1
        for held in change.held.values():
            if held.id in change.backend_ids:
                self._backend_revisions[held.id] = held.revision + 1
        for numbers, taken in (
            (self._backend_ids, change.backend_ids),
            (self._service_ids, change.service_ids),
            (self._range_ids, change.range_ids),
        ):
            for number in taken:
                numbers.give_back(number)
        self._frontends.give_up(change.fresh.values(), change.frontend_numbers)

    def _commit(self, change: Change) -> None:
        """Everything is written: take it down, and give back what nobody has any more."""
        leaving = [found for _, found in self._before(change)] + list(change.gone.values())
        self._frontends.commit(change.fresh.values(), leaving)
        for key, found in [*self._before(change), *change.gone.items()]:
            for slots in found.slots:
                self._slots.release(slots)
            made = change.fresh.get(key)
            if found.ranges and (made is None or made.ranges != found.ranges):
                self._range_ids.give_back(found.ranges)
            self._count_addresses(found.entries, -1)
            for spot in (*found.entries, *found.reserved):
                if self._owners.get(spot) == key:
                    del self._owners[spot]
        for key, found in change.gone.items():
            self._revisions[found.id] = found.revision + 1
            self._service_ids.give_back(found.id)
            del self._installed[key], self._wanted[key], self._in_force[key]
        for key, made in change.fresh.items():
            self._revisions[made.id] = made.revision
            self._owners.update(dict.fromkeys((*made.entries, *made.reserved), key))
            self._count_addresses(made.entries, 1)
            self._installed[key] = made
            self._in_force[key] = made.service
        for backend_key, held in change.held.items():
            if held.users:
                self._held[backend_key] = held
                self._backends[held.id] = held.backend
            else:
                self._backend_revisions[held.id] = held.revision + 1
                self._held.pop(backend_key, None)
                self._backends.pop(held.id, None)
                self._backend_ids.give_back(held.id)

    def _before(self, change: Change) -> list[tuple[ServiceKey, Installed]]:
        return [(key, self._installed[key]) for key in change.fresh if key in self._installed]

    def _count_addresses(self, spots: Iterable[Spot], step: int) -> None:
        for address in self._guarded(spots):
            count = self._others.get(address, 0) + step
            if count:
                self._others[address] = count
            else:
                self._others.pop(address, None)

    def _guarded(self, spots: Iterable[Spot]) -> Iterator[bytes]:
        """The addresses of frontends whose other ports are nobody's; not the node's own."""
        for address, _, _, scope in spots:
            if scope == rows.EXTERNAL and address not in self._own:
                yield address


def _numbered(entry: Entry, spot: Spot, made: Installed) -> Entry:
    """The entry with the numbers and revisions of its service and frontend."""
    known = made.frontends.get(spot[:3])
    return evolve(
        entry,
        revision=made.revision,
        frontend=known.number if known else 0,
        frontend_revision=known.revision if known else 0,
    )


def _saved(service: Service, made: Installed, held: Mapping[bytes, Held]) -> Saved:
    numbers = tuple(held[backend.key].id for backend in service.all_backends)
    return Saved(service, made.id, made.ranges, numbers)


def _decides_anew(old: Installed, entries: Mapping[Spot, Entry], made: Installed) -> bool:
    """Whether flows that are known must be decided again."""
    return (
        old.ranges != made.ranges
        or any(
            spot not in entries or entries[spot].flags != entry.flags
            for spot, entry in old.entries.items()
        )
        or any(backend not in made.members for backend in old.members)
    )
