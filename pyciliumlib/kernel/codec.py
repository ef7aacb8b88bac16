"""C scalars and arrays as Python values and numpy dtypes.

A codec stands for one C type. `encode` and `decode` go between Python values and its bytes;
`dtype` is the same layout for numpy. Structs are in `layout`.
"""

from __future__ import annotations

import enum
import operator
import struct
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from pyciliumlib.errors import InvalidError, ObjectError, nearest
from pyciliumlib.types import Address, address_from_bytes, address_to_bytes, parse_address

_INTEGERS = {(1, False): "B", (2, False): "H", (4, False): "I", (8, False): "Q"} | {
    (1, True): "b",
    (2, True): "h",
    (4, True): "i",
    (8, True): "q",
}


class Codec(ABC):
    """One C type.

    `format` is a single item of the `struct` module. `load` turns that item into the Python
    value, `store` checks a Python value and turns it into the item; a struct packs and unpacks
    the items of all its fields in one call.
    """

    #: What the type is called in messages and comparisons: "u32", "be16", "char[16]".
    name: str
    #: In bytes.
    size: int
    format: str
    #: The layout for numpy; big-endian where the C type is.
    dtype: np.dtype[Any]
    #: Whether `load` returns the item as it is.
    plain = False

    def __init__(self, name: str, size: int, format_: str, dtype: Any) -> None:
        self.name = name
        self.size = size
        self.format = format_
        self.dtype = np.dtype(dtype)
        self._struct = struct.Struct("=" + format_)
        self._pack = self._struct.pack
        self._unpack = self._struct.unpack

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"

    @abstractmethod
    def load(self, item: Any) -> Any:
        """The Python value of an unpacked item."""

    @abstractmethod
    def store(self, value: Any) -> Any:
        """The item of a Python value; raises InvalidError."""

    def encode(self, value: Any) -> bytes:
        """The bytes of a value; raises InvalidError if it does not fit the type."""
        return self._pack(self.store(value))

    def decode(self, data: Any) -> Any:
        """The value of `size` bytes."""
        return self.load(self._unpack(data)[0])

    def decode_all(self, data: Any) -> Iterator[Any]:
        """The values of an array of this type."""
        load = self.load
        return (load(item) for (item,) in self._struct.iter_unpack(data))

    def leaves(self, path: str = "", offset: int = 0) -> Iterator[tuple[str, int, str]]:
        """Path, offset and name of each scalar and array inside, for comparing two layouts."""
        yield path, offset, self.name

    def zero(self) -> Any:
        """The value whose bytes are all zero."""
        return self.decode(bytes(self.size))


class IntCodec(Codec):
    """An integer in the CPU's byte order."""

    plain = True

    def __init__(self, size: int, signed: bool = False) -> None:
        if (size, signed) not in _INTEGERS:
            raise ObjectError(f"an integer of {size} bytes is not supported")
        name = f"{'s' if signed else 'u'}{size * 8}"
        super().__init__(name, size, _INTEGERS[size, signed], f"{'i' if signed else 'u'}{size}")
        bits = size * 8 - signed
        self.low, self.high = (-(1 << bits) if signed else 0), (1 << bits) - 1

    def load(self, item: int) -> int:
        return item

    def store(self, value: Any) -> int:
        try:
            number = operator.index(value)
        except TypeError:
            raise InvalidError(f"{value!r} is no integer, where {self.name} is expected") from None
        if not self.low <= number <= self.high:
            raise InvalidError(f"{number} does not fit {self.name} ({self.low}..{self.high})")
        return number

    def encode(self, value: Any) -> bytes:
        try:
            return self._pack(value)
        except struct.error:  # `store` says what is wrong with it
            return self._pack(self.store(value))

    def decode(self, data: Any) -> int:
        number: int = self._unpack(data)[0]
        return number


class BigEndianCodec(Codec):
    """`__be16`, `__be32` or `__be64`: network order in memory, host values in Python."""

    def __init__(self, size: int) -> None:
        super().__init__(f"be{size * 8}", size, f"{size}s", f">u{size}")
        self._int = IntCodec(size)

    def load(self, item: bytes) -> int:
        return int.from_bytes(item, "big")

    def store(self, value: Any) -> bytes:
        return self._int.store(value).to_bytes(self.size, "big")


class BoolCodec(Codec):
    plain = True

    def __init__(self) -> None:
        super().__init__("bool", 1, "?", "?")

    def load(self, item: bool) -> bool:
        return item

    def store(self, value: Any) -> bool:
        if value not in (0, 1):
            raise InvalidError(f"{value!r} is no bool")
        return bool(value)


