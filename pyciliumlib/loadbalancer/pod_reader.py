"""Pod objects: where they are, what they listen on, and the ports of the node that are theirs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from typing import TYPE_CHECKING, Any, Final

from attrs import frozen

from pyciliumlib.identity import Labels
from pyciliumlib.loadbalancer.backend import Backend, transport
from pyciliumlib.loadbalancer.config import LoadBalancerConfig
from pyciliumlib.loadbalancer.kinds import FrontendType
from pyciliumlib.loadbalancer.reader import Reader
from pyciliumlib.loadbalancer.service import Frontend, Service
from pyciliumlib.types import Address, Protocol, parse_address

if TYPE_CHECKING:
    from pyciliumlib.loadbalancer.documents import LocalNode

_ANYWHERE: Final = {4: parse_address("0.0.0.0"), 6: parse_address("::")}
_ENDED: Final = ("Succeeded", "Failed")


@frozen
class PodPort:
    """A port that a container says it listens on; `host_port` is the node's, 0 none."""

    name: str
    number: int
    protocol: Protocol
    host_port: int = 0
    host_ip: Address | None = None


@frozen
class PodObject:
    """What a Pod object says that matters for services."""

    document: str
    namespace: str
    name: str
    labels: Labels
    node: str
    addresses: tuple[Address, ...]
    ports: tuple[PodPort, ...]
    ready: bool
    lives: bool
    host_network: bool

    def is_on(self, node: LocalNode) -> bool:
        """Whether it runs on this node, in a network namespace of its own."""
        return self.lives and not self.host_network and self.node == node.name

    @property
    def has_host_ports(self) -> bool:
        """Whether it wants ports of its node."""
        return self.lives and not self.host_network and any(p.host_port for p in self.ports)

    def host_ports(
        self, node: LocalNode, config: LoadBalancerConfig, reader: Reader
    ) -> Iterator[Service]:
        """A service for each port of this node that is the pod's."""
        reader.document = self.document
        for port in self.ports:
            if not port.host_port:
                continue
            if config.node_ports.first <= port.host_port <= config.node_ports.last:
                reader.warn(
                    "spec.containers",
                    f"hostPort {port.host_port} is one of the NodePorts and left out",
                )
                continue
            backends = [Backend(a, port.number, port.protocol, node=self.node)
                        for a in self.addresses]  # fmt: skip
            frontends = list(self._frontends(port, node))
            versions = {frontend.address.version for frontend in frontends}
            yield Service(
                self.name,
                frontends,
                [backend for backend in backends if backend.address.version in versions],
                namespace=self.namespace,
                port_name=f"host-port-{port.host_port}-{str(port.protocol).lower()}",
            )

    def _frontends(self, port: PodPort, node: LocalNode) -> Iterator[Frontend]:
        if port.host_ip is not None and not port.host_ip.is_unspecified:
            yield Frontend(port.host_ip, port.host_port, port.protocol, FrontendType.HOST_PORT)
            return
        versions: set[int] = {address.version for address in self.addresses}
        if port.host_ip is not None:
            versions &= {port.host_ip.version}
        yield from node_frontends(
            node, versions, port.host_port, port.protocol, FrontendType.HOST_PORT
        )


def node_frontends(
    node: LocalNode, versions: Set[int], port: int, protocol: Protocol, type_: FrontendType
) -> Iterator[Frontend]:
    """A port at each of the node's addresses of these families, and at the unspecified ones."""
    for address in node.addresses:
        if address.version in versions:
            yield Frontend(address, port, protocol, type_)
    for version in sorted(versions):
        yield Frontend(_ANYWHERE[version], port, protocol, type_)


def read_pod(data: Mapping[str, Any], reader: Reader) -> Iterator[PodObject]:
    """The pod of an object, by the few fields that matter; what is wrong goes to `reader`."""
    metadata, spec, status = (
        reader.get(data, name, dict, "") for name in ("metadata", "spec", "status")
    )
    name = reader.get(metadata, "name", str, "metadata")
    namespace = reader.get(metadata, "namespace", str, "metadata") or "default"
    if not name:
        reader.problem("metadata.name", "it is missing")
        return
    reader.document += f" (Pod {namespace}/{name})"
    labels = reader.text_map(metadata, "labels", "metadata")
    conditions = [found for found, _ in reader.objects(status, "conditions", "status")]
    with reader.catching("metadata.labels"):
        yield PodObject(
            reader.document,
            namespace,
            name,
            Labels.parse(labels, source="k8s"),
            reader.get(spec, "nodeName", str, "spec"),
            tuple(_addresses(status, reader)),
            tuple(_ports(spec, reader)),
            any(c.get("type") == "Ready" and c.get("status") == "True" for c in conditions),
            status.get("phase") not in _ENDED,
            reader.get(spec, "hostNetwork", bool, "spec"),
        )


def _addresses(status: Mapping[str, Any], reader: Reader) -> Iterator[Address]:
    listed = [(one.get("ip"), path) for one, path in reader.objects(status, "podIPs", "status")]
    if not listed and status.get("podIP"):
        listed = [(status["podIP"], "status.podIP")]
    for text, path in listed:
        with reader.catching(path):
            yield parse_address(text or "")


def _ports(spec: Mapping[str, Any], reader: Reader) -> Iterator[PodPort]:
    for kind in ("initContainers", "containers"):
        for container, where in reader.objects(spec, kind, "spec"):
            for port, path in reader.objects(container, "ports", where):
                with reader.catching(path):
                    host_ip = reader.get(port, "hostIP", str, path)
                    number = reader.port(port, "containerPort", path)
                    if number:
                        yield PodPort(
                            reader.get(port, "name", str, path),
                            number,
                            transport(reader.get(port, "protocol", str, path) or "TCP"),
                            reader.port(port, "hostPort", path) if port.get("hostPort") else 0,
                            parse_address(host_ip) if host_ip else None,
                        )
