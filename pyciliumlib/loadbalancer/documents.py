"""Reading Service and EndpointSlice objects of Kubernetes, Pods, and Cilium's local redirects.

https://kubernetes.io/docs/reference/kubernetes-api/service-resources/
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, TypeAlias

import yaml
from attrs import define, field, frozen

from pyciliumlib.errors import InvalidError, NotFoundError, ServiceError
from pyciliumlib.loadbalancer.annotations import only_on_nodes
from pyciliumlib.loadbalancer.config import LoadBalancerConfig
from pyciliumlib.loadbalancer.pod_reader import PodObject, read_pod
from pyciliumlib.loadbalancer.reader import Reader
from pyciliumlib.loadbalancer.redirect_reader import (
    RedirectPolicy,
    apply_redirects,
    read_redirect,
)
from pyciliumlib.loadbalancer.service import Service
from pyciliumlib.loadbalancer.service_reader import ServiceObject, read_service
from pyciliumlib.loadbalancer.slice_reader import Slice, read_slice
from pyciliumlib.types import Address, AddressLike, parse_address
from pyciliumlib.types.collector import collector_at_rest

#: YAML text, a file or folder, one object, or several.
ServiceInput: TypeAlias = "str | Path | Mapping[str, Any] | Iterable[Mapping[str, Any]]"
_SLICES: Final = "discovery.k8s.io/v1"
_REDIRECTS: Final = "cilium.io/v2"
_TEXT_MAX: Final = 64 << 20
_ALIASES_MAX: Final = 1000
_SUFFIXES: Final = (".yaml", ".yml", ".json")
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def _addresses(values: Iterable[AddressLike]) -> tuple[Address, ...]:
    if isinstance(values, (str, bytes)):
        raise InvalidError(f"addresses {values!r}: write a list")
    return tuple(map(parse_address, values))


@frozen
class LocalNode:
    """The node that balances: its name, addresses (for NodePort and HostPort), labels and zone."""

    name: str = ""
    addresses: tuple[Address, ...] = field(default=(), converter=_addresses)
    labels: Mapping[str, str] = field(factory=dict)
    zone: str = ""


@frozen
class ServiceDocuments:
    """What documents said: the services of this node, and what their authors may not have meant."""

    services: tuple[Service, ...]
    warnings: tuple[str, ...] = ()


def read_services(
    source: ServiceInput,
    *,
    config: LoadBalancerConfig | None = None,
    node: LocalNode | None = None,
    addresses: Mapping[str, Iterable[str]] | None = None,
) -> ServiceDocuments:
    """The services that Service and EndpointSlice objects describe, one for each port.

    Pods on this node add their host ports, and are what CiliumLocalRedirectPolicies redirect to.
    `addresses` gives addresses to services of type LoadBalancer that have none, under
    "namespace/name"; on a cluster some controller does that. Raises ServiceError with every
    problem of every document, NotFoundError for a path that is not there.

    >>> read_services('''{kind: Service, apiVersion: v1, metadata: {name: web}, spec: {
    ...     clusterIP: 10.96.0.10, ports: [{port: 80}]}}''').services[0].frontends
    (Frontend(address=IPv4Address('10.96.0.10'), port=80, protocol=<Protocol.TCP: 6>, \
type=<FrontendType.CLUSTER_IP: 'ClusterIP'>),)
    """
    config, node, reader = config or LoadBalancerConfig(), node or LocalNode(), Reader()
    given = {name: tuple(values) for name, values in (addresses or {}).items()}
    found = _Objects()
    with collector_at_rest():
        for where, data in _documents(source, reader):
            reader.document = where
            found.add(data, config, reader)
        services = _join(found, config, node, given, reader)
        reader.raise_if_any()
    return ServiceDocuments(tuple(services), tuple(reader.warnings))


@define
class _Objects:
    """The objects of all documents, before they are joined."""

    services: list[ServiceObject] = field(factory=list)
    slices: list[Slice] = field(factory=list)
    pods: list[PodObject] = field(factory=list)
    policies: list[RedirectPolicy] = field(factory=list)

    def add(self, data: Mapping[str, Any], config: LoadBalancerConfig, reader: Reader) -> None:
        """One more; what is wrong goes to `reader`."""
        kind, version = data.get("kind"), data.get("apiVersion")
        if (kind, version) == ("Service", "v1"):
            self.services.extend(read_service(data, config, reader))
        elif (kind, version) == ("EndpointSlice", _SLICES):
            self.slices.extend(read_slice(data, reader))
        elif (kind, version) == ("Pod", "v1"):
            self.pods.extend(read_pod(data, reader))
        elif (kind, version) == ("CiliumLocalRedirectPolicy", _REDIRECTS):
            self.policies.extend(read_redirect(data, reader))
        else:
            reader.problem(
                "kind",
                f"{kind!r} of {version!r}: Services and Pods of v1, EndpointSlices of {_SLICES}, "
                f"CiliumLocalRedirectPolicies of {_REDIRECTS}",
            )


def _join(
    found: _Objects,
    config: LoadBalancerConfig,
    node: LocalNode,
    given: Mapping[str, tuple[str, ...]],
    reader: Reader,
) -> list[Service]:
    """The services, with the host ports of pods and what is redirected."""
    _check_unique(found.services, reader)
    _check_given(given, found.services, reader)
    _check_node(found.pods, found.policies, node, reader)
    services = list(_balanced(found, config, node, given, reader))
    for pod in found.pods:
        if pod.is_on(node):
            services.extend(pod.host_ports(node, config, reader))
    return apply_redirects(found.policies, services, found.pods, node, reader)


def _balanced(
    found: _Objects,
    config: LoadBalancerConfig,
    node: LocalNode,
    given: Mapping[str, tuple[str, ...]],
    reader: Reader,
) -> Iterator[Service]:
    """Service objects with the slices that are theirs."""
    of_service: dict[tuple[str, str], list[Slice]] = {}
    for one in found.slices:
        of_service.setdefault((one.namespace, one.service), []).append(one)
    for item in found.services:
        reader.document = item.document
        with reader.catching(""):
            if item.skipped_by(config) or not only_on_nodes(item.annotations.exposure, node.labels):
                continue
            slices = of_service.get((item.namespace, item.name), [])
            extra = given.get(f"{item.namespace}/{item.name}", ())
            yield from item.services(slices, config, node, extra)


def _check_node(
    pods: list[PodObject], policies: list[RedirectPolicy], node: LocalNode, reader: Reader
) -> None:
    """Host ports and redirects are for the pods of this node, so it has to have a name."""
    local = [pod.document for pod in pods if pod.has_host_ports]
    local += [policy.document for policy in policies]
    if local and not node.name:
        reader.document = local[0]
        reader.problem("", 'say which node this is: node=LocalNode("its name")')


def _check_unique(objects: list[ServiceObject], reader: Reader) -> None:
    seen: set[tuple[str, str]] = set()
    for item in objects:
        if (item.namespace, item.name) in seen:
            reader.document = item.document
            reader.problem("metadata.name", f"{item.namespace}/{item.name} is there twice")
        seen.add((item.namespace, item.name))


def _check_given(
    given: Mapping[str, tuple[str, ...]], objects: list[ServiceObject], reader: Reader
) -> None:
    known = {f"{item.namespace}/{item.name}" for item in objects}
    reader.document = "addresses"
    for name in given:
        if name not in known:
            reader.problem(name, "no Service of that namespace and name is among the documents")


def _documents(source: ServiceInput, reader: Reader) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if isinstance(source, Mapping):
        yield from _objects([source], "", reader)
    elif isinstance(source, Path) or (isinstance(source, str) and _is_path(source)):
        for path in _files(Path(source)):
            yield from _decode(_text_of(path), path.name, reader)
    elif isinstance(source, str):
        yield from _decode(source, "", reader)
    elif isinstance(source, Iterable) and not hasattr(source, "decode"):
        yield from _objects(source, "", reader)
    else:
        raise InvalidError(f"services: expected YAML text, a path or objects, found {source!r:.60}")


def _is_path(text: str) -> bool:
    bare = text.strip()
    return bool(bare) and "\n" not in text and bare[0] not in "{[" and ": " not in text


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        return sorted(p for p in path.iterdir() if p.suffix in _SUFFIXES and p.is_file())
    if not path.is_file():
        raise NotFoundError(f"service file {str(path)!r} is not there; YAML text has a line break")
    return [path]


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ServiceError(f"service file {str(path)!r} cannot be read: {error}") from error


def _decode(text: str, name: str, reader: Reader) -> Iterator[tuple[str, Mapping[str, Any]]]:
    reader.document = name or "YAML text"
    if len(text) > _TEXT_MAX or text.count("*") > _ALIASES_MAX:
        reader.problem("", f"more than {_TEXT_MAX} characters or {_ALIASES_MAX} aliases")
        return
    try:
        objects = [item for item in yaml.load_all(text, Loader=_Loader) if item is not None]
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        reader.problem("", f"no YAML that can be read: {error}")
    else:
        yield from _objects(objects, name, reader)


def _objects(
    objects: Iterable[object], name: str, reader: Reader
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    number = 0
    for item in objects:
        members: Any = [item]
        if isinstance(item, Mapping) and str(item.get("kind", "")).endswith("List"):
            members = item.get("items") or []
        for member in members if isinstance(members, list) else [members]:
            number += 1
            where = f"{name}, document {number}" if name else f"document {number}"
            if isinstance(member, Mapping):
                yield where, member
            else:
                reader.document = where
                reader.problem(
                    "", f"expected an object with kind and metadata, found {member!r:.60}"
                )
