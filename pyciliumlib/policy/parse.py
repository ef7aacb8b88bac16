"""Documents from YAML text, files or decoded objects, as a set that is right as a whole or refused.

A set may hold several kinds of object; each becomes a value, and a kind that is not about policy
is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from attrs import frozen

from pyciliumlib.documents import ObjectInput, read_objects
from pyciliumlib.errors import PolicyError, nearest
from pyciliumlib.policy import cidr_groups, cilium, cluster_policy, kubernetes, services
from pyciliumlib.policy.model import NamespaceDocument, PolicyDocument, PolicyKey
from pyciliumlib.policy.schema import Problems
from pyciliumlib.policy.settings import PolicySettings
from pyciliumlib.types.collector import collector_at_rest


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
    source: ObjectInput, settings: PolicySettings | None = None, *, prune: bool = False
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
        for where, data in read_objects(source, "policy", PolicyError, problems.refuse):
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
