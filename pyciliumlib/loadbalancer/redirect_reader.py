"""CiliumLocalRedirectPolicy objects: connections that stay on their node.

https://docs.cilium.io/en/stable/network/kubernetes/local-redirect-policy/
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Set
from typing import TYPE_CHECKING, Any, Final

from attrs import evolve, frozen

from pyciliumlib.identity import Selector
from pyciliumlib.loadbalancer.backend import Backend, transport
from pyciliumlib.loadbalancer.kinds import FrontendType
from pyciliumlib.loadbalancer.pod_reader import PodObject
from pyciliumlib.loadbalancer.reader import Reader
from pyciliumlib.loadbalancer.service import Frontend, LocalRedirect, Service
from pyciliumlib.types import Address, Protocol, parse_address

if TYPE_CHECKING:
    from pyciliumlib.loadbalancer.documents import LocalNode

_FIELDS: Final = ("apiVersion", "kind", "metadata", "spec", "status")
_SPEC: Final = ("description", "redirectBackend", "redirectFrontend", "skipRedirectFromBackend")
_FRONTEND: Final = ("addressMatcher", "serviceMatcher")
_ADDRESS: Final = ("ip", "toPorts")
_SERVICE: Final = ("namespace", "serviceName", "toPorts")
_BACKEND: Final = ("localEndpointSelector", "toPorts")
_PORT: Final = ("name", "port", "protocol")


@frozen
class NamedPort:
    """A port of a policy or of a service."""

    name: str
    number: int
    protocol: Protocol


@frozen
class RedirectPolicy:
    """A policy as it was read: for an address, or for a service of its namespace."""

    document: str
    namespace: str
    name: str
    address: Address | None
    service: str
    frontend_ports: tuple[NamedPort, ...]
    selector: Selector
    backend_ports: tuple[NamedPort, ...]
    skip_from_backends: bool

    def redirect(
        self, service: Service, pods: Iterable[PodObject], node: LocalNode
    ) -> LocalRedirect | None:
        """What it makes of a port of the service that it names; None where nothing changes."""
        for frontend in service.frontends:
            if frontend.type is FrontendType.CLUSTER_IP:
                port = NamedPort(service.port_name, frontend.port, frontend.protocol)
                if self._covers(port):
                    versions = {one.address.version for one in service.frontends}
                    return self._to(port, pods, node, versions)
        return None

    def services(self, pods: Iterable[PodObject], node: LocalNode) -> Iterator[Service]:
        """A service for each port of the address that it names."""
        if self.address is None:
            return
        listed = list(pods)
        for port in self.frontend_ports:
            redirect = self._to(port, listed, node, {self.address.version})
            if redirect is not None:
                frontend = Frontend(
                    self.address, port.number, port.protocol, FrontendType.LOCAL_REDIRECT
                )
                name = f"local-redirect-{port.number}-{str(port.protocol).lower()}"
                yield Service(
                    self.name, [frontend], namespace=self.namespace, port_name=name,
                    redirect=redirect,
                )  # fmt: skip

    def _covers(self, port: NamedPort) -> bool:
        wanted = {(one.number, one.protocol) for one in self.frontend_ports}
        return not wanted or (port.number, port.protocol) in wanted

    def _to(
        self, port: NamedPort, pods: Iterable[PodObject], node: LocalNode, versions: Set[int]
    ) -> LocalRedirect | None:
        """To the pods on this node that listen; None where there are none."""
        named = len(self.frontend_ports) > 1 or (
            not self.frontend_ports and len(self.backend_ports) > 1
        )
        wanted = [
            one
            for one in self.backend_ports
            if one.protocol is port.protocol and (not named or one.name == port.name.lower())
        ]
        backends = {
            backend.key: backend
            for pod in pods
            if self._selects(pod, node)
            for one in wanted
            if _listens(pod, one, named=named)
            for backend in _at(pod, one)
            if backend.address.version in versions
        }
        if not backends:
            return None
        whole_name = f"{self.namespace}/{self.name}"
        return LocalRedirect(whole_name, backends.values(), self.skip_from_backends)

    def _selects(self, pod: PodObject, node: LocalNode) -> bool:
        here = pod.namespace == self.namespace and pod.ready and pod.is_on(node)
        return here and self.selector.matches(pod.labels)


def _listens(pod: PodObject, wanted: NamedPort, *, named: bool) -> bool:
    """Whether the pod declares the port; one that declares none is taken at the policy's word."""
    if not pod.ports and not named:
        return True
    return any(
        (port.number, port.protocol) == (wanted.number, wanted.protocol)
        and (not named or port.name.lower() == wanted.name)
        for port in pod.ports
    )


def _at(pod: PodObject, port: NamedPort) -> list[Backend]:
    return [Backend(a, port.number, port.protocol, node=pod.node) for a in pod.addresses]


