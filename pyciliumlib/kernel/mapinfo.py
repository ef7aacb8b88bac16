"""What the kernel says about a map, and how that differs from what was asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs

from pyciliumlib.kernel._binding import ffi, lib, take_messages
from pyciliumlib.kernel.btf import Types
from pyciliumlib.kernel.codec import Codec
from pyciliumlib.kernel.failures import raise_for
from pyciliumlib.kernel.kinds import NO_COMMON_LRU, MapType
from pyciliumlib.kernel.mapspec import MapSpec
from pyciliumlib.kernel.schema import Schema, opaque
from pyciliumlib.kernel.values import possible_cpus


@attrs.frozen
class MapInfo:
    """A map as the kernel reports it. Sizes are in bytes; `value_size` is that of one CPU.

    `name` is cut to 15 characters by the kernel. `memory` is what the map is charged, None where
    the kernel does not say. `btf_*` are 0 where the map was made without types.
    """

    id: int
    type: MapType
    name: str
    key_size: int
    value_size: int
    max_entries: int
    flags: int
    memory: int | None
    btf_id: int
    btf_key_type_id: int
    btf_value_type_id: int


def read_info(fd: int) -> MapInfo:
    """Ask the kernel about an open map."""
    info = ffi.new("struct bpf_map_info *")
    size = ffi.new("__u32 *", ffi.sizeof(info[0]))
    err = lib.bpf_obj_get_info_by_fd(fd, info, size)
    if err:
        raise_for(err, f"ask about the map of descriptor {fd}")
    return MapInfo(
        id=info.id,
        type=MapType(info.type),
        name=ffi.string(info.name).decode(),
        key_size=info.key_size,
        value_size=info.value_size,
        max_entries=info.max_entries,
        flags=info.map_flags,
        memory=_memory(fd),
        btf_id=info.btf_id,
        btf_key_type_id=info.btf_key_type_id,
        btf_value_type_id=info.btf_value_type_id,
    )


def _memory(fd: int) -> int | None:
    for line in Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines():
        if line.startswith("memlock:"):
            return int(line.split()[1])
    return None


def spec_of(info: MapInfo) -> MapSpec:
    """A description of a live map, typed by the BTF it was loaded with where there is any."""
    key, value = opaque(info.key_size), opaque(info.value_size)
    if info.btf_id and info.btf_value_type_id:
        schema = Schema(_types_of(info.btf_id))
        if info.btf_key_type_id:
            key = schema.codec_or_opaque(info.btf_key_type_id, info.key_size)
        value = schema.codec_or_opaque(info.btf_value_type_id, info.value_size)
    return MapSpec(
        name=info.name,
        type=info.type,
        key=key,
        value=value,
        max_entries=info.max_entries,
        flags=info.flags,
    )


def _types_of(btf_id: int) -> Types:
    btf = lib.btf__load_from_kernel_by_id(btf_id)
    code = ffi.errno
    take_messages(quiet=True)
    if btf == ffi.NULL:
        raise_for(code, f"read the types number {btf_id} from the kernel")
    btf = ffi.gc(btf, lib.btf__free)
    size = ffi.new("__u32 *")
    data: Any = lib.btf__raw_data(btf, size)
    return Types.parse(bytes(ffi.buffer(data, size[0])))


def differences(wanted: MapSpec, info: MapInfo) -> list[str]:
    """Every respect in which a live map is not the one that is described, one line each."""
    found = [
        f"{what}: {_show(there)} instead of {_show(here)}"
        for what, here, there in (
            ("type", wanted.type, info.type),
            ("key size", wanted.key.size, info.key_size),
            ("value size", wanted.value.size, info.value_size),
            ("max_entries", _as_created(wanted), info.max_entries),
            ("flags", wanted.flags, info.flags),
        )
        if here != there
    ]
    if info.btf_id and info.btf_value_type_id:
        there = spec_of(info)
        if info.btf_key_type_id:
            found += _layout_differences("key", wanted.key, there.key)
        found += _layout_differences("value", wanted.value, there.value)
    return found


def _show(value: int) -> str:
    return value.name.lower() if isinstance(value, MapType) else str(value)


def _as_created(wanted: MapSpec) -> int:
    """The kernel gives each CPU's own LRU list the same share."""
    if wanted.type == MapType.LRU_PERCPU_HASH and wanted.flags & NO_COMMON_LRU:
        cpus = possible_cpus()
        return (wanted.max_entries + cpus - 1) // cpus * cpus
    return wanted.max_entries


def _layout_differences(what: str, wanted: Codec, there: Codec) -> list[str]:
    """By field; a type that was not taken apart on one side is compared by its size alone."""
    here_fields = {path: (offset, name) for path, offset, name in wanted.leaves()}
    there_fields = {path: (offset, name) for path, offset, name in there.leaves()}
    if len(here_fields) == 1 or len(there_fields) == 1:
        here_types = {name for _, name in here_fields.values()}
        there_types = {name for _, name in there_fields.values()}
        opaque_names = {opaque(wanted.size).name, opaque(there.size).name}
        if (here_types | there_types) & opaque_names:
            return []
    lines = []
    for path in here_fields.keys() | there_fields.keys():
        here, other = here_fields.get(path), there_fields.get(path)
        if here != other:
            place = f"{what}.{path}" if path else what
            lines.append(f"{place}: {_field(other)} instead of {_field(here)}")
    return sorted(lines)


def _field(field: tuple[int, str] | None) -> str:
    return f"{field[1]} at offset {field[0]}" if field else "nothing"
