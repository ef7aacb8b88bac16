"""The fields of policy objects, as tables.

`Schema.read` compares an object of a document with its table. Everything that is wrong goes into
one `Problems`, so that a reader of the message can mend all of it in one go.
"""

from __future__ import annotations

import enum
import marshal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, TypeVar

from attrs import define, field, frozen

from pyciliumlib.errors import LabelError, PolicyError, UnitError, UnsupportedError, nearest


class Form(enum.Enum):
    """The YAML type of a field."""

    TEXT = "a text"
    BOOL = "true or false"
    NUMBER = "a whole number"
    LIST = "a list"
    OBJECT = "an object"
    ANY = "a value"

    @property
    def type(self) -> type:
        """The Python type of its values; true and false are no numbers, though `bool` is an int."""
        return _PYTHON_TYPE[self]


_PYTHON_TYPE: Final[dict[Form, type]] = {
    Form.TEXT: str,
    Form.BOOL: bool,
    Form.NUMBER: int,
    Form.LIST: list,
    Form.OBJECT: Mapping,
    Form.ANY: object,
}


@frozen
class FieldSpec:
    """One field.

    A `legacy` one was dropped by current Cilium, whose API removes it from a document; it is
    read here unless `Problems.prune` asks for what the API does.
    """

    form: Form
    legacy: bool = False
    _type: type = field(init=False, eq=False)

    @_type.default
    def _type_of_form(self) -> type:
        return self.form.type

    def fits(self, value: object) -> bool:
        """Whether `value` is of the form."""
        kind = type(value)
        if kind is self._type or (kind is dict and self._type is Mapping):
            return True
        return isinstance(value, self._type) and not (kind is bool and self._type is int)


TEXT: Final = FieldSpec(Form.TEXT)
BOOL: Final = FieldSpec(Form.BOOL)
NUMBER: Final = FieldSpec(Form.NUMBER)
LIST: Final = FieldSpec(Form.LIST)
OBJECT: Final = FieldSpec(Form.OBJECT)
ANY: Final = FieldSpec(Form.ANY)


@define
class Problems:
    """Everything that is wrong with a set of documents, by document and field path."""

    prune: bool = False
    _found: list[str] = field(factory=list)
    _only_unsupported: bool = True
    warnings: list[str] = field(factory=list)
    document: str = ""

    def add(self, path: str, message: str) -> None:
        """A fault in the document."""
        self._only_unsupported = False
        self._found.append(self._at(path, message))

    def refuse(self, document: str, message: str) -> None:
        """A document that has no fields to look at."""
        self.document = document
        self.add("", message)

    def unsupported(self, path: str, message: str) -> None:
        """Something that Cilium knows and this version does not implement."""
        self._found.append(self._at(path, f"not supported yet: {message}"))

    def warn(self, path: str, message: str) -> None:
        """Something that is accepted but may not mean what its author thinks."""
        self.warnings.append(self._at(path, message))

    def _at(self, path: str, message: str) -> str:
        return f"{self.document}: {path}: {message}" if path else f"{self.document}: {message}"

    def __len__(self) -> int:
        return len(self._found)

    @contextmanager
    def catching(self, path: str = "") -> Iterator[None]:
        """Turn a label or unit error of the block into a problem at `path`."""
        try:
            yield
        except (LabelError, UnitError) as error:
            self.add(path, str(error))

    def raise_if_any(self) -> None:
        """Raise PolicyError, or UnsupportedError if nothing else is wrong."""
        if not self._found:
            return
        count = len(self._found)
        if self._only_unsupported:
            raise UnsupportedError(
                f"{count} field(s) that this version does not implement; nothing was applied",
                self._found,
            )
        raise PolicyError(
            f"{count} problem(s) in policy documents; nothing was applied", self._found
        )


_Read = TypeVar("_Read")
_Context = TypeVar("_Context")
#: Parts of documents that were read without a remark, by what they are and hold.
_READ_BEFORE: Final[dict[tuple[object, ...], Any]] = {}
_READ_BEFORE_MAX: Final = 1 << 15


