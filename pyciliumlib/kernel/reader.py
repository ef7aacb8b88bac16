"""From an opened object file to the descriptions of what is in it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import attrs

from pyciliumlib.kernel._binding import ffi, lib
from pyciliumlib.kernel.btf import Kind
from pyciliumlib.kernel.codec import Codec
from pyciliumlib.kernel.config import Config, Variable
from pyciliumlib.kernel.kinds import MapType, ProgramType
from pyciliumlib.kernel.layout import Field, StructCodec
from pyciliumlib.kernel.mapspec import MapSpec, ProgramSpec
from pyciliumlib.kernel.objectfile import each_map, each_program, initial_value, map_name
from pyciliumlib.kernel.schema import Schema, opaque

# libbpf 1.1 knows SEC("tc") and SEC("classifier") only. The attach type of tcx and netkit is the
# link's business: a program that had one could not enter the same prog array as a plain one.
_TC_SECTIONS: Final = ("tc/", "tcx/", "netkit/", "classifier/")


class Reader:
    """Takes the descriptions out of an opened object."""

    def __init__(self, handle: Any, schema: Schema) -> None:
        self._handle = handle
        self._schema = schema
        self._sections = {type_.name: type_ for type_ in schema.types if type_.kind == Kind.DATASEC}

    def maps(self) -> dict[str, MapSpec]:
        return {map_name(found): self._map(found) for found in each_map(self._handle)}

    def programs(self) -> dict[str, ProgramSpec]:
        specs = [self._program(found) for found in each_program(self._handle)]
        return {spec.name: spec for spec in specs}

    def config(self) -> Config:
        variables, defaults = {}, {}
        for found in each_map(self._handle):
            section = map_name(found)
            if not lib.bpf_map__is_internal(found) or not section.startswith(".rodata"):
                continue
            defaults[section] = initial_value(found)
            for field, doc in self._variables(section):
                variables[field.name] = Variable(
                    field.name, section, field.offset, field.codec, doc
                )
        return Config(variables, defaults)

    def _map(self, found: Any) -> MapSpec:
        name = map_name(found)
        internal = bool(lib.bpf_map__is_internal(found))
        inner = lib.bpf_map__inner_map(found)
        codec, value_size = self._schema.codec_or_opaque, lib.bpf_map__value_size(found)
        return MapSpec(
            name=name,
            type=MapType(lib.bpf_map__type(found)),
            key=codec(lib.bpf_map__btf_key_type_id(found), lib.bpf_map__key_size(found)),
            value=self._section_codec(name, value_size)
            if internal
            else codec(lib.bpf_map__btf_value_type_id(found), value_size),
            max_entries=lib.bpf_map__max_entries(found),
            flags=lib.bpf_map__map_flags(found),
            inner=self._inner(inner),
            pinning=lib.bpf_map__pin_path(found) != ffi.NULL,
            internal=internal,
            autocreate=bool(lib.bpf_map__autocreate(found)),
        )

    def _inner(self, found: Any) -> MapSpec | None:
        """libbpf does not create the pattern of the maps inside; whoever fills them does."""
        return attrs.evolve(self._map(found), autocreate=True) if found != ffi.NULL else None

    def _section_codec(self, section: str, size: int) -> Codec:
        fields = [field for field, _ in self._variables(section)]
        return StructCodec(section, size, fields) if fields else opaque(size)

    def _variables(self, section: str) -> Iterator[tuple[Field, str]]:
        types = self._schema.types
        if section not in self._sections:
            return
        members = sorted(self._sections[section].members, key=lambda member: member.offset)
        for member in members:
            variable = types[member.type_id]
            codec = self._schema.codec_or_opaque(variable.target, types.size_of(variable.target))
            yield Field(variable.name, member.offset, codec), types.doc(variable.id)

    def _program(self, found: Any) -> ProgramSpec:
        section = ffi.string(lib.bpf_program__section_name(found)).decode()
        return ProgramSpec(
            name=ffi.string(lib.bpf_program__name(found)).decode(),
            section=section,
            type=_program_type(section, lib.bpf_program__type(found)),
            attach_type=lib.bpf_program__expected_attach_type(found),
            autoload=bool(lib.bpf_program__autoload(found)),
            instructions=lib.bpf_program__insn_cnt(found),
        )


def _program_type(section: str, guessed: int) -> ProgramType:
    """The type by the section's name; libbpf's guess where it has one."""
    if section.startswith(_TC_SECTIONS):
        return ProgramType.SCHED_CLS
    return ProgramType(guessed)
