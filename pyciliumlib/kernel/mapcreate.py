"""BPF_MAP_CREATE from a description, and a guess at what was wrong with it."""

from __future__ import annotations

import errno
import os
import re

from pyciliumlib.errors import InvalidError
from pyciliumlib.kernel._binding import ffi, lib, take_messages
from pyciliumlib.kernel.failures import raise_for
from pyciliumlib.kernel.kinds import (
    ARRAYS,
    MAPS_IN_MAP,
    NO_PREALLOC,
    SLOTS,
    STREAMS,
    MapType,
)
from pyciliumlib.kernel.layout import StructCodec
from pyciliumlib.kernel.mapspec import MapSpec

_NAME_SIZE = 15


def create_fd(spec: MapSpec) -> int:
    """The descriptor of a new map; raises InvalidError before the kernel is asked for nonsense."""
    _check(spec)
    options = ffi.new("struct bpf_map_create_opts *")
    options.sz = ffi.sizeof(options[0])
    options.map_flags = spec.flags
    inner_fd = -1
    if spec.inner is not None:
        # The kernel takes a map as the pattern; it may go as soon as the outer one is there.
        inner_fd = create_fd(spec.inner)
        options.inner_map_fd = inner_fd
    try:
        fd: int = lib.bpf_map_create(
            int(spec.type),
            re.sub(r"[^A-Za-z0-9_.]", "_", spec.name)[:_NAME_SIZE].encode(),
            spec.key.size,
            spec.value.size,
            spec.max_entries,
            options,
        )
    finally:
        if inner_fd >= 0:
            os.close(inner_fd)
    take_messages(quiet=True)
    if fd < 0:
        raise_for(fd, f"create {describe(spec)}", _HINTS.get(-fd, ""))
    return fd


def describe(spec: MapSpec) -> str:
    return f"{spec.type.name.lower()} map {spec.name!r} of {spec.max_entries} entries"


_HINTS = {
    errno.EINVAL: "this kernel does not know the type or a flag, or refuses the sizes",
    errno.E2BIG: "the entries are too large together; lower max_entries",
    errno.ENOMEM: "no memory for it; lower max_entries or the cgroup's limit is reached",
}


def _check(spec: MapSpec) -> None:
    """What no kernel takes, said better than EINVAL does."""
    page = os.sysconf("SC_PAGE_SIZE")
    entries = spec.max_entries
    four_byte_key = spec.type in ARRAYS | SLOTS
    problems = {
        "max_entries must be between 1 and 4294967295": not 0 < entries < 1 << 32,
        "the key of an array is a 4-byte index": four_byte_key and spec.key.size != 4,
        "a value has at least one byte": spec.type not in STREAMS and spec.value.size == 0,
        "a map of maps needs `inner`, an example of the maps inside": (
            spec.type in MAPS_IN_MAP and spec.inner is None
        ),
        "only a map of maps takes `inner`": (
            spec.type not in MAPS_IN_MAP and spec.inner is not None
        ),
        "a longest-prefix map needs the flag NO_PREALLOC": (
            spec.type == MapType.LPM_TRIE and not spec.flags & NO_PREALLOC
        ),
        "the key of a longest-prefix map is a 4-byte prefixlen and 1 to 256 bytes": (
            spec.type == MapType.LPM_TRIE and not 5 <= spec.key.size <= 260
        ),
        "the key of a longest-prefix map has gaps, which it would compare; declare it packed": (
            spec.type == MapType.LPM_TRIE
            and isinstance(spec.key, StructCodec)
            and spec.key.has_gaps
        ),
        f"the size of a ring buffer is a power of two and a multiple of {page} bytes": (
            spec.type in STREAMS and (entries % page != 0 or entries & (entries - 1) != 0)
        ),
        "a ring buffer has neither keys nor values": (
            spec.type in STREAMS and spec.key.size + spec.value.size > 0
        ),
    }
    found = [text for text, wrong in problems.items() if wrong]
    if found:
        raise InvalidError(f"cannot create {describe(spec)}: {'; '.join(found)}")
