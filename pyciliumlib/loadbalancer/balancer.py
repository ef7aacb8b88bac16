"""The balancer as a model: where a connection goes, and why."""

from __future__ import annotations

import enum
import random
from collections.abc import Iterable, Iterator, Mapping, Set
from types import MappingProxyType

from attrs import evolve, field, frozen

from pyciliumlib.errors import ExistsError, NotFoundError, nearest
from pyciliumlib.flow import DropReason
from pyciliumlib.loadbalancer import selection
from pyciliumlib.loadbalancer.backend import Backend, number, split_endpoint
from pyciliumlib.loadbalancer.config import LoadBalancerConfig
from pyciliumlib.loadbalancer.documents import LocalNode
from pyciliumlib.loadbalancer.flow_hash import FlowTuple
from pyciliumlib.loadbalancer.kinds import (
    Algorithm,
    Direction,
    DSRDispatch,
    ForwardingMode,
    FrontendType,
    ProxyDelegation,
)
from pyciliumlib.loadbalancer.maglev_table import MaglevTable
from pyciliumlib.loadbalancer.service import Frontend, Service, ServiceKey
from pyciliumlib.types import Address, Protocol, parse_address
from pyciliumlib.types.ports import PORT_MAX

_ANYWHERE = {4: parse_address("0.0.0.0"), 6: parse_address("::")}


class Why(enum.Enum):
    """What decided on a connection; the value is what a person reads."""

    CONNECTION = "it has this backend already"
    AFFINITY = "the client met this backend before"
    MAGLEV = "the Maglev table says so"
    RANDOM = "any of the candidates, at random"
    DELEGATED = "the backend is this node, which takes the packet as it is"
    NO_SERVICE = "no service has this address; the packet passes by"
    UNKNOWN_PORT = "the address is a service's, and the port is not"
    NO_BACKEND = "no backend may take it"
    SOURCE_RANGE = "the client is not among those who may use the service"
    CLUSTER_IP = "the address is for clients inside of the cluster"


_REASONS = {
    Why.UNKNOWN_PORT: DropReason.NO_SERVICE_BACKEND,
    Why.NO_BACKEND: DropReason.NO_SERVICE_BACKEND,
    Why.SOURCE_RANGE: DropReason.LB_SOURCE_RANGE,
    Why.CLUSTER_IP: DropReason.IS_CLUSTER_IP,
}


@frozen
class Client:
    """Who opens a connection: "192.0.2.7:40000"."""

    address: Address = field(converter=parse_address)
    port: int = field(validator=number(0, PORT_MAX, "port"))

    @classmethod
    def parse(cls, text: str | Client) -> Client:
        """Read "192.0.2.7:40000" or "[2001:db8::7]:40000"; UnitError otherwise."""
        return text if isinstance(text, Client) else cls(*split_endpoint(text)[:2])


@frozen
class Placement:
    """Where a connection goes.

    `backend` is None if it goes nowhere, or to any of `candidates` at random. `forwarding` and
    `dispatch` say how its packets get there, `reason` why they are dropped. `redirect` is the
    CiliumLocalRedirectPolicy that keeps it on this node. `hairpin` is true of a pod that meets
    itself: it sees its packets come from a loopback address (169.254.42.1, fe80::1), so that the
    replies come back this way.
    """

    why: Why
    backend: Backend | None = None
    service: ServiceKey | None = None
    frontend: Frontend | None = None
    candidates: tuple[Backend, ...] = ()
    forwarding: ForwardingMode | None = None
    dispatch: DSRDispatch | None = None
    redirect: str = ""
    hairpin: bool = False

    @property
    def reason(self) -> DropReason:
        """The drop reason; FORWARDED where nothing is dropped."""
        return _REASONS.get(self.why, DropReason.FORWARDED)

    @property
    def dropped(self) -> bool:
        """Whether the connection is refused."""
        return self.why in _REASONS

    def __str__(self) -> str:
        to = f"{self.backend}" if self.backend else "dropped" if self.dropped else "elsewhere"
        if self.backend is None and self.candidates:
            to = f"one of {len(self.candidates)} backends"
        return f"{to}: {self.why.value}" + (f" ({self.service})" if self.service else "")


