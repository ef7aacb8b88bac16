"""What maps hold that another table has filled, sorted by whose it is."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

from attrs import frozen

from pyciliumlib.loadbalancer.backend import Backend
from pyciliumlib.loadbalancer.columns import ENTRY
from pyciliumlib.loadbalancer.mirror import Mirror
from pyciliumlib.loadbalancer.rows import Entry, RangeRow, Spot
from pyciliumlib.types import address_to_bytes

if TYPE_CHECKING:
    import numpy.typing as npt

Entries = dict[int, dict[Spot, Entry]]
Members = dict[int, dict[int, int]]
Ranges = dict[int, list[RangeRow]]


def read_entries(mirror: Mirror) -> Entries:
    """Frontends' entries by service; those for an address's other ports are number 0's."""
    keys, values = mirror.load()
    found: Entries = defaultdict(dict)
    columns = [values[name].tolist() for name in ENTRY]
    places = (keys[name].tolist() for name in ("port", "proto", "scope"))
    spots = zip(_addresses(keys), *places, strict=True)
    for spot, row in zip(spots, zip(*columns, strict=True), strict=True):
        entry = Entry(*row)
        found[entry.id][spot] = entry
    return found


def read_members(mirror: Mirror) -> Members:
    """Backends by service, and whether they take new connections."""
    keys, values = mirror.load()
    found: Members = defaultdict(dict)
    rows = zip(keys["service"].tolist(), keys["backend"].tolist(), values.tolist(), strict=True)
    for service, backend, takes in rows:
        found[service][backend] = takes
    return found


def read_ranges(mirror: Mirror) -> Ranges:
    """Source ranges by their set."""
    keys, values = mirror.load()
    found: Ranges = defaultdict(list)
    rows = zip(keys["prefixlen"].tolist(), _addresses(keys), values.tolist(), strict=True)
    for number, row in zip(keys["ranges"].tolist(), rows, strict=True):
        found[number].append(row)
    return found


@frozen
class FoundBackend:
    """A backend's row: which one it is, and its revision."""

    address: bytes
    port: int
    protocol: int
    revision: int

    def revision_for(self, backend: Backend) -> int:
        """The revision with which it is this backend: its own if it is, else the next."""
        same = (self.address, self.port, self.protocol) == (
            address_to_bytes(backend.address),
            backend.port,
            int(backend.protocol),
        )
        if same and self.revision % 2:
            return self.revision
        return self.revision + 1 + self.revision % 2


def read_backends(mirror: Mirror) -> dict[int, FoundBackend]:
    """Backends by their numbers, those that are gone too."""
    keys, values = mirror.load()
    columns = (values[name].tolist() for name in ("port", "proto", "revision"))
    rows = zip(_addresses(values), *columns, strict=True)
    return {number: FoundBackend(*row) for number, row in zip(keys.tolist(), rows, strict=True)}


def read_revisions(mirror: Mirror) -> dict[int, int]:
    """Revisions by service."""
    keys, values = mirror.load()
    return dict(zip(keys.tolist(), values.tolist(), strict=True))


def _addresses(rows: npt.NDArray[Any]) -> list[bytes]:
    data = rows["addr"].tobytes()
    return [data[at : at + 16] for at in range(0, len(data), 16)]
