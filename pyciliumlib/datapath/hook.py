"""A user's program in a slot, and the object that it is of."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Final

from attrs import evolve

from pyciliumlib.closeable import Closeable
from pyciliumlib.kernel import Map, MapSpec, MapType, Object, ObjectSpec
from pyciliumlib.kernel.kinds import ARRAYS, BY_ID, HASHES

#: Maps whose contents can be copied.
_TABLES: Final = HASHES | ARRAYS | {MapType.LPM_TRIE}


class Hook(Closeable):
    """A user's program in a slot; `close()` takes it out."""

    def __init__(
        self,
        slot: str,
        program: str,
        spec: ObjectSpec,
        loaded: Object,
        remove: Callable[[], None],
    ) -> None:
        """`spec` is the object as it is in its file: what was configured is in `loaded`."""
        self.slot = slot
        self.program = program
        self._spec = spec
        self._loaded = loaded
        self._remove = remove
        self._closed = False

    @property
    def maps(self) -> Mapping[str, Map]:
        """The program's maps by name: its own, and those it shares with the datapath."""
        return self._loaded.maps

    @property
    def program_id(self) -> int:
        """The kernel's number of the program."""
        return self._loaded.programs[self.program].id

    def close(self) -> None:
        """Take the program out of the path; a second call does nothing."""
        if not self._closed:
            try:
                self._remove()
            finally:
                self.let_go()

    def let_go(self) -> None:
        """Close the handles alone; a program that is pinned goes on in its slot."""
        self._closed = True
        self._loaded.close()

    def rehearse(self, tables: Mapping[str, Map]) -> Object:
        """A second load of it over other tables, with copies of its own maps as they are now.

        Its constants and its maps of programs or maps are the live ones; rings and queues of its
        own begin empty.
        """
        shared = {name: found for name, found in tables.items() if name in self._spec.maps}
        own = {name: found for name, found in self.maps.items() if name not in shared}
        live = {name for name, found in own.items() if _is_constant(name, found.type)}
        copy = load_over(self._spec, shared | {name: own[name] for name in live}, sizes=own)
        try:
            for name in own.keys() - live:
                if own[name].type in _TABLES:
                    copy.maps[name].update_batch(*own[name].lookup_batch())
        except BaseException:
            copy.close()
            raise
        return copy

    def __repr__(self) -> str:
        return f"<Hook {self.slot}: {self.program}{' closed' if self._closed else ''}>"


def load_over(
    spec: ObjectSpec, shared: Mapping[str, Map], sizes: Mapping[str, Map] | None = None
) -> Object:
    """Load an object over maps that are there, whose sizes a header cannot know."""
    spec = spec.copy()
    for name, found in {**(sizes or {}), **shared}.items():
        spec.resize(name, found.max_entries)
    return spec.load(reuse=shared)


def present(spec: ObjectSpec) -> list[str]:
    """The programs and maps that are to be loaded; in C no two of them have one name."""
    programs = [name for name, program in spec.programs.items() if program.autoload]
    return [*programs, *(name for name, found in spec.maps.items() if found.autocreate)]


def as_in_file(data: bytes, name: str, names: Collection[str]) -> ObjectSpec:
    """The object of a file, of which the programs and maps of these names are to be loaded."""
    spec = ObjectSpec.open(data, name)
    for program in tuple(spec.programs):
        spec.set_autoload(program, program in names)
    for map_name in tuple(spec.maps):
        spec.set_autocreate(map_name, map_name in names)
    return spec


def pin_path(folder: Path, map_name: str) -> Path:
    """Where a map of a user's object is pinned."""
    return folder / map_name.replace(".", "_")  # a bpffs has no names with dots


def from_pin(folder: Path, spec: MapSpec) -> Map:
    """A map of a user's object, with the object's types and the size that it has."""
    with Map.from_pin(pin_path(folder, spec.name)) as found:
        return Map.from_id(found.info.id, evolve(spec, max_entries=found.max_entries))


def _is_constant(name: str, kind: MapType) -> bool:
    """Whether no program writes to the map, so that a rehearsal may share it."""
    return name.startswith(".rodata") or kind in BY_ID
