"""Services as values: where clients knock, who serves, and what is to be kept in mind."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Final

from attrs import evolve, field, frozen
from attrs.converters import optional

from pyciliumlib.errors import InvalidError, UnitError
from pyciliumlib.loadbalancer.backend import Backend, number, split_endpoint, transport
from pyciliumlib.loadbalancer.kinds import (
    Algorithm,
    DSRDispatch,
    ForwardingMode,
    FrontendType,
    MeshAffinity,
    ProxyDelegation,
    SourceRangesPolicy,
    TrafficPolicy,
)
from pyciliumlib.types import Address, Network, NetworkLike, Protocol, parse_address, parse_network
from pyciliumlib.types.ports import PORT_MAX

AFFINITY_DEFAULT: Final = 10800
#: Kubernetes' own limit: a day.
AFFINITY_MAX: Final = 86400


def _frontends(values: Iterable[str | Frontend]) -> tuple[Frontend, ...]:
    _check_listed(values, "frontends")
    return tuple(dict.fromkeys(map(Frontend.parse, values)))


def _backends(values: Iterable[str | Backend]) -> tuple[Backend, ...]:
    _check_listed(values, "backends")
    return tuple(map(Backend.parse, values))


def _check_listed(values: object, what: str) -> None:
    if isinstance(values, (str, Frontend, Backend)):
        raise InvalidError(f"{what}: write a list, [{str(values)!r}]")


def _networks(values: Iterable[NetworkLike]) -> tuple[Network, ...]:
    if isinstance(values, str):
        raise UnitError(f"source ranges {values!r}: write a list of prefixes")
    return tuple(dict.fromkeys(map(parse_network, values)))


@frozen(order=True, cache_hash=True)
class Frontend:
    """An address and port under which a service is known.

    The unspecified address, 0.0.0.0 or ::, stands for every address of the node (NodePort and
    HostPort only).

    >>> print(Frontend.parse("203.0.113.10:80"))
    203.0.113.10:80/TCP
    """

    address: Address = field(converter=parse_address)
    port: int = field(validator=number(1, PORT_MAX, "port"))
    protocol: Protocol = field(default=Protocol.TCP, converter=transport)
    type: FrontendType = field(
        default=FrontendType.LOAD_BALANCER, converter=FrontendType, order=str
    )

    def __attrs_post_init__(self) -> None:
        on_node = (FrontendType.NODE_PORT, FrontendType.HOST_PORT)
        if self.address.is_unspecified and self.type not in on_node:
            raise UnitError(f"{self}: {self.type} needs an address, and {self.address} is none")
        if self.address.is_multicast:
            raise UnitError(f"{self}: a multicast address cannot be a service's")

    @classmethod
    def parse(
        cls, text: str | Frontend, type: FrontendType | str = FrontendType.LOAD_BALANCER
    ) -> Frontend:
        """Read "203.0.113.10:80" (TCP) or "[2001:db8::10]:53/UDP".

        Raises UnitError that quotes the text.
        """
        return text if isinstance(text, Frontend) else cls(*split_endpoint(text), type)

    def __str__(self) -> str:
        host = f"[{self.address}]" if self.address.version == 6 else str(self.address)
        return f"{host}:{self.port}/{self.protocol}"


@frozen(order=True, cache_hash=True)
class ServiceKey:
    """A port of a service: what Kubernetes calls namespace, name, and the port's name."""

    namespace: str
    name: str
    port_name: str = ""

    @classmethod
    def parse(cls, text: str | ServiceKey) -> ServiceKey:
        """Read "namespace/name" or "namespace/name:port"; InvalidError for anything else.

        >>> ServiceKey.parse("default/web:http").port_name
        'http'
        """
        if isinstance(text, ServiceKey):
            return text
        namespace, slash, rest = text.partition("/")
        name, _, port_name = rest.partition(":")
        if not (slash and namespace and name):
            raise InvalidError(f"service {text!r}: write namespace/name or namespace/name:port")
        return cls(namespace, name, port_name)

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}" + (f":{self.port_name}" if self.port_name else "")


@frozen
class Mesh:
    """What a service is in a mesh of clusters (`service.cilium.io/global` and its kin)."""

    is_global: bool = False
    shared: bool = False
    affinity: MeshAffinity = field(default=MeshAffinity.NONE, converter=MeshAffinity)
    sync_endpoint_slices: bool | None = None


@frozen
class NodeExposure:
    """On which nodes a service is installed: by the label `service.cilium.io/node`, or by any."""

    node: str = ""
    selector: str = ""


