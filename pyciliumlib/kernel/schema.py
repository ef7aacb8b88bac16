"""From types - BTF's or numpy's - to codecs."""

from __future__ import annotations

import enum
from typing import Any, Final

import numpy as np

from pyciliumlib.errors import InvalidError, ObjectError
from pyciliumlib.kernel.btf import Kind, Member, Type, Types
from pyciliumlib.kernel.codec import (
    AddressCodec,
    ArrayCodec,
    BigEndianCodec,
    BoolCodec,
    BytesCodec,
    Codec,
    EnumCodec,
    FloatCodec,
    IntCodec,
    TextCodec,
)
from pyciliumlib.kernel.layout import Field, PrefixCodec, StructCodec, UnionCodec

_BIG_ENDIAN: Final = {"__be16": 2, "__be32": 4, "__be64": 8}
_OPAQUE_AS_INT: Final = (1, 2, 4, 8)


class Schema:
    """The codecs of one object's types; each struct gets one record class."""

    def __init__(self, types: Types) -> None:
        self.types = types
        self._codecs: dict[int, Codec] = {}
        self._enums: dict[int, type[enum.IntEnum]] = {}

    def codec(self, type_id: int) -> Codec:
        """The codec of a type; raises ObjectError for what has no layout, such as a bit-field."""
        if type_id not in self._codecs:
            self._codecs[type_id] = self._make(type_id)
        return self._codecs[type_id]

    def codec_or_opaque(self, type_id: int, size: int) -> Codec:
        """The same; what has no layout for Python, or not that size, is an integer or bytes."""
        if not type_id or self.types.size_of(type_id) != size:
            return opaque(size)
        try:
            return self.codec(type_id)
        except ObjectError:
            return opaque(size)

    def enum(self, type_id: int) -> type[enum.IntEnum]:
        """The IntEnum of an enum."""
        if type_id not in self._enums:
            type_ = self.types[type_id]
            name = type_.name or f"enum_{type_id}"
            make: Any = enum.IntEnum  # mypy follows the functional form for literals only
            self._enums[type_id] = make(name, dict(type_.values))
        return self._enums[type_id]

    def _make(self, type_id: int) -> Codec:
        names = self.types.typedef_names(type_id)
        type_ = self.types.resolve(type_id)
        size = self.types.size_of(type_.id)
        for name in names:
            if _BIG_ENDIAN.get(name) == size:
                return BigEndianCodec(size)
        match type_.kind:
            case Kind.INT if type_.boolean:
                return BoolCodec()
            case Kind.INT:
                return IntCodec(size, type_.signed)
            case Kind.PTR:
                return IntCodec(8)
            case Kind.FLOAT:
                return FloatCodec(size)
            case Kind.ENUM | Kind.ENUM64:
                return EnumCodec(self.enum(type_.id), size, type_.signed)
            case Kind.ARRAY:
                return self._array(type_)
            case Kind.STRUCT:
                return self._struct(type_, names)
            case Kind.UNION:
                members = [self._field(type_, member) for member in type_.members]
                return UnionCodec(type_.name or (names[0] if names else ""), size, members)
        raise ObjectError(
            f"{type_.kind.name.lower()} {type_.name!r} has no layout for Python; "
            "use integers, arrays, enums, structs and unions in maps and variables"
        )

    def _array(self, type_: Type) -> Codec:
        element = self.types.resolve(type_.target)
        if element.kind == Kind.INT and element.size == 1 and not element.boolean:
            if element.name == "char":
                return TextCodec(type_.count)
            if not element.signed:
                return BytesCodec(type_.count)
        return ArrayCodec(self.codec(type_.target), type_.count)

    def _struct(self, type_: Type, names: list[str]) -> Codec:
        if type_.name == "addr" and type_.size == 16:
            return AddressCodec()
        fields = list(self._fields(type_, 0))
        kind = PrefixCodec if PrefixCodec.fits(fields) else StructCodec
        return kind(type_.name or (names[0] if names else "anonymous"), type_.size, fields)

    def _fields(self, type_: Type, base: int) -> list[Field]:
        fields = []
        for member in type_.members:
            inner = self.types.resolve(member.type_id)
            if not member.name and inner.kind == Kind.STRUCT:
                fields += self._fields(inner, base + member.offset)
            else:
                fields.append(self._field(type_, member, base))
        return fields

    def _field(self, type_: Type, member: Member, base: int = 0) -> Field:
        if member.bit_size or member.bit_offset % 8:
            raise ObjectError(
                f"{type_.name}.{member.name} is a bit-field, which has no numpy layout; "
                "use a whole integer and masks"
            )
        name = member.name or self._first_name(member.type_id)
        return Field(name, base + member.offset, self.codec(member.type_id))

    def _first_name(self, type_id: int) -> str:
        """An anonymous union goes by the name of its first named member."""
        for member in self.types.resolve(type_id).members:
            return member.name or self._first_name(member.type_id)
        return f"anonymous_{type_id}"


def opaque(size: int) -> Codec:
    """The codec of a key or value of which only the size is known: an integer, or bytes."""
    return IntCodec(size) if size in _OPAQUE_AS_INT else BytesCodec(size)


def codec_of_dtype(dtype: Any, name: str = "record") -> Codec:
    """The codec of a numpy dtype; raises InvalidError for what a BPF map cannot hold.

    >>> codec_of_dtype([("port", ">u2"), ("mac", "u1", (6,))]).encode((80, bytes(6))).hex()
    '0050000000000000'
    """
    try:
        layout = np.dtype(dtype)
    except TypeError as error:
        raise InvalidError(f"{dtype!r} is no dtype of numpy: {error}") from None
    if layout.subdtype is not None:
        element, shape = layout.subdtype
        if element == np.dtype("u1") and len(shape) == 1:
            return BytesCodec(shape[0])
        codec = codec_of_dtype(element, name)
        for count in reversed(shape):
            codec = ArrayCodec(codec, count)
        return codec
    if layout.fields is not None:
        fields = sorted((at, field, inner) for field, (inner, at, *_) in layout.fields.items())
        return StructCodec(
            name,
            layout.itemsize,
            [Field(field, at, codec_of_dtype(inner, field)) for at, field, inner in fields],
        )
    return _codec_of_scalar(layout)


def _codec_of_scalar(layout: np.dtype[Any]) -> Codec:
    native = layout.isnative or layout.itemsize == 1
    if layout.kind == "u" and not native:
        return BigEndianCodec(layout.itemsize)
    if layout.kind in "iu" and native:
        return IntCodec(layout.itemsize, layout.kind == "i")
    if layout.kind == "f" and native and layout.itemsize in (4, 8):
        return FloatCodec(layout.itemsize)
    if layout.kind == "b":
        return BoolCodec()
    if layout.kind == "S":
        return TextCodec(layout.itemsize)
    raise InvalidError(
        f"a BPF map cannot hold {layout}; use integers, floats, bool, S, arrays and structs of them"
    )