def read_once(
    read: Callable[[Any, str, Problems, _Context], _Read],
    content: Any,
    path: str,
    problems: Problems,
    context: _Context,
) -> _Read:
    """The result of `read`, or that of an earlier call for equal `content` and `context`.

    Policies repeat themselves: a cluster has few different selectors and lists of ports. `path` is
    for remarks alone. Results are shared, so they are values; one that came with a problem or a
    warning is not kept.
    """
    try:
        key = (read, context, problems.prune, marshal.dumps(content, _MARSHAL_PLAIN))
    except ValueError:  # not made of plain YAML types
        return read(content, path, problems, context)
    if key in _READ_BEFORE:
        found: _Read = _READ_BEFORE[key]
        return found
    remarks = len(problems), len(problems.warnings)
    found = read(content, path, problems, context)
    if remarks == (len(problems), len(problems.warnings)):
        if len(_READ_BEFORE) >= _READ_BEFORE_MAX:
            _READ_BEFORE.clear()
        _READ_BEFORE[key] = found
    return found


#: A form of marshal that depends on the content alone, and tells 1 from true and 1.0.
_MARSHAL_PLAIN: Final = 2


@frozen
class Schema:
    """The table of one kind of object."""

    name: str
    fields: Mapping[str, FieldSpec]
    required: tuple[str, ...] = ()
    one_of: tuple[str, ...] = ()
    #: The Python types of the fields that are read without more ado.
    _plain: Mapping[str, type] = field(init=False, eq=False)

    @_plain.default
    def _types_of_plain_fields(self) -> Mapping[str, type]:
        specs = self.fields.items()
        plain = {name: spec.form for name, spec in specs if not spec.legacy}
        return {n: dict if form is Form.OBJECT else form.type for n, form in plain.items()}

    def read(self, value: object, path: str, problems: Problems) -> dict[str, Any]:
        """The fields of `value` that are known, of the right form and not null; not to be changed.

        What is wrong goes to `problems`; a field that is wrong is left out.
        """
        if type(value) is not dict and not isinstance(value, Mapping):
            problems.add(path, f"expected {Form.OBJECT.value} ({self.name}), found {_show(value)}")
            return {}
        if type(value) is dict and self._is_plain(value):
            found = value
        else:
            found = self._sift(value, path, problems)
        for name in self.required:
            if value.get(name) is None:
                problems.add(path, f"{name} is missing")
        if self.one_of and sum(value.get(name) is not None for name in self.one_of) != 1:
            problems.add(path, f"exactly one of {', '.join(self.one_of)} is needed")
        return found

    def _is_plain(self, value: Mapping[Any, Any]) -> bool:
        """Whether every field is known and as it should be, at first sight."""
        return list(map(type, value.values())) == list(map(self._plain.get, value))

    def _sift(self, value: Mapping[Any, Any], path: str, problems: Problems) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, item in value.items():
            spec = self.fields.get(name) if isinstance(name, str) else None
            if spec is not None and not spec.legacy and spec.fits(item):
                if item is not None:
                    found[name] = item
                continue
            where = f"{path}.{name}" if path else str(name)
            if spec is None:
                if not problems.prune:
                    problems.add(
                        where, f"unknown field of the {self.name}{nearest(str(name), self.fields)}"
                    )
            elif item is None or (spec.legacy and problems.prune):
                continue
            elif not spec.fits(item):
                problems.add(
                    where,
                    f"expected {spec.form.value}, found {_show(item)}" + _mend(spec.form, item),
                )
            else:
                found[name] = item
        return found

    def read_list(
        self, values: list[Any], path: str, problems: Problems
    ) -> Iterator[tuple[dict[str, Any], str]]:
        """Each object of a list, with its path."""
        for index, value in enumerate(values):
            where = f"{path}[{index}]"
            yield self.read(value, where, problems), where


def _show(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _mend(form: Form, value: object) -> str:
    if form is Form.TEXT and isinstance(value, (bool, int, float)):
        return f'; quote it: "{value}"'
    if form is Form.LIST and isinstance(value, Mapping):
        return "; put '- ' before its first field"
    return ""


def texts(values: list[Any], path: str, problems: Problems) -> list[tuple[str, str]]:
    """The texts of a list, each with its path; anything else is a problem."""
    found = []
    for index, value in enumerate(values):
        where = f"{path}[{index}]"
        if isinstance(value, str):
            found.append((value, where))
        else:
            problems.add(where, f"expected a text, found {_show(value)}{_mend(Form.TEXT, value)}")
    return found
