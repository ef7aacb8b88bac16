"""Documents from YAML text, files or decoded objects, as a set that is right as a whole or refused.

A set may hold several kinds of object; each becomes a value, and a kind that is not about policy
is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import yaml
from attrs import frozen

from pyciliumlib.errors import NotFoundError, PolicyError, nearest
from pyciliumlib.policy import cidr_groups, cilium, cluster_policy, kubernetes, services
from pyciliumlib.policy.bounds import excess
from pyciliumlib.policy.model import NamespaceDocument, PolicyDocument, PolicyKey
from pyciliumlib.policy.schema import Problems
from pyciliumlib.policy.settings import PolicySettings
from pyciliumlib.policy.yaml_loader import DocumentLoader
from pyciliumlib.types.collector import collector_at_rest

#: What `parse` takes: YAML text, the path of a file or of a folder of them, or decoded objects.
PolicyInput = str | Path | Mapping[str, Any] | Iterable[Mapping[str, Any]]

TEXT_MAX: Final = 64 << 20
#: Aliases of aliases multiply with each level of a rule; policies have hardly a use for them.
_ALIASES_MAX: Final = 64
_SUFFIXES: Final = (".yaml", ".yml", ".json")


@frozen
class Documents:
    """What a set of documents says; `warnings` are things that may surprise their author.

    `objects` are the decoded documents as they came, by their keys, for who keeps them.
    """

    policies: tuple[PolicyDocument, ...] = ()
    namespaces: tuple[NamespaceDocument, ...] = ()
    warnings: tuple[str, ...] = ()
    objects: tuple[tuple[PolicyKey, Mapping[str, Any]], ...] = ()


_Reader = Callable[[Mapping[str, Any], str, PolicySettings, Problems], Any]
_KINDS: Final[dict[str, tuple[tuple[str, ...], _Reader]]] = {
    cilium.CNP: (cilium.API_VERSIONS, cilium.read_policy),
    cilium.CCNP: (cilium.API_VERSIONS, cilium.read_policy),
    kubernetes.KNP: (kubernetes.API_VERSIONS, kubernetes.read_policy),
    cluster_policy.KCNP: (cluster_policy.API_VERSIONS, cluster_policy.read_policy),
    cidr_groups.CIDR_GROUP: (cidr_groups.API_VERSIONS, cidr_groups.read_group),
    services.SERVICE: (("v1",), services.read_service),
    services.SLICE: (("discovery.k8s.io/v1",), services.read_slice),
    services.ENDPOINTS: (("v1",), services.read_endpoints),
    "Namespace": (("v1",), kubernetes.read_namespace),
}
_KNOWN_LATER: Final = (
    "CiliumEnvoyConfig",
    "CiliumClusterwideEnvoyConfig",
)


def parse(
    source: PolicyInput, settings: PolicySettings | None = None, *, prune: bool = False
) -> Documents:
    """Read policy documents.

    `source` is YAML text (it holds a line break or ": "), the path of a file or folder, or
    one or several decoded objects. With `prune`, fields that current Cilium does not know are
    left out, as its API does, and not refused.

    Raises PolicyError with every problem of every document; UnsupportedError if all of them are
    fields that Cilium knows and this version does not; NotFoundError for a path that is not there.

    >>> parse("{kind: Namespace, apiVersion: v1, metadata: {name: web}}").namespaces
    (NamespaceDocument(name='web', labels={}),)
    """
    settings = settings or PolicySettings()
    problems = Problems(prune=prune)
    found: list[Any] = []
    objects: list[Mapping[str, Any]] = []
    with collector_at_rest():
        for where, data in _documents(source, problems):
            problems.document = where
            objects.append(data)
            found.append(_read(data, settings, problems))
    problems.document = "documents"
    _check_unique(found, problems)
    problems.raise_if_any()
    return Documents(
        tuple(item for item in found if isinstance(item, PolicyDocument)),
        tuple(item for item in found if isinstance(item, NamespaceDocument)),
        tuple(problems.warnings),
        tuple((_key_of(item), data) for item, data in zip(found, objects, strict=True)),
    )


def _read(data: Mapping[str, Any], settings: PolicySettings, problems: Problems) -> Any:
    kind, version = data.get("kind"), data.get("apiVersion")
    if not isinstance(kind, str) or kind not in _KINDS:
        if kind in _KNOWN_LATER:
            problems.unsupported("kind", f"{kind} objects are not read")
        else:
            hint = nearest(str(kind), _KINDS)
            problems.add("kind", f"{kind!r} is no policy{hint}; known are {', '.join(_KINDS)}")
        return None
    versions, read = _KINDS[kind]
    if version not in versions:
        problems.add("apiVersion", f"{version!r}: a {kind} is of {' or '.join(versions)}")
    metadata = data.get("metadata")
    if isinstance(metadata, Mapping) and metadata.get("name"):
        space = f"{metadata['namespace']}/" if metadata.get("namespace") else ""
        problems.document += f" ({kind} {space}{metadata['name']})"
    return read(data, kind, settings, problems)


def _key_of(item: PolicyDocument | NamespaceDocument) -> PolicyKey:
    if isinstance(item, PolicyDocument):
        return item.key
    return PolicyKey("Namespace", "", item.name)


def _check_unique(found: list[Any], problems: Problems) -> None:
    seen: set[object] = set()
    for item in found:
        key = item.key if isinstance(item, PolicyDocument) else None
        if key is not None and key.name and key in seen:
            problems.add("", f"{key} is there twice")
        seen.add(key)


def _documents(source: PolicyInput, problems: Problems) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if isinstance(source, Mapping):
        yield from _objects([source], "", problems)
    elif isinstance(source, Path) or (isinstance(source, str) and _is_path(source)):
        for path in _files(Path(source)):
            yield from _decode(_text_of(path), path.name, problems)
    elif isinstance(source, str):
        yield from _decode(source, "", problems)
    elif isinstance(source, Iterable) and not hasattr(source, "decode"):
        yield from _objects(source, "", problems)
    else:
        raise PolicyError(f"policy: expected YAML text, a path or objects, found {source!r}")


def _is_path(text: str) -> bool:
    bare = text.strip()  # empty text is no path: it would be the current folder
    return bool(bare) and "\n" not in text and bare[0] not in "{[" and ": " not in text


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        return sorted(p for p in path.iterdir() if p.suffix in _SUFFIXES and not p.is_dir())
    if not path.is_file():
        raise NotFoundError(f"policy file {str(path)!r} is not there; YAML text has a line break")
    return [path]


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PolicyError(f"policy file {str(path)!r} cannot be read: {error}") from error


def _decode(text: str, name: str, problems: Problems) -> Iterator[tuple[str, Mapping[str, Any]]]:
    problems.document = name or "YAML text"
    if len(text) > TEXT_MAX:
        problems.add("", f"{len(text)} characters; at most {TEXT_MAX}")
        return
    try:
        _check_aliases(text)
        objects = list(yaml.load_all(text, Loader=DocumentLoader))
    except yaml.YAMLError as error:
        problems.add("", f"no YAML: {error}")
    except (RecursionError, ValueError) as error:
        problems.add("", f"no YAML that can be read: {error}")
    else:
        yield from _objects((o for o in objects if o is not None), name, problems)


def _check_aliases(text: str) -> None:
    if (
        text.count("*") > _ALIASES_MAX
        and sum(
            isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=DocumentLoader)
        )
        > _ALIASES_MAX
    ):
        raise ValueError(f"more than {_ALIASES_MAX} aliases")


def _objects(
    objects: Iterable[object], name: str, problems: Problems
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    number = 0
    for item in objects:
        for member in _members(item):
            number += 1
            where = f"{name}, document {number}" if name else f"document {number}"
            problems.document = where
            if too_much := excess(member):
                problems.add("", too_much)
            elif isinstance(member, Mapping):
                yield where, member
            else:
                problems.add("", f"expected an object with kind and metadata, found {member!r:.60}")


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
