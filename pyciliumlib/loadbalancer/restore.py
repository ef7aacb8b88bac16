"""A table over maps that another one has filled: after a restart, or to mend them.

What is in the maps is read once and set beside the services that are meant. From there on it is a
change like any other: what is right is left alone, what differs is written, in the same order.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping

from pyciliumlib.loadbalancer import columns
from pyciliumlib.loadbalancer.config import LoadBalancerConfig
from pyciliumlib.loadbalancer.documents import LocalNode
from pyciliumlib.loadbalancer.found import (
    Entries,
    Members,
    read_backends,
    read_entries,
    read_members,
    read_ranges,
    read_revisions,
)
from pyciliumlib.loadbalancer.installed import Held, Installed
from pyciliumlib.loadbalancer.mirror import Undo
from pyciliumlib.loadbalancer.numbers import Clock
from pyciliumlib.loadbalancer.plan import ServicePlan
from pyciliumlib.loadbalancer.quarantine import Quarantine
from pyciliumlib.loadbalancer.rows import Entry, Spot, other_ports, range_rows
from pyciliumlib.loadbalancer.saved import Saved
from pyciliumlib.loadbalancer.table import ServiceTable
from pyciliumlib.types import MapLike

_NOBODY = Quarantine()


class RestoredTable(ServiceTable):
    """Takes over maps with these services in them; numbers, slots and revisions go on.

    Services that are found as they should be are not touched, so known flows keep their backends.
    Of one that is not, flows are decided again, and keep their backends where it still has them.
    What belongs to no service is removed. Raises MapFullError, KernelError.
    """

    def __init__(
        self,
        maps: Mapping[str, MapLike],
        saved: Iterable[Saved],
        config: LoadBalancerConfig,
        node: LocalNode | None = None,
        quarantine: Quarantine = _NOBODY,
        clock: Clock = time.monotonic,
    ) -> None:
        super().__init__(maps, config, node, clock)
        wanted = list(saved)
        entries, members = read_entries(self._entries), read_members(self._members)
        self._found_ranges = read_ranges(self._ranges)
        self._revisions = read_revisions(self._revision_rows)
        self._filter.load()
        self._frontends.load(entry for found in entries.values() for entry in found.values())
        self._slots.load(
            (entry.first, entry.slots)
            for found in entries.values() for entry in found.values() if entry.slots
        )  # fmt: skip
        self._claim(wanted)
        for one in wanted:
            self._adopt(one, entries[one.id], members[one.id])
        services = {one.service.key: one.service for one in wanted}
        upserts = {key: (None, quarantine.over(service)) for key, service in services.items()}
        self.apply(ServicePlan(upserts, {}, services, quarantine))
        self._slots.settle()
        self._remove_strays(entries, members)

    def _claim(self, wanted: Iterable[Saved]) -> None:
        """Let every number be whose it was."""
        self._service_ids.claim(one.id for one in wanted)
        self._range_ids.claim({one.ranges for one in wanted} - {0})
        backends = {
            backend.key: (number, backend)
            for one in wanted
            for number, backend in zip(one.backends, one.service.all_backends, strict=True)
        }
        self._backend_ids.claim(number for number, _ in backends.values())
        rows = self._found_backends = read_backends(self._backend_rows)
        for key, (number, backend) in backends.items():
            row = rows.get(number)
            revision = row.revision_for(backend) if row else 1
            self._held[key] = Held(number, backend, revision)
        mine = {number for number, _ in backends.values()}
        for number, row in rows.items():
            if number not in mine:  # even: that of one that is gone
                self._backend_revisions[number] = row.revision + row.revision % 2

    def _adopt(self, one: Saved, entries: dict[Spot, Entry], members: dict[int, int]) -> None:
        """Take what the maps hold of a service for what it has; `apply` goes on from there."""
        service = one.service
        there = self._found_ranges.get(one.ranges, [])
        wanted = range_rows(service.source_ranges) if service.source_ranges else []
        cell = self._revisions.get(one.id, 0)
        revisions = {entry.revision for entry in entries.values()}
        if revisions - {cell} or not cell:  # cut short between the two, or before both
            cell = self._revisions[one.id] = max({cell, *revisions}) + 1
        self._installed[service.key] = Installed(
            service,
            one.id,
            revision=cell,
            ranges=one.ranges,
            range_rows=wanted if sorted(there) == sorted(wanted) else there,
            entries=entries,
            frontends=self._frontends.found(entries),
            members=members,
        )
        self._count_addresses(entries, 1)

    def _remove_strays(self, entries: Entries, members: Members) -> None:
        """What a change that was cut short, or somebody else, has left."""
        mine = {made.id for made in self._installed.values()}
        self._void((entries.keys() | members.keys()) - mine - {0})
        undo: Undo = []  # what goes here was never meant to be
        installed = self._installed.values()
        spots = [spot for made in installed for spot in made.entries]
        spots += map(other_ports, self._others)
        pairs = [(made.id, backend) for made in installed for backend in made.members]
        ranges, _ = columns.range_columns(self._ranges, installed)
        for mirror, kept in (
            (self._entries, columns.spot_keys(self._entries, spots)),
            (self._members, columns.member_keys(self._members, pairs)),
            (self._ranges, ranges),
        ):
            mirror.drop(mirror.strays(kept), undo)
        self._filter.mend()
        gone = [
            number
            for number, row in self._found_backends.items()
            if row.revision % 2 and number not in self._backends
        ]
        keys, values = self._backend_rows.new_rows(len(gone))
        keys[:] = gone
        values["revision"] = [self._backend_revisions[number] for number in gone]
        self._backend_rows.put(keys, values, undo)

    def _void(self, services: Iterable[int]) -> None:
        """Let flows of these numbers be decided again."""
        after = {number: self._revisions.get(number, 0) + 1 for number in services}
        self._revisions.update(after)
        keys, values = self._revision_rows.new_rows(len(after))
        keys[:], values[:] = list(after), list(after.values())
        self._revision_rows.put(keys, values, [])
