"""Reading Service and EndpointSlice objects of Kubernetes, Pods, and Cilium's local redirects.

https://kubernetes.io/docs/reference/kubernetes-api/service-resources/
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from attrs import define, field, frozen

from pyciliumlib.documents import ObjectInput, read_objects
from pyciliumlib.errors import InvalidError, ServiceError
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

_SLICES: Final = "discovery.k8s.io/v1"
_REDIRECTS: Final = "cilium.io/v2"


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
    source: ObjectInput,
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
        for where, data in read_objects(source, "service", ServiceError, reader.refuse):
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
