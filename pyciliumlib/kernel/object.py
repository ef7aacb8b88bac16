"""A loaded object: its maps and programs, and the one who closes them."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from pyciliumlib.closeable import Closeable
from pyciliumlib.errors import InvalidError, MismatchError, NotFoundError
from pyciliumlib.kernel import pin
from pyciliumlib.kernel._binding import ffi, lib, take_messages
from pyciliumlib.kernel.failures import raise_for
from pyciliumlib.kernel.map import Map
from pyciliumlib.kernel.mapcreate import create_fd
from pyciliumlib.kernel.mapinfo import differences
from pyciliumlib.kernel.objectfile import each_map, each_program, map_name, opened
from pyciliumlib.kernel.program import Program
from pyciliumlib.kernel.spec import ObjectSpec, find
from pyciliumlib.kernel.verifier import raise_load_failure

if TYPE_CHECKING:
    pass

Pins = pin.PathLike | Mapping[str, pin.PathLike]


class Object(Closeable):
    """The maps and programs of one load. `close()` closes them all; pins and links live on."""

    def __init__(self, name: str, maps: Mapping[str, Map], programs: Mapping[str, Program]) -> None:
        self.name = name
        self.maps = MappingProxyType(dict(maps))
        self.programs = MappingProxyType(dict(programs))

    def map(self, name: str) -> Map:
        """A map by name; raises NotFoundError with the nearest name."""
        found: Map = find(self.maps, name, "map")
        return found

    def program(self, name: str) -> Program:
        """A program by name; raises NotFoundError with the nearest name."""
        found: Program = find(self.programs, name, "program")
        return found

    def close(self) -> None:
        """Close every map and program; twice is fine."""
        for part in (*self.programs.values(), *self.maps.values()):
            part.close()

    def __repr__(self) -> str:
        return f"<Object {self.name!r} maps={list(self.maps)} programs={list(self.programs)}>"


def load(spec: ObjectSpec, reuse: Mapping[str, Map], pins: Pins | None) -> Object:
    """See `ObjectSpec.load`."""
    for name in reuse:
        find(spec.maps, name, "map")
    paths = _pin_paths(spec, reuse, pins)
    with ExitStack() as undo:
        adopted = _adopt_pins(paths, undo)
        given = {**reuse, **adopted}
        _refuse_mismatches(spec, given)
        maps, programs = _load(spec, given, undo)
        for name, path in paths.items():
            if name in maps and name not in adopted:
                maps[name].pin(path)
                undo.callback(pin.unpin, path)
        undo.pop_all()
    for found in adopted.values():
        found.close()
    return Object(spec.name, maps, programs)


def _pin_paths(spec: ObjectSpec, reuse: Mapping[str, Map], pins: Pins | None) -> dict[str, Path]:
    """Which map is pinned where."""
    if pins is None:
        return {}
    if not isinstance(pins, Mapping):
        folder = Path(pins)
        return {
            name: folder / name
            for name, map_spec in spec.maps.items()
            if name not in reuse and not map_spec.internal and map_spec.autocreate
        }
    for name in pins:
        find(spec.maps, name, "map")
        if name in reuse:
            raise InvalidError(f"map {name!r} is both reused and pinned; choose one")
    return {name: Path(path) for name, path in pins.items()}


def _adopt_pins(paths: Mapping[str, Path], undo: ExitStack) -> dict[str, Map]:
    adopted = {}
    for name, path in paths.items():
        try:
            adopted[name] = undo.enter_context(Map.from_pin(path))
        except NotFoundError:
            continue
    return adopted


def _refuse_mismatches(spec: ObjectSpec, given: Mapping[str, Map]) -> None:
    """All differences of all maps at once, before anything is loaded."""
    found = [
        f"{name}: {difference}"
        for name, there in given.items()
        for difference in differences(spec.maps[name], there.info)
    ]
    if found:
        raise MismatchError(
            f"object {spec.name!r} cannot use the maps that are there (made by another version, "
            "or with other sizes); unpin them, or load with the same sizes:",
            found,
        )


def _load(
    spec: ObjectSpec, given: Mapping[str, Map], undo: ExitStack
) -> tuple[dict[str, Map], dict[str, Program]]:
    with opened(spec.data, spec.name) as handle, ExitStack() as patterns:
        _prepare(handle, spec, given)
        _give_inner(handle, spec, given, patterns)
        err = lib.bpf_object__load(handle)
        messages = take_messages(quiet=err != 0)
        if err:
            raise_load_failure(spec.name, err, messages)
        maps, programs = {}, {}
        for found in each_map(handle):
            name = map_name(found)
            if spec.maps[name].autocreate:
                fd = _duplicate(lib.bpf_map__fd(found))
                maps[name] = undo.enter_context(Map(fd, spec.maps[name]))
        for found in each_program(handle):
            name = ffi.string(lib.bpf_program__name(found)).decode()
            if spec.programs[name].autoload:
                fd = _duplicate(lib.bpf_program__fd(found))
                programs[name] = undo.enter_context(Program(fd, name, spec.programs[name].type))
        return maps, programs


def _give_inner(
    handle: Any, spec: ObjectSpec, given: Mapping[str, Map], patterns: ExitStack
) -> None:
    """Make the patterns of the maps inside maps here, and not leave it to libbpf.

    libbpf makes them with types from BTF; Linux 5.15 to 6.1 then refuse maps without such
    types, and maps that a process makes later have none.
    """
    for found in each_map(handle):
        wanted = spec.maps[map_name(found)]
        if wanted.inner is None or wanted.name in given or not wanted.autocreate:
            continue
        fd = create_fd(wanted.inner)
        patterns.callback(os.close, fd)
        _expect(lib.bpf_map__set_inner_map_fd(found, fd), f"prepare map {wanted.name!r}")


def _prepare(handle: Any, spec: ObjectSpec, given: Mapping[str, Map]) -> None:
    """Bring what was adjusted in the description to libbpf's object."""
    sections = spec.config.sections()
    for found in each_map(handle):
        name = map_name(found)
        wanted = spec.maps[name]
        # Pins are this library's: libbpf would adopt one without comparing the types.
        _expect(lib.bpf_map__set_pin_path(found, ffi.NULL), f"prepare map {name!r}")
        _expect(lib.bpf_map__set_autocreate(found, wanted.autocreate), f"prepare map {name!r}")
        if name in given:
            _expect(lib.bpf_map__reuse_fd(found, given[name].fd), f"reuse map {name!r}")
        elif not wanted.internal:
            err = lib.bpf_map__set_max_entries(found, wanted.max_entries)
            _expect(err, f"resize map {name!r}")
        if name in sections:
            data = sections[name]
            _expect(lib.bpf_map__set_initial_value(found, data, len(data)), f"configure {name!r}")
    for found in each_program(handle):
        name = ffi.string(lib.bpf_program__name(found)).decode()
        wanted_program = spec.programs[name]
        _expect(lib.bpf_program__set_autoload(found, wanted_program.autoload), f"prepare {name!r}")
        _expect(lib.bpf_program__set_type(found, wanted_program.type), f"prepare {name!r}")


def _expect(err: int, doing: str) -> None:
    messages = take_messages(quiet=err != 0)
    if err:
        raise_for(err, doing, messages.strip())


def _duplicate(fd: int) -> int:
    """A descriptor of our own; libbpf closes its when the handle goes."""
    if fd < 0:
        raise_for(fd, "take a descriptor out of the loaded object")
    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