class Balancer:
    """Services of one node, and the connections and clients that it remembers.

    Pure Python, and the measure of the programs: what they do, this says.

    >>> balancer = Balancer([Service("web", ["203.0.113.10:80"], ["10.0.0.1:80"])])
    >>> print(balancer.where("192.0.2.7:40000", "203.0.113.10:80"))
    10.0.0.1:80/TCP: any of the candidates, at random (default/web)
    """

    def __init__(
        self,
        services: Iterable[Service] = (),
        config: LoadBalancerConfig | None = None,
        node: LocalNode | None = None,
        seed: int | None = None,
    ) -> None:
        """`seed` makes the random choices of `connect` repeatable."""
        self.config = config or LoadBalancerConfig()
        self.node = node or LocalNode()
        self._random = random.Random(seed)
        self._maglev = self.config.maglev()
        self._services: dict[ServiceKey, Service] = {}
        self._frontends: dict[tuple[Address, int, Protocol], tuple[Service, Frontend]] = {}
        self._addresses: dict[Address, int] = {}
        self._tables: dict[tuple[ServiceKey, tuple[Backend, ...]], MaglevTable] = {}
        self._connections: dict[tuple[Client, Frontend], tuple[ServiceKey, object]] = {}
        self._affinity: dict[tuple[ServiceKey, Address], tuple[object, float]] = {}
        for service in services:
            self.upsert(service)

    # ------------------------------------------------------------------ services

    @property
    def services(self) -> Mapping[ServiceKey, Service]:
        """The services by their keys; a view that follows."""
        return MappingProxyType(self._services)

    def upsert(self, service: Service) -> None:
        """Add a service, or put it in the place of the one of its key.

        Connections keep the backends that it still has. Raises ExistsError where a frontend is
        another service's, InvalidError for a dispatch that cannot serve its ports.
        """
        if self.config.forwarding_of(service) is ForwardingMode.DSR:
            self.config.dispatch_of(service)
        for frontend in service.frontends:
            there = self._frontends.get(_place(frontend))
            if there is not None and there[0].key != service.key:
                raise ExistsError(
                    f"{frontend} of service {service.key} is {there[0].key}'s already"
                )
        known = self._services.get(service.key)
        if known is not None:
            self._forget(known)
        self._services[service.key] = service
        if selection.is_installed(service, self.node):
            for frontend in service.frontends:
                self._frontends[_place(frontend)] = service, frontend
                if _has_address(frontend):
                    count = self._addresses.get(frontend.address, 0)
                    self._addresses[frontend.address] = count + 1
        if known is not None:
            self._part(service.key, {backend.key for backend in service.all_backends})

    def delete(self, key: ServiceKey) -> Service:
        """Forget a service, its connections and clients; NotFoundError if there is none."""
        if key not in self._services:
            known = map(str, self._services)
            raise NotFoundError(f"there is no service {key}{nearest(str(key), known)}")
        service = self._services.pop(key)
        self._forget(service)
        self._part(key, frozenset())
        return service

    def _part(self, key: ServiceKey, kept: Set[object]) -> None:
        """End the connections of a service with backends that it has no more, or by no frontend.

        Should such a backend come back, it is another one to the clients.
        """
        self._connections = {
            (client, to): (of, backend)
            for (client, to), (of, backend) in self._connections.items()
            if of != key or (backend in kept and self._is_of(to, key))
        }
        self._affinity = {
            (of, client): met
            for (of, client), met in self._affinity.items()
            if of != key or met[0] in kept
        }

    def _is_of(self, target: Frontend, key: ServiceKey) -> bool:
        found = self._frontend(target)
        return found is not None and found[0].key == key

    def _forget(self, service: Service) -> None:
        self._tables = {k: table for k, table in self._tables.items() if k[0] != service.key}
        for frontend in service.frontends:
            if self._frontends.pop(_place(frontend), None) and _has_address(frontend):
                self._addresses[frontend.address] -= 1
                if not self._addresses[frontend.address]:
                    del self._addresses[frontend.address]

    # ------------------------------------------------------------------ connections

    def where(
        self,
        client: str | Client,
        to: str | Frontend,
        *,
        direction: Direction | str = Direction.NORTH_SOUTH,
        opening: bool = True,
        now: float = 0.0,
    ) -> Placement:
        """Where a connection of `client` to the address, port and protocol `to` goes.

        `opening` is true of its first packet, `now` is a clock in seconds. Nothing is remembered.
        """
        client, direction = Client.parse(client), Direction(direction)
        target = Frontend.parse(to, FrontendType.HOST_PORT)
        found = self._frontend(target)
        if found is not None:
            service, frontend = found
            placed = self._place(service, frontend, client, target, direction, opening, now)
        if found is None or placed.why is Why.NO_SERVICE:
            vip = target.address in self._addresses and target.address not in self.node.addresses
            return Placement(Why.UNKNOWN_PORT if vip else Why.NO_SERVICE)
        return evolve(placed, service=service.key, frontend=frontend)

    def connect(
        self,
        client: str | Client,
        to: str | Frontend,
        *,
        direction: Direction | str = Direction.NORTH_SOUTH,
        opening: bool = True,
        now: float = 0.0,
    ) -> Placement:
        """As `where`, and remember the connection and whom the client met."""
        client = Client.parse(client)
        placed = self.where(client, to, direction=direction, opening=opening, now=now)
        if placed.why is Why.RANDOM and placed.backend is None:
            backend = self._random.choice(placed.candidates)
            hairpin = _is_hairpin(client, backend, Direction(direction))
            placed = evolve(placed, backend=backend, hairpin=hairpin)
        if placed.backend is not None and placed.service is not None:
            target = Frontend.parse(to, FrontendType.HOST_PORT)
            self._connections[client, target] = placed.service, placed.backend.key
            if self._services[placed.service].affinity_timeout:
                self._affinity[placed.service, client.address] = placed.backend.key, now
        return placed

    def connections(self) -> Iterator[tuple[Client, Frontend, Backend]]:
        """What is remembered of connections whose backend is still there."""
        for (client, target), (key, wanted) in self._connections.items():
            for backend in self._services[key].all_backends:
                if backend.key == wanted:
                    yield client, target, backend

    # ------------------------------------------------------------------ inside

    def _frontend(self, target: Frontend) -> tuple[Service, Frontend] | None:
        found = self._frontends.get(_place(target))
        if found is None and target.address in self.node.addresses:
            anywhere = _ANYWHERE[target.address.version]
            found = self._frontends.get((anywhere, target.port, target.protocol))
        return found

    def _place(
        self,
        service: Service,
        frontend: Frontend,
        client: Client,
        target: Frontend,
        direction: Direction,
        opening: bool,
        now: float,
    ) -> Placement:
        config, node = self.config, self.node
        redirected = selection.redirected(service, frontend, direction, client.address)
        if frontend.type is FrontendType.LOCAL_REDIRECT and not redirected:
            return Placement(Why.NO_SERVICE)
        if selection.hidden_cluster_ip(frontend, direction, config):
            return Placement(Why.CLUSTER_IP)
        outside = direction is Direction.NORTH_SOUTH
        if (
            outside
            and selection.checks_source(service, frontend, config)
            and not selection.admits(service, client.address)
        ):
            return Placement(Why.SOURCE_RANGE)
        kept = self._connections.get((client, target))
        for backend in service.all_backends:
            if kept == (service.key, backend.key) and selection.keeps(backend, opening=opening):
                hairpin = _is_hairpin(client, backend, direction)
                placed = self._to(backend, Why.CONNECTION, service, direction)
                return evolve(placed, hairpin=hairpin)
        found = redirected or selection.candidates(service, frontend, direction, node)
        if not found:
            return Placement(Why.NO_BACKEND)
        chosen, why = self._choose(service, frontend, client, direction, found, now)
        placed = evolve(self._to(chosen or found[0], why, service, direction), candidates=found)
        if redirected and service.redirect is not None:
            placed = evolve(placed, redirect=service.redirect.policy)
        if chosen is None:
            return evolve(placed, backend=None)
        return evolve(placed, hairpin=_is_hairpin(client, chosen, direction))

    def _choose(
        self,
        service: Service,
        frontend: Frontend,
        client: Client,
        direction: Direction,
        found: tuple[Backend, ...],
        now: float,
    ) -> tuple[Backend | None, Why]:
        affinity = service.affinity_timeout
        met, at = self._affinity.get((service.key, client.address), (None, 0.0))
        if affinity and met is not None and now < at + affinity:
            for backend in found:
                if backend.key == met:
                    return backend, Why.AFFINITY
        how = selection.algorithm(service, frontend, direction, self.config)
        if how is Algorithm.RANDOM:
            return (found[0] if len(found) == 1 else None), Why.RANDOM
        table = self._tables.get((service.key, found))
        if table is None:
            table = self._tables[service.key, found] = self._maglev.build(found)
        flow = FlowTuple(client.address, client.port, frontend.port, frontend.protocol)
        return table.select(flow, affinity=bool(affinity)), Why.MAGLEV

    def _to(self, backend: Backend, why: Why, service: Service, direction: Direction) -> Placement:
        delegates = service.proxy_delegation is ProxyDelegation.IF_LOCAL
        if delegates and backend.address in self.node.addresses:
            return Placement(Why.DELEGATED, backend)
        if direction is Direction.SOCKET:  # no packet is forwarded
            return Placement(why, backend)
        forwarding = self.config.forwarding_of(service)
        dsr = forwarding is ForwardingMode.DSR
        dispatch = self.config.dispatch_of(service) if dsr else None
        return Placement(why, backend, forwarding=forwarding, dispatch=dispatch)


def _is_hairpin(client: Client, backend: Backend, direction: Direction) -> bool:
    return direction is Direction.EAST_WEST and client.address == backend.address


def _has_address(frontend: Frontend) -> bool:
    """Whether its address is a service's, with all its ports; that of a redirect is not."""
    return frontend.type is not FrontendType.LOCAL_REDIRECT


def _place(frontend: Frontend) -> tuple[Address, int, Protocol]:
    return frontend.address, frontend.port, frontend.protocol
