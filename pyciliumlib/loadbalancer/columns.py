"""Rows of the load balancer's maps as numpy columns."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from attrs import fields

from pyciliumlib.loadbalancer.installed import Change, Held, Installed, Numbered
from pyciliumlib.loadbalancer.mirror import Mirror
from pyciliumlib.loadbalancer.rows import Entry, Place, Spot
from pyciliumlib.types import address_to_bytes

if TYPE_CHECKING:
    import numpy.typing as npt

#: The fields of a frontend's entry.
ENTRY: Final = tuple(field.name for field in fields(Entry))
#: Where a frontend is, its number, and the service that has it; None: it is gone.
FrontendRow = tuple[Place, Numbered, Installed | None]
Columns = tuple["npt.NDArray[Any]", "npt.NDArray[Any]"]


def entry_columns(mirror: Mirror, entries: Mapping[Spot, Entry]) -> Columns:
    """Frontends' entries."""
    keys, values = mirror.new_rows(len(entries))
    if entries:
        _set_spots(keys, entries)
        for name in ENTRY:
            values[name] = [getattr(entry, name) for entry in entries.values()]
    return keys, values


def spot_keys(mirror: Mirror, spots: Collection[Spot]) -> npt.NDArray[Any]:
    """The keys alone."""
    keys, _ = mirror.new_rows(len(spots))
    if spots:
        _set_spots(keys, spots)
    return keys


def _set_spots(keys: npt.NDArray[Any], spots: Collection[Spot]) -> None:
    keys["addr"] = _addresses(address for address, *_ in spots)
    for at, name in enumerate(("port", "proto", "scope"), start=1):
        keys[name] = [spot[at] for spot in spots]


def frontend_columns(mirror: Mirror, rows: Mapping[int, FrontendRow]) -> Columns:
    """Frontends by number."""
    keys, values = mirror.new_rows(len(rows))
    if rows:
        places, numbered, owners = zip(*rows.values(), strict=True)
        keys[:] = list(rows)
        values["addr"] = _addresses(address for address, _, _ in places)
        values["port"] = [port for _, port, _ in places]
        values["proto"] = [protocol for _, _, protocol in places]
        values["revision"] = [one.revision for one in numbered]
        values["service"] = [one.id if one else 0 for one in owners]
        values["affinity"] = [one.service.affinity_timeout if one else 0 for one in owners]
    return keys, values


def backend_columns(mirror: Mirror, held: Iterable[Held], *, alive: bool) -> Columns:
    """Those that some service has, or those that none has any more."""
    found = [one for one in held if bool(one.users) is alive]
    keys, values = mirror.new_rows(len(found))
    if found:
        keys[:] = [one.id for one in found]
        values["addr"] = _addresses(address_to_bytes(one.backend.address) for one in found)
        values["port"] = [one.backend.port for one in found]
        values["proto"] = [int(one.backend.protocol) for one in found]
        values["state"] = [int(one.state) for one in found]
        values["revision"] = [one.revision + (not alive) for one in found]
    return keys, values


def member_columns(mirror: Mirror, installed: Iterable[Installed]) -> Columns:
    """Which backends each service has, and whether they take new connections."""
    rows = [
        (made.id, number, takes) for made in installed for number, takes in made.members.items()
    ]
    keys, values = mirror.new_rows(len(rows))
    if rows:
        keys["service"], keys["backend"], values[:] = zip(*rows, strict=True)
    return keys, values


def member_keys(mirror: Mirror, pairs: Collection[tuple[int, int]]) -> npt.NDArray[Any]:
    """Keys of (service, backend) numbers."""
    keys, _ = mirror.new_rows(len(pairs))
    if pairs:
        keys["service"], keys["backend"] = zip(*pairs, strict=True)
    return keys


def range_columns(mirror: Mirror, installed: Iterable[Installed]) -> Columns:
    """Source ranges of services."""
    rows = [(made, bits, address, inside)
            for made in installed for bits, address, inside in made.range_rows]  # fmt: skip
    keys, values = mirror.new_rows(len(rows))
    if rows:
        keys["prefixlen"] = [bits for _, bits, _, _ in rows]
        keys["ranges"] = [made.ranges for made, _, _, _ in rows]
        keys["addr"] = _addresses(address for _, _, address, _ in rows)
        values[:] = [inside for _, _, _, inside in rows]
    return keys, values


def revision_columns(mirror: Mirror, change: Change) -> Columns:
    """The services' revisions; flows of one that is gone must not find theirs."""
    after = {made.id: made.revision for made in change.fresh.values()}
    after.update({found.id: found.revision + 1 for found in change.gone.values()})
    keys, values = mirror.new_rows(len(after))
    keys[:], values[:] = list(after), list(after.values())
    return keys, values


def _addresses(addresses: Iterable[bytes]) -> npt.NDArray[np.uint8]:
    return np.frombuffer(b"".join(addresses), np.uint8).reshape(-1, 16)
