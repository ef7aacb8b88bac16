"""BTF, the BPF type format: the raw bytes of a `.BTF` section read into a graph of types.

Pure Python and without a kernel. The format is in the kernel's Documentation/bpf/btf.rst.

>>> void = Types.parse(struct.pack("=HBBIIIIIB", 0xEB9F, 1, 0, 24, 0, 0, 0, 1, 0))
>>> void[0].kind
<Kind.VOID: 0>
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterator
from typing import Final

from attrs import frozen

from pyciliumlib.errors import NotFoundError, ObjectError, nearest

_MAGIC: Final = 0xEB9F
_HEADER: Final = struct.Struct("HBBIIIII")
_TYPE: Final = struct.Struct("III")
_POINTER_SIZE: Final = 8
_MOST_HOPS: Final = 64


class Kind(enum.IntEnum):
    """`BTF_KIND_*`."""

    VOID = 0
    INT = 1
    PTR = 2
    ARRAY = 3
    STRUCT = 4
    UNION = 5
    ENUM = 6
    FWD = 7
    TYPEDEF = 8
    VOLATILE = 9
    CONST = 10
    RESTRICT = 11
    FUNC = 12
    FUNC_PROTO = 13
    VAR = 14
    DATASEC = 15
    FLOAT = 16
    DECL_TAG = 17
    TYPE_TAG = 18
    ENUM64 = 19


#: Kinds that only wrap another type and do not change its layout.
WRAPPERS: Final = frozenset({Kind.TYPEDEF, Kind.VOLATILE, Kind.CONST, Kind.RESTRICT, Kind.TYPE_TAG})


@frozen
class Member:
    """A member of a struct or union, or a variable of a data section."""

    name: str
    type_id: int
    bit_offset: int
    bit_size: int = 0  # 0: not a bit-field

    @property
    def offset(self) -> int:
        """In bytes."""
        return self.bit_offset // 8


@frozen
class Type:
    """One type; which fields mean something depends on `kind`."""

    id: int
    kind: Kind
    name: str
    size: int = 0
    target: int = 0  # id of the type it points to, wraps, or has as elements
    count: int = 0  # elements of an array
    signed: bool = False
    boolean: bool = False
    members: tuple[Member, ...] = ()
    values: tuple[tuple[str, int], ...] = ()  # of an enum


class Types:
    """All types of one object, by id."""

    def __init__(self, types: list[Type], docs: dict[tuple[int, int], str]) -> None:
        self._types = types
        self._docs = docs

    @classmethod
    def parse(cls, data: bytes) -> Types:
        """Read the raw bytes of BTF.

        Raises ObjectError if they are cut, damaged, or of the other byte order.
        """
        try:
            return _Reader(data).read()
        except (struct.error, IndexError, ValueError) as error:
            raise ObjectError(
                f"the object's BTF is damaged ({error}); compile it again with clang -g"
            ) from error

    def __len__(self) -> int:
        return len(self._types)

    def __iter__(self) -> Iterator[Type]:
        return iter(self._types)

    def __getitem__(self, type_id: int) -> Type:
        try:
            return self._types[type_id]
        except IndexError:
            raise NotFoundError(f"the BTF has no type number {type_id}") from None

    def find(self, name: str, kind: Kind) -> Type:
        """The type called `name`; raises NotFoundError with the nearest name."""
        for type_ in self._types:
            if type_.kind == kind and type_.name == name:
                return type_
        known = [type_.name for type_ in self._types if type_.kind == kind]
        raise NotFoundError(
            f"the BTF has no {kind.name.lower()} {name!r}{nearest(name, known)}; "
            "a type that no map, variable or function uses is left out by clang"
        )

    def resolve(self, type_id: int) -> Type:
        """The type behind typedefs and qualifiers."""
        for _ in range(_MOST_HOPS):
            type_ = self[type_id]
            if type_.kind not in WRAPPERS:
                return type_
            type_id = type_.target
        raise ObjectError(f"type {type_id} of the BTF refers to itself")

    def typedef_names(self, type_id: int) -> list[str]:
        """The typedefs that `type_id` goes through, outermost first."""
        names = []
        for _ in range(_MOST_HOPS):
            type_ = self[type_id]
            if type_.kind not in WRAPPERS:
                break
            if type_.kind == Kind.TYPEDEF:
                names.append(type_.name)
            type_id = type_.target
        return names

    def size_of(self, type_id: int) -> int:
        """In bytes; 0 for void, functions and arrays of unknown length."""
        count = 1
        for _ in range(_MOST_HOPS):
            type_ = self.resolve(type_id)
            if type_.kind != Kind.ARRAY:
                size = _POINTER_SIZE if type_.kind == Kind.PTR else type_.size
                return count * size
            count *= type_.count
            type_id = type_.target
        raise ObjectError(f"type {type_id} of the BTF refers to itself")

    def doc(self, type_id: int, member: int = -1) -> str:
        """The text of `__attribute__((btf_decl_tag("doc:...")))`, or an empty string.

        `member` is the index of a member, -1 for the type or variable itself.
        """
        return self._docs.get((type_id, member), "")


class _Reader:
    """Reads once from front to back."""

    def __init__(self, data: bytes) -> None:
        magic, version, _, header, type_at, type_size, text_at, text_size = _HEADER.unpack_from(
            data
        )
        if magic != _MAGIC or version != 1:
            raise ValueError(f"magic {magic:#x}, version {version}")
        if len(data) < header + max(type_at + type_size, text_at + text_size):
            raise ValueError("it ends too early")
        self._data = data[header + type_at : header + type_at + type_size]
        self._texts = data[header + text_at : header + text_at + text_size]
        self._at = 0
        self._docs: dict[tuple[int, int], str] = {}

    def read(self) -> Types:
        types = [Type(0, Kind.VOID, "void")]
        while self._at < len(self._data):
            types.append(self._type(len(types)))
        return Types(types, self._docs)

    def _take(self, layout: str) -> tuple[int, ...]:
        values = struct.unpack_from(layout, self._data, self._at)
        self._at += struct.calcsize(layout)
        return values

    def _text(self, offset: int) -> str:
        return self._texts[offset : self._texts.index(b"\0", offset)].decode()

    def _type(self, type_id: int) -> Type:
        name_at, info, size_or_target = _TYPE.unpack_from(self._data, self._at)
        self._at += _TYPE.size
        kind, length, flag = Kind(info >> 24 & 0x1F), info & 0xFFFF, bool(info >> 31)
        name = self._text(name_at)
        match kind:
            case Kind.INT:
                (encoding,) = self._take("I")
                return Type(
                    type_id,
                    kind,
                    name,
                    size=size_or_target,
                    signed=bool(encoding >> 24 & 1),
                    boolean=bool(encoding >> 24 & 4),
                )
            case Kind.FLOAT:
                return Type(type_id, kind, name, size=size_or_target)
            case Kind.ARRAY:
                element, _, count = self._take("III")
                return Type(type_id, kind, name, target=element, count=count)
            case Kind.STRUCT | Kind.UNION:
                members = tuple(self._member(flag) for _ in range(length))
                return Type(type_id, kind, name, size=size_or_target, members=members)
            case Kind.ENUM:
                values = tuple(self._enumerator("Ii" if flag else "II") for _ in range(length))
                return Type(type_id, kind, name, size=size_or_target, signed=flag, values=values)
            case Kind.ENUM64:
                values = tuple(self._enumerator64(flag) for _ in range(length))
                return Type(type_id, kind, name, size=size_or_target, signed=flag, values=values)
            case Kind.DATASEC:
                variables = tuple(self._variable() for _ in range(length))
                return Type(type_id, kind, name, size=size_or_target, members=variables)
            case Kind.VAR:
                self._take("I")
            case Kind.FUNC_PROTO:
                self._at += 8 * length
            case Kind.DECL_TAG:
                (member,) = self._take("i")
                if name.startswith("doc:"):
                    self._docs[size_or_target, member] = name.removeprefix("doc:").strip()
        return Type(type_id, kind, name, target=size_or_target)

    def _member(self, bitfields: bool) -> Member:
        name, type_id, offset = self._take("III")
        if bitfields:
            return Member(self._text(name), type_id, offset & 0xFFFFFF, offset >> 24)
        return Member(self._text(name), type_id, offset)

    def _variable(self) -> Member:
        type_id, offset, _ = self._take("III")
        return Member("", type_id, offset * 8)

    def _enumerator(self, layout: str) -> tuple[str, int]:
        name, value = self._take(layout)
        return self._text(name), value

    def _enumerator64(self, signed: bool) -> tuple[str, int]:
        name, low, high = self._take("IIi" if signed else "III")
        return self._text(name), high << 32 | low
