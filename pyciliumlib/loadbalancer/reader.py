"""What every reader of a document needs: the path of each fault, and all faults at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

from attrs import define, field

from pyciliumlib.errors import InvalidError, ServiceError, nearest
from pyciliumlib.loadbalancer.kinds import Word
from pyciliumlib.types.ports import PORT_MAX

_W = TypeVar("_W", bound=Word)


@define
class Reader:
    """Reads fields of YAML objects, and gathers what is wrong by document and path."""

    document: str = ""
    problems: list[str] = field(factory=list)
    warnings: list[str] = field(factory=list)

    def problem(self, path: str, message: str) -> None:
        """A fault in the document."""
        self.problems.append(self._at(path, message))

    def refuse(self, document: str, message: str) -> None:
        """A document that has no fields to look at."""
        self.document = document
        self.problem("", message)

    def warn(self, path: str, message: str) -> None:
        """Something that is taken but may not mean what its author thinks."""
        self.warnings.append(self._at(path, message))

    def _at(self, path: str, message: str) -> str:
        return ": ".join(part for part in (self.document, path, message) if part)

    @contextmanager
    def catching(self, path: str) -> Iterator[None]:
        """Turn an InvalidError of the block into a problem at `path`."""
        try:
            yield
        except InvalidError as error:
            self.problem(path, str(error))

    def check_fields(self, found: Mapping[str, Any], known: tuple[str, ...], path: str) -> None:
        """Refuse the fields that are not `known`."""
        for name in found:
            if name not in known:
                where = f"{path}.{name}" if path else str(name)
                self.problem(where, f"unknown field{nearest(str(name), known)}")

    def get(self, found: Mapping[str, Any], name: str, kind: type, path: str) -> Any:
        """A field of a type, or that type's empty value where it is missing, null or wrong."""
        value = found.get(name)
        wrong = not isinstance(value, kind) or (kind is int and isinstance(value, bool))
        if value is not None and wrong:
            where = f"{path}.{name}" if path else name
            self.problem(where, f"expected {_FORMS[kind]}, found {value!r:.60}{_mend(kind, value)}")
        return kind() if value is None or wrong else value

    def word(self, found: Mapping[str, Any], name: str, kind: type[_W], path: str) -> _W | None:
        """A text out of the list of `kind`, or None where it is missing or wrong."""
        text = self.get(found, name, str, path)
        try:
            return kind(text) if text else None
        except InvalidError as error:
            self.problem(f"{path}.{name}", str(error))
            return None

    def port(self, found: Mapping[str, Any], name: str, path: str, *, text: bool = False) -> int:
        """A port number, with `text` also a text of digits; 0 where it is wrong."""
        value = found.get(name)
        if text and isinstance(value, str) and value.isascii() and value.isdigit():
            value = int(value)
        number: int = self.get({name: value}, name, int, path)
        if not 1 <= number <= PORT_MAX:
            if value is None or isinstance(value, int):  # else it was told already
                self.problem(f"{path}.{name}", f"{value!r}: write 1 to {PORT_MAX}")
            return 0
        return number

    def objects(
        self, found: Mapping[str, Any], name: str, path: str
    ) -> Iterator[tuple[Mapping[str, Any], str]]:
        """The objects of a list, each with its path."""
        for index, value in enumerate(self.get(found, name, list, path)):
            where = f"{path}.{name}[{index}]" if path else f"{name}[{index}]"
            if isinstance(value, Mapping):
                yield value, where
            else:
                self.problem(where, f"expected an object, found {value!r:.60}")

    def texts(self, found: Mapping[str, Any], name: str, path: str) -> Iterator[tuple[str, str]]:
        """The texts of a list, each with its path."""
        for index, value in enumerate(self.get(found, name, list, path)):
            where = f"{path}.{name}[{index}]"
            if isinstance(value, str):
                yield value, where
            else:
                self.problem(where, f"expected a text, found {value!r:.60}{_mend(str, value)}")

    def text_map(self, found: Mapping[str, Any], name: str, path: str) -> dict[str, str]:
        """An object whose values are texts, such as labels."""
        kept = {}
        for key, value in self.get(found, name, dict, path).items():
            if isinstance(key, str) and isinstance(value, str):
                kept[key] = value
            else:
                where = f"{path}.{name}[{key!r}]"
                self.problem(where, f"expected a text, found {value!r:.60}{_mend(str, value)}")
        return kept

    def raise_if_any(self) -> None:
        """Raise ServiceError with all that was found."""
        if self.problems:
            raise ServiceError(
                f"{len(self.problems)} problem(s) in service documents; nothing was applied",
                self.problems,
            )


_FORMS = {str: "a text", bool: "true or false", int: "a whole number", list: "a list"} | {
    dict: "an object"
}


def _mend(kind: type, value: object) -> str:
    if kind is str and isinstance(value, (bool, int, float)):
        return f'; quote it: "{str(value).lower() if isinstance(value, bool) else value}"'
    return "; put '- ' before its first field" if kind is list and type(value) is dict else ""
