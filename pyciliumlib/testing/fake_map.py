"""A BPF map in memory, for tests of tables and controllers without root.

How to keep this honest: it is extended only for behaviour that was proven on the real kernel. One
hypothesis state machine (tests/bpf/test_fake_kernel.py) runs the same random calls against a
`FakeMap` and a kernel map of the same layout, and every answer and error must agree. What is not
compared there (the order of entries, LRU eviction, per-CPU values, timing) does not exist here.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from pyciliumlib.errors import ExistsError, InvalidError, KernelError, MapFullError, NotFoundError
from pyciliumlib.kernel.codec import Codec
from pyciliumlib.kernel.kinds import MapType
from pyciliumlib.kernel.schema import codec_of_dtype
from pyciliumlib.types import Column, UpdateMode

if TYPE_CHECKING:
    from pyciliumlib.kernel.mapspec import MapSpec

_MODES: Final = ("any", "new", "exist")
_PREFIXLEN_BYTES: Final = 4
#: Stands where no value is: one that a map holds may be anything.
_ABSENT: Final = object()


class FakeMap:
    """Meets `MapLike` as `pyciliumlib.kernel.Map` does, for hash, array and lpm_trie maps.

    `type_` is "hash", "array" or "lpm_trie", or their `MapType`; `key` and `value` are numpy
    dtypes, or codecs of a kernel object's types.

    >>> counts = FakeMap("hash", "u4", "u8", max_entries=2)
    >>> counts[7] = 1
    >>> counts[7], 8 in counts, len(counts)
    (1, False, 1)
    """

    def __init__(
        self,
        type_: MapType | str,
        key: Any,
        value: Any,
        max_entries: int,
        name: str = "fake",
    ) -> None:
        self.name = name
        self.type = _map_type(type_)
        if max_entries < 1:
            raise InvalidError(f"map {name!r}: max_entries is {max_entries}; write 1 or more")
        self._key = key if isinstance(key, Codec) else codec_of_dtype(key)
        self._value = value if isinstance(value, Codec) else codec_of_dtype(value)
        self._max_entries = max_entries
        self._rules = _RULES[self.type](self._key, self._value, max_entries)
        self._lock = threading.RLock()

    @classmethod
    def from_spec(cls, spec: MapSpec) -> FakeMap:
        """The map that a kernel object describes."""
        return cls(spec.type, spec.key, spec.value, spec.max_entries, spec.name)

    @property
    def key_dtype(self) -> np.dtype[Any]:
        """The layout of a key."""
        return self._key.dtype

    @property
    def value_dtype(self) -> np.dtype[Any]:
        """The layout of a value."""
        return self._value.dtype

    @property
    def max_entries(self) -> int:
        """How many entries fit."""
        return self._max_entries

    # one entry

    def lookup(self, key: Any) -> Any:
        """The value of `key`; raises NotFoundError where there is none."""
        with self._lock:
            found = self._rules.lookup(self._key.encode(key))
        if found is None:
            raise NotFoundError(f"map {self.name!r} has no entry for {key!r}")
        return self._value.decode(found)

    def get(self, key: Any, default: Any = None) -> Any:
        """The value of `key`, or `default`."""
        try:
            return self.lookup(key)
        except NotFoundError:
            return default

    def update(self, key: Any, value: Any, mode: UpdateMode = "any") -> None:
        """Write one entry; raises MapFullError, ExistsError or NotFoundError (see `MapLike`)."""
        _check_mode(mode)
        with self._lock:
            self._write(self._key.encode(key), self._value.encode(value), mode)

    def delete(self, key: Any) -> bool:
        """Remove one entry; False if it was not there."""
        with self._lock:
            return self._rules.delete(self._key.encode(key))

    def pop(self, key: Any, default: Any = _ABSENT) -> Any:
        """Remove one entry and return its value; `default` or NotFoundError if it was not there."""
        with self._lock:
            value = self.get(key, _ABSENT)
            if (value is not _ABSENT or self.type is MapType.ARRAY) and self.delete(key):
                return value
        if default is _ABSENT:
            raise NotFoundError(f"map {self.name!r} has no entry for {key!r}")
        return default

    def __getitem__(self, key: Any) -> Any:
        return self.lookup(key)

    def __setitem__(self, key: Any, value: Any) -> None:
        self.update(key, value)

    def __delitem__(self, key: Any) -> None:
        if not self.delete(key):
            raise NotFoundError(f"map {self.name!r} has no entry for {key!r}")

    def __contains__(self, key: object) -> bool:
        with self._lock:
            return self._rules.lookup(self._key.encode(key)) is not None

    # all entries

    def items(self) -> Iterator[tuple[Any, Any]]:
        """All entries of this moment."""
        keys, values = self._read()
        return zip(map(self._key.decode, keys), map(self._value.decode, values), strict=True)

    def keys(self) -> Iterator[Any]:
        """All keys of this moment."""
        return map(self._key.decode, self._read()[0])

    def values(self) -> Iterator[Any]:
        """All values of this moment."""
        return map(self._value.decode, self._read()[1])

    __iter__ = keys

    def __len__(self) -> int:
        return len(self._read()[0])

    def __bool__(self) -> bool:
        return True  # as of a kernel map: a handle, whether the map is empty or not

    def clear(self) -> None:
        """Remove all entries."""
        self.delete_batch(self.lookup_batch()[0])

    # batches

    def update_batch(self, keys: Column, values: Column, mode: UpdateMode = "any") -> int:
        """Write many entries, in order; how many were written, which is all.

        Raises as `update` does at the first that cannot be written; those before it are.
        """
        _check_mode(mode)
        key_bytes = _rows(keys, self._key, "keys")
        value_bytes = _rows(values, self._value, "values")
        if len(key_bytes) != len(value_bytes):
            raise InvalidError(f"{len(key_bytes)} keys for {len(value_bytes)} values")
        with self._lock:
            for key, value in zip(key_bytes, value_bytes, strict=True):
                self._write(key, value, mode)
        return len(key_bytes)

    def lookup_batch(self) -> tuple[Column, Column]:
        """All keys and values as arrays."""
        keys, values = self._read()
        return _column(keys, self._key), _column(values, self._value)

    def delete_batch(self, keys: Column) -> int:
        """Remove many entries; how many were there."""
        with self._lock:
            return sum(self._rules.delete(key) for key in _rows(keys, self._key, "keys"))

    def __repr__(self) -> str:
        return f"<FakeMap {self.name} {self.type.name.lower()} {len(self)}/{self._max_entries}>"

    def _read(self) -> tuple[list[bytes], list[bytes]]:
        with self._lock:
            pairs = list(self._rules.pairs())
        return [key for key, _ in pairs], [value for _, value in pairs]

    def _write(self, key: bytes, value: bytes, mode: str) -> None:
        present = self._rules.present(key)
        if mode == "new" and present:
            raise ExistsError(f"map {self.name!r} has that key already")
        if mode == "exist" and not present:
            raise NotFoundError(f"map {self.name!r} does not have that key")
        self._rules.write(key, value)


class _Hash:
    """BPF_MAP_TYPE_HASH; kernel/bpf/hashtab.c."""

    def __init__(self, key: Codec, value: Codec, max_entries: int) -> None:
        self._max_entries = max_entries
        self._entries: dict[bytes, bytes] = {}

    def lookup(self, key: bytes) -> bytes | None:
        return self._entries.get(key)

    def present(self, key: bytes) -> bool:
        return key in self._entries

    def write(self, key: bytes, value: bytes) -> None:
        if key not in self._entries and len(self._entries) >= self._max_entries:
            raise MapFullError(errno.E2BIG, f"all {self._max_entries} entries are used")
        self._entries[key] = value

    def delete(self, key: bytes) -> bool:
        return self._entries.pop(key, None) is not None

    def pairs(self) -> Iterator[tuple[bytes, bytes]]:
        return iter(self._entries.items())


class _Array:
    """BPF_MAP_TYPE_ARRAY: all entries are there from the start; kernel/bpf/arraymap.c."""

    def __init__(self, key: Codec, value: Codec, max_entries: int) -> None:
        if key.size != 4:
            raise InvalidError(f"the key of an array has 4 bytes, not {key.size}")
        self._values = [bytes(value.size)] * max_entries

    def _index(self, key: bytes) -> int:
        return int(np.frombuffer(key, np.uint32)[0])

    def lookup(self, key: bytes) -> bytes | None:
        index = self._index(key)
        return self._values[index] if index < len(self._values) else None

    def present(self, key: bytes) -> bool:
        index = self._index(key)
        if index >= len(self._values):  # checked before the mode, in the kernel too
            raise NotFoundError(f"index {index}: the array has {len(self._values)} slots")
        return True

    def write(self, key: bytes, value: bytes) -> None:
        self._values[self._index(key)] = value

    def delete(self, key: bytes) -> bool:
        raise InvalidError("the entries of an array cannot be deleted; write zero")

    def pairs(self) -> Iterator[tuple[bytes, bytes]]:
        return ((np.uint32(index).tobytes(), value) for index, value in enumerate(self._values))


class _LPMTrie:
    """BPF_MAP_TYPE_LPM_TRIE: a key is a length in bits and the bits; kernel/bpf/lpm_trie.c.

    Bits behind the length do not count, but a key is given back as it was last written.
    """

    def __init__(self, key: Codec, value: Codec, max_entries: int) -> None:
        self._bits = 8 * (key.size - _PREFIXLEN_BYTES)
        if not 8 <= self._bits <= 8 * 256:
            raise InvalidError("the key of an lpm_trie is a u32 length and 1 to 256 bytes")
        self._max_entries = max_entries
        # length -> the first bits as a number -> key and value as they were written
        self._entries: dict[int, dict[int, tuple[bytes, bytes]]] = {}

    @staticmethod
    def _split(key: bytes) -> tuple[int, int]:
        length = int(np.frombuffer(key[:_PREFIXLEN_BYTES], np.uint32)[0])
        return length, int.from_bytes(key[_PREFIXLEN_BYTES:], "big")

    def _prefix(self, key: bytes) -> tuple[int, int]:
        length, bits = self._split(key)
        if length > self._bits:  # a lookup of such a key finds nothing, writing it is an error
            raise KernelError(errno.EINVAL, f"prefixlen {length}: the key has {self._bits} bits")
        return length, bits >> (self._bits - length)

    def lookup(self, key: bytes) -> bytes | None:
        wanted, bits = self._split(key)
        if wanted > self._bits:
            return None
        for length in sorted(self._entries, reverse=True):
            found = self._entries[length].get(bits >> (self._bits - length))
            if length <= wanted and found is not None:
                return found[1]
        return None

    def present(self, key: bytes) -> bool:
        length, prefix = self._prefix(key)
        return prefix in self._entries.get(length, {})

    def write(self, key: bytes, value: bytes) -> None:
        length, prefix = self._prefix(key)
        used = sum(len(level) for level in self._entries.values())
        if used >= self._max_entries and not self.present(key):
            raise MapFullError(errno.ENOSPC, f"all {self._max_entries} entries are used")
        self._entries.setdefault(length, {})[prefix] = key, value

    def delete(self, key: bytes) -> bool:
        length, prefix = self._prefix(key)
        return self._entries.get(length, {}).pop(prefix, None) is not None

    def pairs(self) -> Iterator[tuple[bytes, bytes]]:
        return (pair for level in self._entries.values() for pair in level.values())


_Rules = _Hash | _Array | _LPMTrie
_RULES: Final[dict[MapType, type[_Rules]]] = {
    MapType.HASH: _Hash,
    MapType.ARRAY: _Array,
    MapType.LPM_TRIE: _LPMTrie,
}


def _check_mode(mode: str) -> None:
    if mode not in _MODES:
        raise InvalidError(f"no update mode {mode!r}: use one of {', '.join(_MODES)}")


def _map_type(type_: MapType | str) -> MapType:
    for known in _RULES:
        if type_ == known or type_ == known.name.lower():
            return known
    names = ", ".join(known.name.lower() for known in _RULES)
    raise InvalidError(f"no map in memory of type {type_!r}; there are {names}")


def _rows(array: Column, codec: Codec, what: str) -> list[bytes]:
    # A dtype that is itself an array, such as ("u1", (16,)), adds its dimensions to the array's.
    base, shape = codec.dtype.base, codec.dtype.shape
    if (
        not isinstance(array, np.ndarray)
        or array.dtype != base
        or array.shape[1:] != shape
        or array.ndim != 1 + len(shape)
        or not array.flags.c_contiguous
    ):
        raise InvalidError(f"{what}: pass a C-contiguous array of {codec.dtype}")
    data = array.tobytes()
    return [data[at : at + codec.size] for at in range(0, len(data), codec.size)]


def _column(rows: list[bytes], codec: Codec) -> Column:
    return np.frombuffer(bytearray(b"".join(rows)), codec.dtype.base).reshape(
        len(rows), *codec.dtype.shape
    )
