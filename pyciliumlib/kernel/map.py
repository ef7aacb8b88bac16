"""A live map of the kernel, typed."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NoReturn

import attrs
import numpy as np

from pyciliumlib.errors import (
    ExistsError,
    InvalidError,
    KernelError,
    MapFullError,
    MismatchError,
    NotFoundError,
)
from pyciliumlib.kernel import batch, pin
from pyciliumlib.kernel._binding import ffi, lib, take_messages
from pyciliumlib.kernel.codec import Codec
from pyciliumlib.kernel.failures import number_of, raise_for
from pyciliumlib.kernel.kinds import (
    ARRAYS,
    BY_ID,
    MAPS_IN_MAP,
    PER_CPU,
    STREAMS,
    MapType,
)
from pyciliumlib.kernel.layout import StructCodec
from pyciliumlib.kernel.mapcreate import create_fd
from pyciliumlib.kernel.mapinfo import MapInfo, differences, read_info, spec_of
from pyciliumlib.kernel.mapspec import MapSpec
from pyciliumlib.kernel.program import Program
from pyciliumlib.kernel.resource import Resource
from pyciliumlib.kernel.schema import codec_of_dtype, opaque
from pyciliumlib.kernel.values import HandleCodec, NoEntryCodec, PerCpuCodec, possible_cpus
from pyciliumlib.types import Column, UpdateMode

if TYPE_CHECKING:
    from typing_extensions import Self

#: Stands where no value is: one that a map holds may be anything.
_ABSENT = object()
_MODES = {"any": 0, "new": 1, "exist": 2}
_lookup = lib.bpf_map_lookup_elem
_update = lib.bpf_map_update_elem
_delete = lib.bpf_map_delete_elem
_take = lib.pcl_map_take


class Map(Resource):
    """A map of the kernel with a mapping's manners; meets `MapLike`.

        flows = obj.maps["flows"]
        flows[key] = value                      # KeyError's kin, NotFoundError, where m[k] is not
        keys, values = flows.lookup_batch()     # numpy columns, one call

    Keys and values are Python values of their C types (see `codec` and `layout`). A per-CPU map
    gives and takes one value for each possible CPU. A map of programs or maps takes open objects
    and gives ids. In a longest-prefix map `m[k]`, `get` and `in` find the longest prefix that
    covers `k`, as the kernel does; `del` wants the very prefix.

    `items`, `keys`, `values`, iteration and `len` work on a snapshot: each key at most once,
    whatever others do meanwhile. (The value of a longest-prefix entry that is deleted at the
    moment of reading may be that of the next shorter prefix: the kernel cannot tell.)
    """

    __slots__ = (
        "_decode",
        "_encode_key",
        "_encode_value",
        "_key",
        "_layout",
        "_rooms",
        "_value",
        "spec",
    )

    def __init__(self, fd: int, spec: MapSpec) -> None:
        """Takes over the descriptor `fd` of a map that `spec` describes."""
        super().__init__(fd, spec.name)
        self.spec = spec
        self._key: Codec = spec.key
        self._value: Codec = spec.value
        if spec.type in PER_CPU:
            self._value = PerCpuCodec(spec.value, possible_cpus())
        elif spec.type in MAPS_IN_MAP:
            self._value = HandleCodec("map", Map)
        elif spec.type in BY_ID:
            self._value = HandleCodec("program", Program)
        if spec.type in STREAMS:
            self._key = NoEntryCodec()
        self._layout = batch.layout_of(
            fd, spec.type, self._key.size, self._value.size, spec.max_entries
        )
        # What one entry's way needs, looked up once: the system call itself takes a microsecond.
        self._encode_key = self._key.encode
        self._encode_value = self._value.encode
        self._decode = self._value.decode
        #: Room for values that no thread uses now, and its bytes.
        self._rooms: list[tuple[Any, Any]] = []

    # --- where maps come from

    @classmethod
    def create(
        cls,
        type: MapType,
        key: Any,
        value: Any,
        max_entries: int,
        flags: int = 0,
        name: str = "",
        inner: Map | MapSpec | None = None,
    ) -> Self:
        """A new map on its own.

        `key` and `value` are codecs or numpy dtypes (None for a ring buffer), `flags` those of
        `kinds`, `inner` an example of the maps inside a map of maps. Raises InvalidError for what
        no kernel takes, PrivilegeError, FeatureError, KernelError.
        """
        try:
            kind = MapType(type)
        except ValueError:
            raise InvalidError(f"{type!r} is no type of map; see MapType") from None
        return cls.from_spec(
            MapSpec(
                name=name,
                type=kind,
                key=_codec(key),
                value=_codec(value),
                max_entries=max_entries,
                flags=flags,
                inner=inner.spec if isinstance(inner, Map) else inner,
            )
        )

    @classmethod
    def from_spec(cls, spec: MapSpec) -> Self:
        """A new map as described."""
        return cls(create_fd(spec), spec)

    @classmethod
    def from_pin(cls, path: pin.PathLike, expect: MapSpec | None = None) -> Self:
        """The map that is pinned at `path`.

        With `expect` it must be just that: MismatchError lists every difference. Without, its
        types are those it was loaded with.
        """
        return cls._adopt(pin.open_pin(path, "map"), expect, f"the map pinned at {path}")

    @classmethod
    def from_id(cls, map_id: int, expect: MapSpec | None = None) -> Self:
        """The map with this number; raises NotFoundError. Needs CAP_SYS_ADMIN."""
        fd: int = lib.bpf_map_get_fd_by_id(number_of(map_id))
        take_messages(quiet=True)
        if fd == -errno.ENOENT:
            raise NotFoundError(f"the kernel has no map number {map_id} (any more)")
        if fd < 0:
            raise_for(fd, f"open map number {map_id}")
        return cls._adopt(fd, expect, f"map number {map_id}")

    @classmethod
    def _adopt(cls, fd: int, expect: MapSpec | None, what: str) -> Self:
        with Resource(fd, what) as held:
            info = read_info(fd)
            if expect is not None and (found := differences(expect, info)):
                raise MismatchError(f"{what} is not the {expect.name!r} that was asked for:", found)
            return cls(held.release(), expect or spec_of(info))

    # --- what it is

    @property
    def type(self) -> MapType:
        return self.spec.type

    @property
    def key_dtype(self) -> np.dtype[Any]:
        return self._key.dtype

    @property
    def value_dtype(self) -> np.dtype[Any]:
        """Of one CPU's value in a per-CPU map."""
        return self._value.dtype

    @property
    def max_entries(self) -> int:
        return self.spec.max_entries

    @property
    def info(self) -> MapInfo:
        """What the kernel says about it now."""
        return read_info(self.fd)

    # --- one entry

    def lookup(self, key: Any) -> Any:
        """The value of `key`; raises NotFoundError where there is none."""
        return self._value_by(_lookup, key)

    def _value_by(self, call: Any, key: Any) -> Any:
        """What a system call that reads one entry gives."""
        try:
            room, data = self._rooms.pop()
        except IndexError:
            room = ffi.new("char[]", self._value.size)
            data = ffi.buffer(room)
        try:
            err = call(self._fd, self._encode_key(key), room)
        except InvalidError as error:
            raise self._bad_key(error) from None
        if err:
            self._raise_for_lookup(-err, key)
        value = self._decode(data)
        self._rooms.append((room, data))
        return value

    def update(self, key: Any, value: Any, mode: UpdateMode = "any") -> None:
        """Write one entry: "any" creates or replaces, "new" only creates, "exist" only replaces.

        Raises MapFullError, ExistsError ("new"), NotFoundError ("exist"), InvalidError.
        """
        try:
            flags = _MODES[mode]
        except KeyError:
            raise InvalidError(f"no update mode {mode!r}: use one of {', '.join(_MODES)}") from None
        err = _update(self._fd, self._key_of(key), self._encode_value(value), flags)
        if err:
            self._raise_for_update(-err, f"{key!r}")

    def delete(self, key: Any) -> bool:
        """Remove one entry; False if it was not there."""
        err = _delete(self._fd, self._key_of(key))
        if err == -errno.ENOENT:
            return False
        if err:
            self._raise_for_delete(-err)
        return True

    __getitem__ = lookup

    def __setitem__(self, key: Any, value: Any) -> None:
        try:
            packed = self._encode_key(key)
        except InvalidError as error:
            raise self._bad_key(error) from None
        err = _update(self._fd, packed, self._encode_value(value), 0)
        if err:
            self._raise_for_update(-err, f"{key!r}")

    def __delitem__(self, key: Any) -> None:
        if not self.delete(key):
            raise NotFoundError(f"{self._what()} has no {key!r}")

    def __contains__(self, key: object) -> bool:
        return self.get(key, _ABSENT) is not _ABSENT

    def get(self, key: Any, default: Any = None) -> Any:
        """The value of `key`, or `default`."""
        try:
            return self.lookup(key)
        except NotFoundError:
            return default

    def pop(self, key: Any, default: Any = _ABSENT) -> Any:
        """Remove one entry and return its value, or `default`, as that of a dict does.

        Nothing is lost that a program writes meanwhile: it is in the value, or is there afterwards.
        (On a longest-prefix map, and before Linux 5.14, what is written between reading and
        removing is lost.) Raises NotFoundError without `default`.
        """
        if self.type in ARRAYS:
            self._raise_for_delete(errno.EINVAL)
        try:
            return self._value_by(_take, key)
        except NotFoundError:
            if default is _ABSENT:
                raise
            return default

    # --- all entries

    def items(self) -> Iterator[tuple[Any, Any]]:
        """All entries of this moment."""
        _, keys, values = self._read()
        return zip(self._key.decode_all(keys), self._value.decode_all(values), strict=True)

    def keys(self) -> Iterator[Any]:
        """All keys of this moment."""
        return self._key.decode_all(self._read()[1])

    def values(self) -> Iterator[Any]:
        """All values of this moment."""
        return self._value.decode_all(self._read()[2])

    __iter__ = keys

    def __len__(self) -> int:
        return self.max_entries if self.type in ARRAYS else self._read()[0]

    def __bool__(self) -> bool:
        return True  # a handle, whether the map is empty or not: asking would read all of it

    def clear(self) -> None:
        """Remove all entries of this moment."""
        self.delete_batch(self.lookup_batch()[0])

    # --- many entries: numpy columns

    def lookup_batch(self) -> tuple[Column, Column]:
        """All keys and values; the values of a per-CPU map have the shape (n, cpus)."""
        return self._columns(*self._read())

    def lookup_and_delete_batch(self) -> tuple[Column, Column]:
        """All keys and values, removed as they are read.

        What a program writes between reading and removing is lost on a longest-prefix map, and
        on hash maps without batches before Linux 5.14; elsewhere nothing is.
        """
        if self.type in ARRAYS:
            self._raise_for_delete(errno.EINVAL)
        return self._columns(*self._read(delete=True))

    def update_batch(self, keys: Column, values: Column, mode: UpdateMode = "any") -> int:
        """Write many entries, in order; how many were written, which is all.

        `keys` and `values` are C-contiguous arrays of `key_dtype` and `value_dtype` and equally
        long; raises InvalidError otherwise, and the errors of `update` at the first entry that
        cannot be written (those before it are).
        """
        if mode not in _MODES:
            raise InvalidError(f"no update mode {mode!r}: use one of {', '.join(_MODES)}")
        layout, rows = self._whole(), self._key_rows(keys)
        cells = self._value_rows(values)
        if len(rows) != len(cells):
            raise InvalidError(f"{len(rows)} keys and {len(cells)} values")
        done = ffi.new("uint32_t *")
        err = lib.pcl_map_update(
            layout, ffi.from_buffer(rows), ffi.from_buffer(cells), len(rows), _MODES[mode], done
        )
        if err:
            self._raise_for_update(-err, f"entry {done[0]} of {len(rows)}")
        return int(done[0])

    def delete_batch(self, keys: Column) -> int:
        """Remove many entries; how many were there."""
        layout, rows = self._whole(), self._key_rows(keys)
        deleted = ffi.new("uint32_t *")
        err = lib.pcl_map_delete(layout, ffi.from_buffer(rows), len(rows), deleted)
        if err:
            self._raise_for_delete(-err)
        return int(deleted[0])

    # --- names that outlive the process; maps inside

    def pin(self, path: pin.PathLike) -> None:
        """Pin it at `path` in a bpffs; raises ExistsError if the name is taken."""
        pin.pin(self.fd, path, self._what())

    def open_inner(self, key: Any) -> Map:
        """The map inside at `key`, which the caller closes; raises NotFoundError.

        It may have another size than the others.
        """
        if self.type not in MAPS_IN_MAP:
            raise InvalidError(f"{self._what()} holds no maps")
        number = self.lookup(key)
        with Map.from_id(number) as found:
            expected = self.spec.inner and attrs.evolve(
                self.spec.inner, max_entries=found.max_entries
            )
        return Map.from_id(number, expected)

    def freeze(self) -> None:
        """No more writes from user space, for ever; programs may still write."""
        err = lib.bpf_map_freeze(self.fd)
        if err:
            raise_for(err, f"freeze {self._what()}")

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"fd={self._fd}"
        return f"<Map {self.name!r} {self.type.name.lower()} {state}>"

    # --- inside

    def _key_of(self, key: Any) -> bytes:
        try:
            return self._encode_key(key)
        except InvalidError as error:
            raise self._bad_key(error) from None

    def _bad_key(self, error: InvalidError) -> InvalidError:
        return InvalidError(f"key of {self._what()}: {error}")

    def _whole(self) -> Any:
        """The layout for the C loops, of a map that is open and has entries."""
        if self.type in STREAMS:
            raise InvalidError(f"{self._what()} has no entries; read it with RingBuffer")
        self._layout.fd = self.fd
        return self._layout

    def _read(self, delete: bool = False) -> tuple[int, Any, Any]:
        code, count, keys, values = batch.read(self._whole(), delete)
        if code == errno.EAGAIN:
            raise KernelError(
                code, f"{self._what()} kept changing faster than it could be read; try again"
            )
        if code:
            raise_for(code, f"read {self._what()}", _READ_ONLY.get(code, ""))
        return count, keys, values

    def _columns(self, count: int, keys: Any, values: Any) -> tuple[Column, Column]:
        rows = batch.column_of(keys, count, self.key_dtype)
        if isinstance(self._value, PerCpuCodec):
            cpus = self._value.cpus
            return rows, batch.per_cpu_column_of(values, count, self.value_dtype, cpus)
        return rows, batch.column_of(values, count, self.value_dtype)

    def _key_rows(self, keys: Column) -> Column:
        rows = batch.checked(keys, self.key_dtype, f"the keys for {self._what()}")
        gaps = isinstance(self._key, StructCodec) and self._key.has_gaps
        return batch.without_gaps(rows) if gaps else rows

    def _value_rows(self, values: Column) -> Column:
        what = f"the values for {self._what()}"
        if isinstance(self._value, PerCpuCodec):
            cells = batch.checked(values, self.value_dtype, what, (self._value.cpus,))
            return batch.pack_per_cpu(cells, self.value_dtype)
        return batch.checked(values, self.value_dtype, what)

    def _raise_for_lookup(self, code: int, key: Any) -> NoReturn:
        self._check_open()
        if code == errno.ENOENT:
            raise NotFoundError(f"{self._what()} has no {key!r}")
        raise_for(code, f"look {key!r} up in {self._what()}", _READ_ONLY.get(code, ""))

    def _raise_for_update(self, code: int, entry: str) -> NoReturn:
        self._check_open()
        doing = f"write {entry} to {self._what()}"
        if code == errno.E2BIG and "array" in self.type.name.lower():
            raise NotFoundError(f"cannot {doing}: it has {self.max_entries} slots")
        if code in (errno.E2BIG, errno.ENOSPC):
            raise MapFullError(
                code,
                f"cannot {doing}: its {self.max_entries} entries are taken; delete some, or load "
                "it with a larger max_entries",
            )
        if code == errno.EEXIST:
            raise ExistsError(f"cannot {doing}: the key is there already")
        if code == errno.ENOENT:
            raise NotFoundError(f"cannot {doing}: there is no such key to replace")
        if code == errno.EINVAL and self.type in BY_ID:
            raise InvalidError(
                f"cannot {doing}: the {self._value.name} is of another kind than those that the "
                "map was made for (type, sizes, flags; for a program its expected attach type)"
            )
        raise_for(code, doing, _READ_ONLY.get(code, ""))

    def _raise_for_delete(self, code: int) -> NoReturn:
        self._check_open()
        if code == errno.EINVAL and self.type in ARRAYS:
            raise InvalidError(f"the entries of {self._what()} cannot be deleted; write zero")
        raise_for(code, f"delete from {self._what()}", _READ_ONLY.get(code, ""))


_READ_ONLY = {errno.EPERM: "it is frozen, or was opened for reading or writing only"}


def _codec(type_: Any) -> Codec:
    if isinstance(type_, Codec):
        return type_
    return opaque(0) if type_ is None else codec_of_dtype(type_)
