"""The Python value of a C struct: an immutable, hashable record with the struct's field names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from operator import itemgetter
from typing import TYPE_CHECKING, Any, ClassVar, Final

from pyciliumlib.errors import InvalidError, nearest

if TYPE_CHECKING:
    from typing_extensions import Self

_PADDING: Final = re.compile(r"_*pad\d*")


def is_padding(name: str) -> bool:
    """Whether a field is explicit padding by its name: `pad`, `pad2`, `__pad`."""
    return _PADDING.fullmatch(name) is not None


class Record(tuple[Any, ...]):
    """A tuple of the fields' values in the order of C; one subclass a struct.

    Padding may be left out (it is zero) and is not shown. The methods begin with an underscore,
    as those of namedtuple do, since a field may have any name.
    """

    __slots__ = ()
    _fields: ClassVar[tuple[str, ...]] = ()
    _defaults: ClassVar[Mapping[str, Any]] = {}

    def __new__(cls, *values: Any, **named: Any) -> Self:
        if named or len(values) != len(cls._fields):
            return cls._from_mapping({**cls._name(values), **named})
        return tuple.__new__(cls, values)

    @classmethod
    def _make(cls, values: Iterable[Any]) -> Self:
        """From the values of all fields, which are not counted."""
        return tuple.__new__(cls, values)

    @classmethod
    def _from_mapping(cls, named: Mapping[str, Any]) -> Self:
        """Raises InvalidError for a field that is unknown or missing."""
        for name in named:
            if name not in cls._fields:
                raise InvalidError(
                    f"struct {cls.__name__} has no field {name!r}{nearest(str(name), cls._fields)}"
                )
        missing = [name for name in cls._fields if name not in named and name not in cls._defaults]
        if missing:
            raise InvalidError(f"struct {cls.__name__} lacks {', '.join(missing)}")
        return cls._make(
            named[name] if name in named else cls._defaults[name] for name in cls._fields
        )

    @classmethod
    def _name(cls, values: Sequence[Any]) -> dict[str, Any]:
        if len(values) > len(cls._fields):
            raise InvalidError(
                f"struct {cls.__name__} has {len(cls._fields)} fields, got {len(values)} values"
            )
        return dict(zip(cls._fields, values, strict=False))

    def _asdict(self) -> dict[str, Any]:
        return dict(zip(self._fields, self, strict=True))

    def _replace(self, **changes: Any) -> Self:
        return self._from_mapping({**self._asdict(), **changes})

    def __repr__(self) -> str:
        shown = (
            f"{name}={value!r}"
            for name, value in zip(self._fields, self, strict=True)
            if not is_padding(name)
        )
        return f"{type(self).__name__}({', '.join(shown)})"

    def __reduce__(self) -> tuple[Any, ...]:
        # The class is made at run time, so a pickle names it by its fields.
        return _restore, (type(self).__name__, self._fields, dict(self._defaults), tuple(self))


def record_class(name: str, fields: Iterable[str], defaults: Mapping[str, Any]) -> type[Record]:
    """A subclass of `Record`; `defaults` holds the values of fields that may be left out.

    >>> Point = record_class("point", ["x", "y", "pad"], {"pad": 0})
    >>> Point(x=1, y=2), Point(1, 2) == Point(x=1, y=2), Point(3, 4, 0).y
    (point(x=1, y=2), True, 4)
    """
    names = tuple(fields)
    body: dict[str, Any] = {"__slots__": (), "_fields": names, "_defaults": dict(defaults)}
    for index, field in enumerate(names):
        body[field] = property(itemgetter(index))
    return type(name, (Record,), body)


def _restore(
    name: str, fields: tuple[str, ...], defaults: dict[str, Any], values: tuple[Any, ...]
) -> Record:
    return record_class(name, fields, defaults)._make(values)
