"""Service objects: their ports, addresses and options."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from attrs import frozen

from pyciliumlib.loadbalancer.annotations import ServiceAnnotations, read_service_annotations
from pyciliumlib.loadbalancer.backend import Backend, transport
from pyciliumlib.loadbalancer.config import LoadBalancerConfig
from pyciliumlib.loadbalancer.kinds import FrontendType, TrafficDistribution, TrafficPolicy
from pyciliumlib.loadbalancer.pod_reader import node_frontends
from pyciliumlib.loadbalancer.reader import Reader
from pyciliumlib.loadbalancer.service import AFFINITY_DEFAULT, Frontend, Service
from pyciliumlib.loadbalancer.slice_reader import Serving, Slice, hinted
from pyciliumlib.types import Network, Protocol, parse_address, parse_network

if TYPE_CHECKING:
    from pyciliumlib.loadbalancer.documents import LocalNode

_PROXY_NAME: Final = "service.kubernetes.io/service-proxy-name"
_HEADLESS: Final = "service.kubernetes.io/headless"
_TYPES: Final = ("ClusterIP", "NodePort", "LoadBalancer", "ExternalName")
_FIELDS: Final = ("apiVersion", "kind", "metadata", "spec", "status")
_SPEC: Final = (
    "allocateLoadBalancerNodePorts", "clusterIP", "clusterIPs", "externalIPs", "externalName",
    "externalTrafficPolicy", "healthCheckNodePort", "internalTrafficPolicy", "ipFamilies",
    "ipFamilyPolicy", "loadBalancerClass", "loadBalancerIP", "loadBalancerSourceRanges", "ports",
    "publishNotReadyAddresses", "selector", "sessionAffinity", "sessionAffinityConfig",
    "trafficDistribution", "type",
)  # fmt: skip
_PORT: Final = ("appProtocol", "name", "nodePort", "port", "protocol", "targetPort")


@frozen
class ServicePort:
    """One of the ports of a Service object."""

    name: str
    protocol: Protocol
    port: int
    node_port: int


@frozen
class ServiceObject:
    """A Service object as it was read, before it is joined with its slices."""

    document: str
    namespace: str
    name: str
    type: str
    proxy_name: str
    ports: tuple[ServicePort, ...]
    cluster_ips: tuple[str, ...]
    external_ips: tuple[str, ...]
    ingress_ips: tuple[str, ...]
    source_ranges: tuple[Network, ...]
    affinity_timeout: int
    external_policy: TrafficPolicy
    internal_policy: TrafficPolicy
    families: tuple[int, ...]
    health_port: int
    headless: bool
    distribution: TrafficDistribution | None
    annotations: ServiceAnnotations

    def skipped_by(self, config: LoadBalancerConfig) -> bool:
        """Whether it is nobody's to balance, or another proxy's (service-proxy-name)."""
        ours = self.proxy_name == config.service_proxy_name
        return not ours or self.headless or self.type == "ExternalName"

    @property
    def prefers_close(self) -> bool:
        """Whether hints count, which say for which zones and nodes a backend is."""
        wanted = self.annotations.topology or self.distribution is not None
        return wanted and self.internal_policy is not TrafficPolicy.LOCAL

    def services(
        self,
        slices: list[Slice],
        config: LoadBalancerConfig,
        node: LocalNode,
        addresses: tuple[str, ...],
    ) -> Iterator[Service]:
        """A service for each port that clients can reach here."""
        for port in self.ports:
            frontends = tuple(self._frontends(port, node, addresses))
            families = {frontend.address.version for frontend in frontends}
            backends = [
                backend
                for backend in self._backends(port, slices, config, node)
                if backend.address.version in families
            ]
            if frontends:
                yield self._service(port, frontends, backends)

    def _service(
        self, port: ServicePort, frontends: tuple[Frontend, ...], backends: list[Backend]
    ) -> Service:
        said = self.annotations
        return Service(
            self.name,
            frontends,
            backends,
            namespace=self.namespace,
            port_name=port.name,
            algorithm=said.algorithm,
            forwarding=said.forwarding,
            affinity_timeout=self.affinity_timeout,
            source_ranges=self.source_ranges,
            source_ranges_policy=said.source_ranges_policy,
            external_policy=self.external_policy,
            internal_policy=self.internal_policy,
            proxy_delegation=said.proxy_delegation,
            mesh=said.mesh,
            exposure=said.exposure,
            health_port=self.health_port,
        )

    def _frontends(
        self, port: ServicePort, node: LocalNode, addresses: tuple[str, ...]
    ) -> Iterator[Frontend]:
        ingress = self.ingress_ips or addresses or self.annotations.addresses
        sources: list[tuple[FrontendType, tuple[str, ...], int]] = [
            (FrontendType.CLUSTER_IP, self.cluster_ips, port.port),
            (FrontendType.EXTERNAL_IPS, self.external_ips, port.port),
        ]
        if self.type == "LoadBalancer":
            sources.append((FrontendType.LOAD_BALANCER, ingress, port.port))
        for type_, found, number in sources:
            if self.annotations.only_type in (None, type_):
                for address in found:
                    yield Frontend(address, number, port.protocol, type_)
        exposed = self.annotations.only_type in (None, FrontendType.NODE_PORT)
        if port.node_port and self.type in ("NodePort", "LoadBalancer") and exposed:
            yield from node_frontends(
                node, set(self.families), port.node_port, port.protocol, FrontendType.NODE_PORT
            )

    def _backends(
        self,
        port: ServicePort,
        slices: list[Slice],
        config: LoadBalancerConfig,
        node: LocalNode,
    ) -> list[Backend]:
        found: dict[bytes, Serving] = {}
        for item in slices:
            for one in item.ports.get((port.name, port.protocol), ()):
                kept = found.get(one.backend.key)
                # an address may be in two slices while it moves: the better state counts
                if kept is None or one.backend.state < kept.backend.state:
                    found[one.backend.key] = one
        serving = list(found.values())
        if config.service_topology and self.prefers_close:
            serving = hinted(serving, node.name, node.zone)
        return [one.backend for one in serving]


def read_service(
    data: Mapping[str, Any], config: LoadBalancerConfig, reader: Reader
) -> Iterator[ServiceObject]:
    """The Service of an object; what is wrong goes to `reader`."""
    reader.check_fields(data, _FIELDS, "")
    metadata, spec = (reader.get(data, name, dict, "") for name in ("metadata", "spec"))
    name = reader.get(metadata, "name", str, "metadata")
    namespace = reader.get(metadata, "namespace", str, "metadata") or "default"
    if not name:
        reader.problem("metadata.name", "it is missing")
        return
    reader.document += f" (Service {namespace}/{name})"
    reader.check_fields(spec, _SPEC, "spec")
    kind = reader.get(spec, "type", str, "spec") or "ClusterIP"
    if kind not in _TYPES:
        reader.problem("spec.type", f"{kind!r}: write one of {', '.join(_TYPES)}")
    annotations = reader.text_map(metadata, "annotations", "metadata")
    labels = reader.text_map(metadata, "labels", "metadata")
    cluster_ips = _cluster_ips(spec, reader)
    external_ips = _addresses(spec, "externalIPs", "spec", reader)
    ingress_ips = tuple(_ingress(data, spec, reader))
    yield ServiceObject(
        reader.document,
        namespace,
        name,
        kind,
        labels.get(_PROXY_NAME, ""),
        tuple(_ports(spec, reader)),
        cluster_ips,
        external_ips,
        ingress_ips,
        tuple(_source_ranges(spec, reader)),
        _affinity(spec, reader),
        reader.word(spec, "externalTrafficPolicy", TrafficPolicy, "spec") or TrafficPolicy.CLUSTER,
        reader.word(spec, "internalTrafficPolicy", TrafficPolicy, "spec") or TrafficPolicy.CLUSTER,
        _families(spec, cluster_ips, reader),
        reader.port(spec, "healthCheckNodePort", "spec") if spec.get("healthCheckNodePort") else 0,
        _HEADLESS in labels or spec.get("clusterIP") == "None",
        reader.word(spec, "trafficDistribution", TrafficDistribution, "spec"),
        read_service_annotations(annotations, "metadata.annotations", config, reader),
    )


def _ports(spec: Mapping[str, Any], reader: Reader) -> Iterator[ServicePort]:
    seen: set[tuple[str, Protocol]] = set()
    names: list[str] = []
    for port, path in reader.objects(spec, "ports", "spec"):
        reader.check_fields(port, _PORT, path)
        name = reader.get(port, "name", str, path)
        with reader.catching(f"{path}.protocol"):
            protocol = transport(reader.get(port, "protocol", str, path) or "TCP")
            number = reader.port(port, "port", path)
            node_port = reader.port(port, "nodePort", path) if port.get("nodePort") else 0
            if name in names:
                reader.problem(f"{path}.name", f"{name!r} is there twice; each port has its own")
            elif number and (name, protocol) not in seen:
                yield ServicePort(name, protocol, number, node_port)
            seen.add((name, protocol))
            names.append(name)


def _addresses(found: Mapping[str, Any], name: str, path: str, reader: Reader) -> tuple[str, ...]:
    kept = []
    for text, where in reader.texts(found, name, path):
        with reader.catching(where):
            kept.append(str(parse_address(text)))
    return tuple(kept)


def _cluster_ips(spec: Mapping[str, Any], reader: Reader) -> tuple[str, ...]:
    listed = dict(spec)
    if not listed.get("clusterIPs"):
        single = reader.get(spec, "clusterIP", str, "spec")
        listed["clusterIPs"] = [single] if single else []
    if listed["clusterIPs"] == ["None"]:
        return ()
    return _addresses(listed, "clusterIPs", "spec", reader)


def _ingress(data: Mapping[str, Any], spec: Mapping[str, Any], reader: Reader) -> Iterator[str]:
    balancer = reader.get(reader.get(data, "status", dict, ""), "loadBalancer", dict, "status")
    found = False
    for item, path in reader.objects(balancer, "ingress", "status.loadBalancer"):
        if item.get("ipMode") == "Proxy" or not item.get("ip"):
            continue
        with reader.catching(f"{path}.ip"):
            found = True
            yield str(parse_address(reader.get(item, "ip", str, path)))
    asked = reader.get(spec, "loadBalancerIP", str, "spec")
    if asked and not found:
        with reader.catching("spec.loadBalancerIP"):
            yield str(parse_address(asked))


def _source_ranges(spec: Mapping[str, Any], reader: Reader) -> Iterator[Network]:
    for text, path in reader.texts(spec, "loadBalancerSourceRanges", "spec"):
        with reader.catching(path):
            yield parse_network(text.strip())


def _affinity(spec: Mapping[str, Any], reader: Reader) -> int:
    kind = reader.get(spec, "sessionAffinity", str, "spec") or "None"
    if kind not in ("None", "ClientIP"):
        reader.problem("spec.sessionAffinity", f"{kind!r}: write None or ClientIP")
    config = reader.get(spec, "sessionAffinityConfig", dict, "spec")
    path = "spec.sessionAffinityConfig.clientIP"
    client_ip = reader.get(config, "clientIP", dict, "spec.sessionAffinityConfig")
    timeout: int = reader.get(client_ip, "timeoutSeconds", int, path)
    if "timeoutSeconds" in client_ip and not 0 < timeout <= 86400:
        reader.problem(f"{path}.timeoutSeconds", f"{timeout}: write 1 to 86400 seconds")
        timeout = 0
    return (timeout or AFFINITY_DEFAULT) if kind == "ClientIP" else 0


def _families(
    spec: Mapping[str, Any], cluster_ips: tuple[str, ...], reader: Reader
) -> tuple[int, ...]:
    names = [name for name, _ in reader.texts(spec, "ipFamilies", "spec")]
    unknown = [name for name in names if name not in ("IPv4", "IPv6")]
    if unknown:
        reader.problem("spec.ipFamilies", f"{unknown[0]!r}: write IPv4 or IPv6")
    told = [4 if name == "IPv4" else 6 for name in names]
    found = told or [parse_address(address).version for address in cluster_ips] or [4]
    return tuple(dict.fromkeys(found))
