"""A map and a program as they are described; nothing of them exists in the kernel."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from pyciliumlib.kernel.codec import Codec
from pyciliumlib.kernel.kinds import MapType, ProgramType

if TYPE_CHECKING:
    from pyciliumlib.kernel.map import Map


@attrs.frozen
class MapSpec:
    """A map as it is described; nothing of it exists in the kernel.

    `max_entries` counts entries (for a ring buffer, bytes). `inner` describes the maps inside a
    map of maps. `internal` marks the sections `.rodata`, `.data` and `.bss`.
    """

    name: str
    type: MapType
    key: Codec
    value: Codec
    max_entries: int
    flags: int = 0
    inner: MapSpec | None = None
    pinning: bool = False
    internal: bool = False
    autocreate: bool = True

    def create(self, name: str | None = None) -> Map:
        """A new map of the kernel of this description; see `Map.create`."""
        from pyciliumlib.kernel.map import Map  # the live side builds on this one

        return Map.from_spec(self if name is None else attrs.evolve(self, name=name))


@attrs.frozen
class ProgramSpec:
    """A program as it is in the file. `attach_type` is the kernel's number, 0 where unused."""

    name: str
    section: str
    type: ProgramType
    attach_type: int
    autoload: bool
    instructions: int
