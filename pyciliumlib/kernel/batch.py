"""Whole maps as numpy columns; the loops are C (csrc/libbpf/batch.c, read.c)."""

from __future__ import annotations

from typing import Any

import numpy as np

from pyciliumlib.errors import InvalidError
from pyciliumlib.kernel._binding import ffi, lib
from pyciliumlib.kernel.kinds import ARRAYS, HASHES, MAPS_IN_MAP, SLOTS, MapType
from pyciliumlib.types import Column

_FIRST_ROOM = 65536
_BATCHED = HASHES | ARRAYS | {MapType.LPM_TRIE}
#: A map of maps makes the kernel wait for running programs once a batch, not once an entry (since
#: Linux 6.8). It is not read in batches: before 6.14 they end at empty slots.
_BATCH_WRITTEN = _BATCHED | MAPS_IN_MAP


def layout_of(fd: int, type_: MapType, key_size: int, value_size: int, max_entries: int) -> Any:
    """What the C loops need to know of a map; `value_size` counts all CPUs."""
    layout = ffi.new("struct pcl_layout *")
    layout.fd = fd
    layout.key_size = key_size
    layout.value_size = value_size
    layout.max_entries = max_entries
    layout.room = min(max_entries, _FIRST_ROOM)
    layout.batch = type_ in _BATCHED
    layout.batch_update = type_ in _BATCH_WRITTEN
    layout.slots = type_ in SLOTS | ARRAYS
    layout.unique = type_ in HASHES | ARRAYS
    layout.trie = type_ is MapType.LPM_TRIE
    return layout


def read(layout: Any, delete: bool = False) -> tuple[int, int, Any, Any]:
    """All entries: an errno (0 if all went well), their number, and the bytes of both columns.

    The two buffers own their memory, so an array over one is no copy.
    """
    entries = ffi.new("struct pcl_entries *")
    err = (lib.pcl_map_read_and_delete if delete else lib.pcl_map_read)(layout, entries)
    keys = ffi.gc(entries.keys, lib.pcl_column_free)
    values = ffi.gc(entries.values, lib.pcl_column_free)
    count = entries.count
    return (
        -err,
        count,
        ffi.buffer(keys, count * layout.key_size) if count else b"",
        ffi.buffer(values, count * layout.value_size) if count else b"",
    )


def column_of(data: Any, count: int, dtype: np.dtype[Any]) -> Column:
    """An array of `count` items over `data`; a subarray dtype adds its dimensions."""
    if not count:
        return np.empty(0, dtype)
    return np.ndarray((count, *dtype.shape), dtype.base, data)


def per_cpu_column_of(data: Any, count: int, dtype: np.dtype[Any], cpus: int) -> Column:
    """An array of shape (count, cpus); the kernel rounds each CPU's value up to 8 bytes."""
    if not count:
        return np.empty((0, cpus), dtype)
    padded = np.ndarray((count, cpus), _padded(dtype), data)
    column: Column = padded["value"]
    return column


def pack_per_cpu(values: Column, dtype: np.dtype[Any]) -> Column:
    """The other way: (count, cpus) values as the kernel wants them, padded to 8 bytes."""
    if dtype.itemsize % 8 == 0:
        return values
    padded = np.zeros(values.shape[:2], _padded(dtype))
    padded["value"] = values
    return padded


def _padded(dtype: np.dtype[Any]) -> np.dtype[Any]:
    size = (dtype.itemsize + 7) // 8 * 8
    return np.dtype({"names": ["value"], "formats": [dtype], "offsets": [0], "itemsize": size})


def checked(column: Any, dtype: np.dtype[Any], what: str, shape: tuple[int, ...] = ()) -> Column:
    """The column if it is a C-contiguous array of exactly this dtype; raises InvalidError.

    `shape` is that of one item, for the values of a per-CPU map.
    """
    if not isinstance(column, np.ndarray):
        raise InvalidError(f"{what} must be a numpy array of {dtype}, not {type(column).__name__}")
    if column.dtype != dtype.base or column.shape[1:] != shape + dtype.shape or column.ndim == 0:
        raise InvalidError(
            f"{what} have dtype {column.dtype} and shape {column.shape}; this map takes dtype "
            f"{dtype.base} and shape (n{''.join(f', {d}' for d in shape + dtype.shape)})"
        )
    if not column.flags.c_contiguous:
        raise InvalidError(f"{what} are not C-contiguous; pass numpy.ascontiguousarray(...)")
    return column


def without_gaps(column: Column) -> Column:
    """A copy whose bytes between the fields, which numpy leaves as they were, are zero.

    A hash map compares keys byte by byte, gaps included.
    """
    clean = np.zeros(column.shape, column.dtype)
    for name in column.dtype.names or ():
        part = column[name]
        clean[name] = without_gaps(part) if part.dtype.names else part
    return clean