@frozen
class LocalRedirect:
    """Backends on this node that take a service's connections from inside of the cluster.

    `policy` is the CiliumLocalRedirectPolicy that says so, "namespace/name". It is for frontends of
    type ClusterIP, whose own backends serve where none of these does, and for those of type
    LocalRedirect, which have no others. With `skip_from_backends` these themselves are not
    redirected: a cache of names can ask the service that it stands before.
    """

    policy: str
    backends: tuple[Backend, ...] = field(converter=_backends)
    skip_from_backends: bool = False


@frozen(cache_hash=True)
class Service:
    """One port of a service: frontends that share their backends.

    `algorithm`, `forwarding` and `dispatch` are the balancer's where they are None.
    `affinity_timeout` is in seconds, 0 is off: a client then meets the same backend until it has
    been silent for that long. `source_ranges` bind clients outside of the cluster. The policies
    say whether backends of other nodes serve clients from outside (external) and inside.
    `health_port` tells load balancers before the nodes where backends are (see `HealthNodePorts`).

    >>> web = Service("web", ["203.0.113.10:80"], ["10.0.0.1:80", "10.0.0.2:80"])
    >>> print(web.key, len(web.backends))
    default/web 2
    """

    name: str
    frontends: tuple[Frontend, ...] = field(converter=_frontends)
    backends: tuple[Backend, ...] = field(default=(), converter=_backends)
    namespace: str = "default"
    port_name: str = ""
    algorithm: Algorithm | None = field(default=None, converter=optional(Algorithm))
    forwarding: ForwardingMode | None = field(default=None, converter=optional(ForwardingMode))
    dispatch: DSRDispatch | None = field(default=None, converter=optional(DSRDispatch))
    affinity_timeout: int = field(default=0, validator=number(0, AFFINITY_MAX, "affinity timeout"))
    source_ranges: tuple[Network, ...] = field(default=(), converter=_networks)
    source_ranges_policy: SourceRangesPolicy = field(
        default=SourceRangesPolicy.ALLOW, converter=SourceRangesPolicy
    )
    external_policy: TrafficPolicy = field(default=TrafficPolicy.CLUSTER, converter=TrafficPolicy)
    internal_policy: TrafficPolicy = field(default=TrafficPolicy.CLUSTER, converter=TrafficPolicy)
    proxy_delegation: ProxyDelegation = field(
        default=ProxyDelegation.NONE, converter=ProxyDelegation
    )
    mesh: Mesh = field(factory=Mesh)
    exposure: NodeExposure = field(factory=NodeExposure)
    redirect: LocalRedirect | None = None
    health_port: int = field(default=0, validator=number(0, PORT_MAX, "health check node port"))

    def __attrs_post_init__(self) -> None:
        if not self.name:
            raise InvalidError("a service needs a name")
        _check_together(self)

    @cached_property
    def key(self) -> ServiceKey:
        """Its name among all services."""
        return ServiceKey(self.namespace, self.name, self.port_name)

    @property
    def protocol(self) -> Protocol | None:
        """That of its frontends and backends; None while it has neither."""
        return next((part.protocol for part in self._parts), None)

    @property
    def all_backends(self) -> tuple[Backend, ...]:
        """Its own, and those that it is redirected to."""
        if self.redirect is None:
            return self.backends
        own = {backend.key for backend in self.backends}
        return self.backends + tuple(b for b in self.redirect.backends if b.key not in own)

    @property
    def _parts(self) -> tuple[Frontend | Backend, ...]:
        return (*self.frontends, *self.all_backends)

    def with_backends(self, backends: Iterable[Backend | str]) -> Service:
        """The same service, served by others."""
        return evolve(self, backends=backends)

    def with_each(self, change: Callable[[Backend], Backend]) -> Service:
        """The same service, with a change made to all backends, those of a redirect as well."""
        redirect = self.redirect and evolve(
            self.redirect, backends=map(change, self.redirect.backends)
        )
        return evolve(self, backends=map(change, self.backends), redirect=redirect)


def _check_together(service: Service) -> None:
    """What no single part can see: families, protocols and doubles."""
    protocols = {part.protocol for part in service._parts}
    if len(protocols) > 1:
        names = ", ".join(sorted(map(str, protocols)))
        raise InvalidError(
            f"service {service.key} mixes {names}; make a service of each, under port names"
        )
    seen: set[bytes] = set()
    for backend in service.backends:
        if backend.key in seen:
            raise InvalidError(
                f"service {service.key}: backend {backend} is there twice; give it once"
            )
        seen.add(backend.key)
        parse_address(backend.address)  # v4-mapped ones are for Maglev's texts alone
    families = {frontend.address.version for frontend in service.frontends}
    for backend in service.all_backends:
        if families and backend.address.version not in families:
            raise InvalidError(
                f"service {service.key}: backend {backend} is IPv{backend.address.version}, and no "
                f"frontend is; add a frontend of that family or take a backend of the other"
            )
