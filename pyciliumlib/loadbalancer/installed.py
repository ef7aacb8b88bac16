"""What services and backends have in the maps, and a change of it on its way."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from attrs import define, field, frozen

from pyciliumlib.loadbalancer.backend import Backend, BackendState
from pyciliumlib.loadbalancer.mirror import Undo
from pyciliumlib.loadbalancer.rows import Entry, Place, RangeRow, Spot
from pyciliumlib.loadbalancer.service import Service, ServiceKey
from pyciliumlib.loadbalancer.slots import Slots

if TYPE_CHECKING:
    import numpy.typing as npt


@frozen
class Numbered:
    """A frontend's number in the maps, and the revision under which it is this one's."""

    number: int
    revision: int


Numbering = dict[Place, Numbered]


@define(eq=False)
class Installed:
    """What a service has in the maps."""

    service: Service
    id: int
    revision: int = 0
    ranges: int = 0
    range_rows: list[RangeRow] = field(factory=list)
    entries: dict[Spot, Entry] = field(factory=dict)
    reserved: tuple[Spot, ...] = ()  # its own without an entry, while a redirect leads nowhere
    frontends: Numbering = field(factory=dict)
    members: dict[int, int] = field(factory=dict)
    slots: list[Slots | None] = field(factory=list)
    bits: npt.NDArray[np.int64] = field(factory=lambda: np.empty(0, np.int64))


@define(eq=False)
class Held:
    """A backend's number, and in which state each service that has it sees it."""

    id: int
    backend: Backend
    revision: int
    users: dict[ServiceKey, BackendState] = field(factory=dict)

    @property
    def state(self) -> BackendState:
        """One for all services: the one that takes least."""
        return max(self.users.values(), default=BackendState.MAINTENANCE)


@define
class Applied:
    """What a change has made of numbers.

    Those of new backends, those that are nobody's now, and pairs of service and backend that
    belong together no more.
    """

    backends: dict[int, Backend]
    unused_backends: list[int]
    unused_services: list[int]
    parted: list[tuple[int, int]]


@define(eq=False)
class Change:
    """A change on its way: what it has taken, and what would undo what it has written."""

    fresh: dict[ServiceKey, Installed] = field(factory=dict)
    gone: dict[ServiceKey, Installed] = field(factory=dict)
    held: dict[bytes, Held] = field(factory=dict)
    backend_ids: list[int] = field(factory=list)
    service_ids: list[int] = field(factory=list)
    range_ids: list[int] = field(factory=list)
    frontend_numbers: list[int] = field(factory=list)
    parted: list[tuple[int, int]] = field(factory=list)
    undo: Undo = field(factory=list)
