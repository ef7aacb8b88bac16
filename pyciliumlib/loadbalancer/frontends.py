"""Frontends by number, for programs that give answers the service's address back.

Layout: `bpf/lib/lb_frontend.h`. A number's revision only ever grows, whoever has it, and so does
that of number 0, which counts every change.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from attrs import evolve

from pyciliumlib.flow import FlowService
from pyciliumlib.loadbalancer.columns import FrontendRow, frontend_columns
from pyciliumlib.loadbalancer.installed import Installed, Numbered, Numbering
from pyciliumlib.loadbalancer.mirror import Mirror, Undo
from pyciliumlib.loadbalancer.numbers import Clock, Numbers
from pyciliumlib.loadbalancer.rows import Entry, Place, Spot
from pyciliumlib.loadbalancer.service import ServiceKey
from pyciliumlib.types import MapLike, address_from_bytes


class FrontendTable:
    """Keeps `lb_frontends`; without that map every frontend has number 0."""

    def __init__(self, rows: MapLike | None, clock: Clock) -> None:
        self._rows = Mirror(rows, "frontends by number", array=True) if rows is not None else None
        last = rows.max_entries - 1 if rows is not None else 0
        self._numbers = Numbers(1, last, "frontends by number", clock)
        self._revisions: dict[int, int] = {}
        self._owners: dict[int, tuple[ServiceKey, Place]] = {}
        self._changes = 0

    @property
    def mirrors(self) -> tuple[Mirror, ...]:
        """What it writes."""
        return () if self._rows is None else (self._rows,)

    def load(self, entries: Iterable[Entry]) -> None:
        """Before the first change: go on with the numbers that these entries have.

        A number whose entry and row differ, as after a change that was cut short, gets another
        revision when its service is written.
        """
        if self._rows is None:
            return
        keys, values = self._rows.load()
        self._revisions = dict(zip(keys.tolist(), values["revision"].tolist(), strict=True))
        self._changes = self._revisions.pop(0, 0)
        taken = set()
        for entry in entries:
            if entry.frontend:
                taken.add(entry.frontend)
                row = self._revisions.get(entry.frontend, 0)
                if entry.frontend_revision != row:
                    self._revisions[entry.frontend] = max(entry.frontend_revision, row) + 1
        self._numbers.claim(taken)

    def found(self, entries: Mapping[Spot, Entry]) -> Numbering:
        """The numbers that a service's frontends have, by what `load` has read."""
        return {
            spot[:3]: Numbered(entry.frontend, self._revisions.get(entry.frontend, 0))
            for spot, entry in entries.items() if entry.frontend
        }  # fmt: skip

    def number(
        self, spots: Mapping[Spot, Entry], old: Installed | None, taken: list[int], *, anew: bool
    ) -> Numbering:
        """The numbers of a service's frontends: those it has, and for new ones others.

        With `anew`, flows that came by them are decided again. Appends to `taken` what it takes.
        Raises MapFullError.
        """
        if self._rows is None:
            return {}
        had = old.frontends if old else {}
        made: Numbering = {}
        for place in dict.fromkeys(spot[:3] for spot in spots):
            known = had.get(place)
            if known is None:
                taken.append(self._numbers.take())
            number = known.number if known else taken[-1]
            revision = self._revisions.get(number, 0) + (anew or known is None)
            made[place] = Numbered(number, revision)
        return made

    def write(self, fresh: Iterable[Installed], leaving: Iterable[Installed], undo: Undo) -> int:
        """Write the rows of services that come or change, after the entries; how many differ."""
        if self._rows is None:
            return 0
        rows: dict[int, FrontendRow] = {
            found.number: (place, evolve(found, revision=found.revision + 1), None)
            for one in leaving for place, found in one.frontends.items()
        }  # fmt: skip
        rows.update(
            {numbered.number: (place, numbered, made)
             for made in fresh for place, numbered in made.frontends.items()}
        )  # fmt: skip
        return self._rows.put(*frontend_columns(self._rows, rows), undo)

    def service(self, number: int) -> FlowService | None:
        """Whose a number is, or was until lately."""
        if number not in self._owners:
            return None
        key, (address, port, _) = self._owners[number]
        return FlowService(key.namespace, key.name, address_from_bytes(address), port)

    def bump(self) -> None:
        """After all else: let every flow that came by a frontend look whether its has changed."""
        if self._rows is not None:
            self._changes += 1
            keys, values = self._rows.new_rows(1)
            values["revision"] = self._changes
            self._rows.put(keys, values, [])

    def commit(self, fresh: Iterable[Installed], leaving: Iterable[Installed]) -> None:
        """All is written: the numbers that nobody has any more are free again."""
        now: dict[int, int] = {}
        for made in fresh:
            for place, found in made.frontends.items():
                now[found.number] = found.revision
                self._owners[found.number] = made.service.key, place
        for one in leaving:
            for found in one.frontends.values():
                if found.number not in now:
                    self._revisions[found.number] = found.revision + 1
                    self._numbers.give_back(found.number)
        self._revisions.update(now)

    def give_up(self, fresh: Iterable[Installed], taken: Iterable[int]) -> None:
        """The change failed. A program may have met its revisions, so the next ones differ."""
        for made in fresh:
            self._revisions.update({one.number: one.revision for one in made.frontends.values()})
        for number in taken:
            self._revisions[number] = self._revisions.get(number, 0) + 1
            self._numbers.give_back(number)