class FloatCodec(Codec):
    plain = True

    def __init__(self, size: int) -> None:
        if size not in (4, 8):
            raise ObjectError(f"a floating-point number of {size} bytes is not supported")
        super().__init__(f"f{size * 8}", size, "f" if size == 4 else "d", f"f{size}")

    def load(self, item: float) -> float:
        return item

    def store(self, value: Any) -> float:
        if not isinstance(value, (int, float)):
            raise InvalidError(f"{value!r} is no number")
        return float(value)


class EnumCodec(Codec):
    """An enum: an IntEnum made from the C one; a number without a name stays a number."""

    def __init__(self, type_: type[enum.IntEnum], size: int, signed: bool) -> None:
        self._int = IntCodec(size, signed)
        super().__init__(self._int.name, size, self._int.format, self._int.dtype)
        self.type = type_
        self._members: Mapping[int, enum.IntEnum] = {int(member): member for member in type_}

    def load(self, item: int) -> int:
        return self._members.get(item, item)

    def store(self, value: Any) -> int:
        if isinstance(value, str):
            names = self.type.__members__
            if value not in names:
                raise InvalidError(
                    f"enum {self.type.__name__} has no {value!r}{nearest(value, names)}"
                )
            return int(names[value])
        return self._int.store(value)


class BytesCodec(Codec):
    """An array of `__u8`, or a type that is not taken apart: bytes of exactly that size."""

    plain = True

    def __init__(self, size: int, name: str = "") -> None:
        super().__init__(name or f"u8[{size}]", size, f"{size}s", ("u1", (size,)))

    def load(self, item: bytes) -> bytes:
        return item

    def store(self, value: Any) -> bytes:
        if type(value) is bytes and len(value) == self.size:
            return value
        if isinstance(value, (str, int)) or not isinstance(value, Iterable):
            raise InvalidError(f"{value!r} is not {self.size} bytes")
        try:
            data = bytes(value)
        except (TypeError, ValueError):
            raise InvalidError(f"{value!r} is not {self.size} bytes") from None
        if len(data) != self.size:
            raise InvalidError(f"{len(data)} bytes do not fill {self.name}")
        return data

    def encode(self, value: Any) -> bytes:
        if type(value) is bytes and len(value) == self.size:
            return value
        return self.store(value)

    def decode(self, data: Any) -> bytes:
        return bytes(data)


class TextCodec(Codec):
    """An array of `char`: text up to the first NUL, UTF-8; other bytes survive as surrogates."""

    def __init__(self, size: int) -> None:
        super().__init__(f"char[{size}]", size, f"{size}s", f"S{size}" if size else ("u1", (0,)))

    def load(self, item: bytes) -> str:
        return item.partition(b"\0")[0].decode("utf-8", "surrogateescape")

    def store(self, value: Any) -> bytes:
        if isinstance(value, str):
            value = value.encode("utf-8", "surrogateescape")
        if not isinstance(value, bytes):
            raise InvalidError(f"{value!r} is no text")
        if len(value) > self.size:
            raise InvalidError(f"{value!r} is longer than {self.name}")
        return value


class AddressCodec(Codec):
    """`struct addr`: 16 bytes, IPv4 v4-mapped; an `ipaddress` object in Python."""

    def __init__(self) -> None:
        super().__init__("struct addr", 16, "16s", ("u1", (16,)))

    def load(self, item: bytes) -> Address:
        return address_from_bytes(item)

    def store(self, value: Any) -> bytes:
        if isinstance(value, bytes) and len(value) == 16:
            return value
        return address_to_bytes(parse_address(value))


class ArrayCodec(Codec):
    """An array of anything else: a tuple."""

    def __init__(self, element: Codec, count: int) -> None:
        self.element = element
        self.count = count
        size = element.size * count
        super().__init__(f"{element.name}[{count}]", size, f"{size}s", (element.dtype, (count,)))

    def load(self, item: bytes) -> tuple[Any, ...]:
        return tuple(self.element.decode_all(item))

    def store(self, value: Any) -> bytes:
        if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
            raise InvalidError(f"{value!r} is no sequence of {self.count} {self.element.name}")
        parts = [self.element.encode(part) for part in value]
        if len(parts) != self.count:
            raise InvalidError(f"{len(parts)} values do not fill {self.name}")
        return b"".join(parts)

    def leaves(self, path: str = "", offset: int = 0) -> Iterator[tuple[str, int, str]]:
        if not isinstance(self.element, (IntCodec, BigEndianCodec, BoolCodec, FloatCodec)):
            yield from self.element.leaves(f"{path}[{self.count}]", offset)
        else:
            yield path, offset, self.name
