"""C structs and unions as records and structured dtypes."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from attrs import frozen

from pyciliumlib.errors import InvalidError, UnitError
from pyciliumlib.kernel.codec import AddressCodec, BytesCodec, Codec, IntCodec
from pyciliumlib.kernel.record import Record, is_padding, record_class
from pyciliumlib.types import Network, network_from_key, network_to_key, parse_network


@frozen
class Field:
    """A member of a struct; those of an anonymous struct inside count as its own."""

    name: str
    offset: int
    codec: Codec


class StructCodec(Codec):
    """A struct: a `Record`; mappings, sequences and numpy scalars of the dtype are taken too."""

    def __init__(self, name: str, size: int, fields: Sequence[Field]) -> None:
        self.fields = tuple(fields)
        self.type_name = name
        names = [field.name for field in self.fields]
        layout: Any = {
            "names": names,
            "formats": [field.codec.dtype for field in self.fields],
            "offsets": [field.offset for field in self.fields],
            "itemsize": size,
        }
        super().__init__(f"struct {name}", size, f"{size}s", np.dtype(layout))
        self._items, self.has_gaps = _items_of(self.fields, size)
        self._converted = [
            (index, field.codec.load)
            for index, field in enumerate(self.fields)
            if not field.codec.plain
        ]
        # `struct` itself refuses an integer that does not fit.
        self._stored = [
            (index, field.codec.store)
            for index, field in enumerate(self.fields)
            if not isinstance(field.codec, IntCodec)
        ]
        padding = {f.name: f.codec.zero() for f in self.fields if is_padding(f.name)}
        self.record: type[Record] = record_class(name, names, padding)
        self._make: Callable[[Iterable[Any]], Record] = partial(tuple.__new__, self.record)

    def load(self, item: bytes) -> Any:
        return self._load_items(self._items.unpack(item))

    def decode(self, data: Any) -> Any:
        return self._load_items(self._items.unpack(data))

    def decode_all(self, data: Any) -> Iterator[Any]:
        return map(self._load_items, self._items.iter_unpack(data))

    def _load_items(self, items: tuple[Any, ...]) -> Any:
        if not self._converted:
            return self._make(items)
        values = list(items)
        for index, load in self._converted:
            values[index] = load(values[index])
        return self._make(values)

    def store(self, value: Any) -> bytes:
        return self.encode(value)

    def encode(self, value: Any) -> bytes:
        kind, parts = type(value), value
        if kind is np.void:
            if value.dtype != self.dtype:
                raise InvalidError(f"{value.dtype} is not the dtype of {self.name}: {self.dtype}")
            data: bytes = value.tobytes()
            return data
        if kind is not self.record and (kind is not tuple or len(value) != len(self.fields)):
            parts = self._parts(value)
        try:
            if not self._stored:
                return self._items.pack(*parts)
            items = list(parts)
            for index, store in self._stored:
                items[index] = store(items[index])
            return self._items.pack(*items)
        except (InvalidError, struct.error):
            self._raise_for(parts)
            raise

    def _raise_for(self, parts: Sequence[Any]) -> None:
        """Say which field it was."""
        for field, part in zip(self.fields, parts, strict=True):
            try:
                field.codec.store(part)
            except InvalidError as error:
                raise InvalidError(f"{self.type_name}.{field.name}: {error}") from None

    def _parts(self, value: Any) -> Sequence[Any]:
        if isinstance(value, Record):
            return self.record._from_mapping(value._asdict())
        if isinstance(value, Mapping):
            return self.record._from_mapping(value)
        if isinstance(value, (tuple, list)):
            return self.record(*value)
        raise InvalidError(
            f"{value!r} is no {self.name}; pass a mapping or a tuple of "
            f"{', '.join(self.record._fields)}"
        )

    def leaves(self, path: str = "", offset: int = 0) -> Iterator[tuple[str, int, str]]:
        for field in self.fields:
            inner = f"{path}.{field.name}" if path else field.name
            yield from field.codec.leaves(inner, offset + field.offset)


def _items_of(fields: Sequence[Field], size: int) -> tuple[struct.Struct, bool]:
    """One `struct` format for all fields, and whether the compiler left gaps between them."""
    parts, at, gaps = ["="], 0, False
    for field in fields:
        if field.offset > at:
            parts.append(f"{field.offset - at}x")
            gaps = True
        parts.append(field.codec.format)
        at = field.offset + field.codec.size
        gaps |= isinstance(field.codec, StructCodec) and field.codec.has_gaps
    if size > at:
        parts.append(f"{size - at}x")
        gaps = True
    return struct.Struct("".join(parts)), gaps


class PrefixCodec(StructCodec):
    """The key {prefixlen, struct addr} of a longest-prefix map: an `ipaddress` network.

    The struct is packed: a trie compares everything after prefixlen, so a gap there would count.
    Taken as text ("10.0.0.0/8", "10.0.0.1"), as an address or network, or as a struct.
    """

    @staticmethod
    def fits(fields: Sequence[Field]) -> bool:
        return (
            len(fields) == 2
            and fields[0].name == "prefixlen"
            and fields[1].offset == fields[0].codec.size == 4
            and isinstance(fields[0].codec, IntCodec)
            and isinstance(fields[1].codec, AddressCodec)
        )

    def _load_items(self, items: tuple[Any, ...]) -> Network:
        return network_from_key(items[0], items[1])

    def _parts(self, value: Any) -> Sequence[Any]:
        if isinstance(value, (Mapping, tuple, list)):
            return super()._parts(value)
        try:
            return self.record._make(network_to_key(parse_network(value)))
        except UnitError as error:
            raise InvalidError(f"{self.type_name}: {error}") from None


class UnionCodec(Codec):
    """A union: its first member if that fills it, else bytes.

    Any member can be written as a mapping of its name to its value; the rest is zero.
    """

    def __init__(self, name: str, size: int, members: Sequence[Field]) -> None:
        self.members = {member.name: member.codec for member in members}
        first = next(iter(self.members.values()), None)
        self._shown = first if first and first.size == size else BytesCodec(size)
        super().__init__(f"union {name}".strip(), size, f"{size}s", self._shown.dtype)

    def load(self, item: bytes) -> Any:
        return self._shown.decode(item)

    def store(self, value: Any) -> bytes:
        if isinstance(value, Mapping) and len(value) == 1:
            ((name, part),) = value.items()
            if name in self.members:
                return self.members[name].encode(part).ljust(self.size, b"\0")
        if isinstance(value, bytes) and len(value) == self.size:
            return value
        return self._shown.encode(value)

    def leaves(self, path: str = "", offset: int = 0) -> Iterator[tuple[str, int, str]]:
        for name, codec in self.members.items():
            yield from codec.leaves(f"{path}.{name}" if path else name, offset)