def apply_redirects(
    policies: Iterable[RedirectPolicy],
    services: list[Service],
    pods: Iterable[PodObject],
    node: LocalNode,
    reader: Reader,
) -> list[Service]:
    """The services as the policies change them, and those that the policies make."""
    listed, after = list(pods), list(services)
    taken = {(f.address, f.port, f.protocol): str(one.key) for one in after for f in one.frontends}
    for policy in policies:
        reader.document = policy.document
        found = False
        for index, service in enumerate(after):
            if (service.namespace, service.name) != (policy.namespace, policy.service):
                continue
            found = True
            redirect = policy.redirect(service, listed, node)
            if redirect is not None and service.redirect is not None:
                there = service.redirect.policy
                reader.problem("spec", f"{service.key} is redirected by {there} already")
            elif redirect is not None:
                after[index] = evolve(service, redirect=redirect)
        if policy.service and not found:
            reader.warn(
                "spec.redirectFrontend.serviceMatcher",
                f"no Service {policy.namespace}/{policy.service} is among the documents",
            )
        for service in policy.services(listed, node):
            (frontend,) = service.frontends
            place = frontend.address, frontend.port, frontend.protocol
            if place in taken:
                where = "spec.redirectFrontend.addressMatcher"
                reader.problem(where, f"{frontend} is {taken[place]}'s already")
            else:
                taken[place] = str(service.key)
                after.append(service)
    return after


# ---------------------------------------------------------------------- reading


def read_redirect(data: Mapping[str, Any], reader: Reader) -> Iterator[RedirectPolicy]:
    """The policy of an object; what is wrong goes to `reader`."""
    reader.check_fields(data, _FIELDS, "")
    metadata, spec = (reader.get(data, name, dict, "") for name in ("metadata", "spec"))
    name = reader.get(metadata, "name", str, "metadata")
    namespace = reader.get(metadata, "namespace", str, "metadata") or "default"
    if not name:
        reader.problem("metadata.name", "it is missing")
        return
    reader.document += f" (CiliumLocalRedirectPolicy {namespace}/{name})"
    reader.check_fields(spec, _SPEC, "spec")
    frontend, backend = (
        reader.get(spec, field, dict, "spec") for field in ("redirectFrontend", "redirectBackend")
    )
    before = len(reader.problems)
    address, service, ports = _frontend(frontend, namespace, reader)
    named = len(ports) > 1
    where = "spec.redirectBackend"
    reader.check_fields(backend, _BACKEND, where)
    backend_ports = _ports(backend, where, reader, named=named)
    if not backend_ports and len(reader.problems) == before:
        reader.problem(f"{where}.toPorts", "it is missing; name the port that the pods listen on")
    if "localEndpointSelector" not in backend:
        reader.problem(where, "localEndpointSelector is missing; it chooses the pods")
    with reader.catching(where):
        selector = Selector.parse(
            reader.get(backend, "localEndpointSelector", dict, where), "localEndpointSelector"
        )
        if len(ports) == 1 and backend_ports and backend_ports[0].protocol != ports[0].protocol:
            reader.problem(
                f"{where}.toPorts",
                f"{backend_ports[0].protocol}, and the frontend's is {ports[0].protocol}",
            )
        skip = reader.get(spec, "skipRedirectFromBackend", bool, "spec")
        yield RedirectPolicy(
            reader.document, namespace, name, address, service, ports, selector, backend_ports, skip
        )


def _frontend(
    frontend: Mapping[str, Any], namespace: str, reader: Reader
) -> tuple[Address | None, str, tuple[NamedPort, ...]]:
    """The address or the service's name, and the ports."""
    where = "spec.redirectFrontend"
    reader.check_fields(frontend, _FRONTEND, where)
    present = [name for name in _FRONTEND if name in frontend]
    if len(present) != 1:
        reader.problem(where, f"write one of {', '.join(_FRONTEND)}, found {len(present)}")
        return None, "", ()
    path = f"{where}.{present[0]}"
    matcher = reader.get(frontend, present[0], dict, where)
    ports = _ports(matcher, path, reader)
    if present == ["serviceMatcher"]:
        reader.check_fields(matcher, _SERVICE, path)
        name = reader.get(matcher, "serviceName", str, path)
        if not name:
            reader.problem(f"{path}.serviceName", "it is missing")
        if (reader.get(matcher, "namespace", str, path) or namespace) != namespace:
            reader.problem(f"{path}.namespace", f"it has to be the policy's own, {namespace}")
        return None, name, ports
    reader.check_fields(matcher, _ADDRESS, path)
    if not ports:
        reader.problem(f"{path}.toPorts", "it is missing; name the ports of the address")
    address: Address | None = None
    with reader.catching(f"{path}.ip"):
        address = parse_address(reader.get(matcher, "ip", str, path))
    return address, "", ports


def _ports(
    found: Mapping[str, Any], path: str, reader: Reader, *, named: bool = False
) -> tuple[NamedPort, ...]:
    """The ports of a list; where there are several, each has a name."""
    listed = list(reader.objects(found, "toPorts", path))
    ports = []
    for port, where in listed:
        reader.check_fields(port, _PORT, where)
        with reader.catching(where):
            name = reader.get(port, "name", str, where).lower()
            if not name and (named or len(listed) > 1):
                reader.problem(f"{where}.name", "one of several ports needs a name")
            protocol = transport(reader.get(port, "protocol", str, where) or "TCP")
            number = reader.port(port, "port", where, text=True)
            if number:
                ports.append(NamedPort(name, number, protocol))
    return tuple(ports)
