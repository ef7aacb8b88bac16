"""Objects from YAML text, the path of a file or folder, or decoded ones, and where each stands."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeAlias

import yaml
from attrs import frozen

from pyciliumlib.documents.bounds import excess
from pyciliumlib.documents.yaml_loader import DocumentLoader
from pyciliumlib.errors import NotFoundError, PyCiliumError

#: YAML text, the path of a file or of a folder of them, one decoded object, or several.
ObjectInput: TypeAlias = "str | Path | Mapping[str, Any] | Iterable[Mapping[str, Any]]"
#: The name of a document, "web.yaml, document 2", and the object.
Named: TypeAlias = "tuple[str, Mapping[str, Any]]"

#: Characters of one text.
TEXT_MAX: Final = 64 << 20
#: Aliases of aliases multiply with each level; objects have hardly a use for them.
_ALIASES_MAX: Final = 64
_SUFFIXES: Final = (".yaml", ".yml", ".json")


def read_objects(
    source: ObjectInput,
    what: str,
    error: type[PyCiliumError],
    problem: Callable[[str, str], None],
) -> Iterator[Named]:
    """The objects of `source`, those of a List object one by one.

    `problem` is told the document and what is wrong with one that is no object, is no YAML, or is
    too much (documents/bounds.py), and the rest is read. `what` they are about is said in `error`,
    which is raised for a file that cannot be read and for anything else than an `ObjectInput`.
    A path with nothing there is a NotFoundError.
    """
    return _Reading(what, error, problem).of(source)


@frozen
class _Reading:
    what: str
    error: type[PyCiliumError]
    problem: Callable[[str, str], None]

    def of(self, source: ObjectInput) -> Iterator[Named]:
        if isinstance(source, Mapping):
            yield from self._objects([source], "")
        elif isinstance(source, Path) or (isinstance(source, str) and _is_path(source)):
            for path in self._files(Path(source)):
                yield from self._decode(self._text_of(path), path.name)
        elif isinstance(source, str):
            yield from self._decode(source, "")
        elif isinstance(source, Iterable) and not hasattr(source, "decode"):
            yield from self._objects(source, "")
        else:
            raise self.error(
                f"{self.what}: expected YAML text, a path or objects, found {source!r:.60}"
            )

    def _files(self, path: Path) -> list[Path]:
        if path.is_dir():
            return sorted(p for p in path.iterdir() if p.suffix in _SUFFIXES and not p.is_dir())
        if not path.is_file():
            raise NotFoundError(
                f"{self.what} file {str(path)!r} is not there; YAML text has a line break"
            )
        return [path]

    def _text_of(self, path: Path) -> str:
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise self.error(f"{self.what} file {str(path)!r} cannot be read: {error}") from error

    def _decode(self, text: str, name: str) -> Iterator[Named]:
        where = name or "YAML text"
        if len(text) > TEXT_MAX:
            self.problem(where, f"{len(text)} characters; at most {TEXT_MAX}")
            return
        try:
            _check_aliases(text)
            objects = list(yaml.load_all(text, Loader=DocumentLoader))
        except yaml.YAMLError as error:
            self.problem(where, f"no YAML: {error}")
        except (RecursionError, ValueError) as error:
            self.problem(where, f"no YAML that can be read: {error}")
        else:
            yield from self._objects((o for o in objects if o is not None), name)

    def _objects(self, objects: Iterable[object], name: str) -> Iterator[Named]:
        number = 0
        for item in objects:
            for member in _members(item):
                number += 1
                where = f"{name}, document {number}" if name else f"document {number}"
                if too_much := excess(member):
                    self.problem(where, too_much)
                elif isinstance(member, Mapping):
                    yield where, member
                else:
                    self.problem(
                        where, f"expected an object with kind and metadata, found {member!r:.60}"
                    )


def _is_path(text: str) -> bool:
    bare = text.strip()  # empty text is no path: it would be the current folder
    return bool(bare) and "\n" not in text and bare[0] not in "{[" and ": " not in text


def _check_aliases(text: str) -> None:
    if (
        text.count("*") > _ALIASES_MAX
        and sum(
            isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=DocumentLoader)
        )
        > _ALIASES_MAX
    ):
        raise ValueError(f"more than {_ALIASES_MAX} aliases")


def _members(item: object) -> Sequence[object]:
    """The items of a List object, or the one object that it is."""
    if isinstance(item, Mapping):
        kind, items = item.get("kind"), item.get("items")
        if isinstance(kind, str) and kind.endswith("List"):
            if items is None:
                return ()
            if isinstance(items, (list, tuple)):
                return items
    return (item,)
