"""Services for the pods of a node, and from outside: translated before policy is asked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NoReturn

from attrs import evolve

from pyciliumlib.conntrack import Conntrack, FlowKey
from pyciliumlib.errors import StateError
from pyciliumlib.flow import FlowService
from pyciliumlib.kernel import Map
from pyciliumlib.loadbalancer import (
    Backend,
    Client,
    Direction,
    Frontend,
    FrontendType,
    LoadBalancerConfig,
    LocalNode,
    Placement,
    ProxyDelegation,
    Service,
    ServiceKey,
    Why,
)
from pyciliumlib.loadbalancer.config import changes_port
from pyciliumlib.loadbalancer.installed import Applied
from pyciliumlib.loadbalancer.program.counters import Count, packet_sums, zero, zero_others
from pyciliumlib.loadbalancer.program.kept import StoredServices
from pyciliumlib.loadbalancer.program.kernel_balancer import (
    HeldServices,
    KernelBalancer,
    refuse_exceptions,
)
from pyciliumlib.store import Store
from pyciliumlib.types import Protocol


class Services(KernelBalancer):
    """The services of a datapath.

    What a pod sends to a service goes on to a backend, on this node or elsewhere; policy is asked
    about that backend, and what it answers has the service's address again. Pods are clients
    inside of the cluster: they may use ClusterIPs, internal traffic policy counts for them, and
    source ranges do not. Chance chooses their backends, or Maglev where a service itself says so.
    With `DatapathConfig(node_port=True)` clients outside reach those whose backends are pods of
    this node, by the rules for them.

        dp.services.upsert(Service("web", ["10.96.0.10:80"], ["10.0.0.1:8080", "10.0.0.2:8080"]))

    A change counts from the next packet on, for connections that are there as well: they keep
    their backend as long as their service has it.
    """

    def __init__(
        self,
        maps: Mapping[str, Map],
        config: LoadBalancerConfig,
        node: LocalNode,
        conntrack: Conntrack,
        store: Store | None,
    ) -> None:
        """`maps` are those of the endpoint programs; with `store` they outlive the process."""
        super().__init__()
        self._maps = maps
        self._conntrack = conntrack
        kept = StoredServices(store) if store is not None else None
        self._join(HeldServices(self, maps, config, node, kept))

    def go_on(self) -> None:
        """Take over what an earlier process left; ServiceError if that cannot be served."""
        self._held.restore()
        table = self._held.table
        zero_others(self._maps["lb_service_counters"], map(table.service_id, table.services))
        zero_others(self._maps["lb_backend_counters"], table.backends)

    # ------------------------------------------------------------------ of each kind

    def _refusals(self, service: Service) -> Iterator[str]:
        if service.protocol is Protocol.SCTP and changes_port(
            service.with_backends(service.all_backends)
        ):
            yield (
                f"{service.key}: a port of SCTP cannot be changed, since its checksum is made of "
                "all bytes; let backends have their frontend's port"
            )
        yield from refuse_exceptions(service)
        if service.proxy_delegation is not ProxyDelegation.NONE:
            yield f"{service.key}: proxy delegation is not implemented"

    def _applied(self, applied: Applied) -> None:
        zero(self._maps["lb_service_counters"], applied.unused_services)
        zero(self._maps["lb_backend_counters"], applied.unused_backends)

    # ------------------------------------------------------------------ questions

    def where(
        self, client: str | Client, to: str | Frontend, *, outside: bool = False
    ) -> Placement:
        """Where a pod's connection goes, and why: "10.0.0.1:40000" to "10.96.0.10:80".

        With `outside` the client is not in the cluster. A connection that the kernel knows has its
        backend; for any other it is the model's answer for its first packet, less the clients that
        the kernel remembers.
        """
        self._check_open()
        caller, target = Client.parse(client), Frontend.parse(to, FrontendType.HOST_PORT)
        with self._held.lock:
            direction = Direction.NORTH_SOUTH if outside else Direction.EAST_WEST
            placed = self._held.model.where(caller, target, direction=direction)
            backend = self._known(caller, target, placed)
        if backend is None:
            return placed
        return evolve(placed, why=Why.CONNECTION, backend=backend, candidates=())

    def _known(self, client: Client, to: Frontend, placed: Placement) -> Backend | None:
        """The backend that the connection has, if its service has it still."""
        if placed.service is None:
            return None
        key = FlowKey.of(client.address, to.address, client.port, to.port, to.protocol)
        entry = self._conntrack.get(key)
        if entry is None or entry.service is None:
            return None
        for backend in self._held.table.in_force[placed.service].all_backends:
            if (backend.address, backend.port) == (entry.dst, entry.dport):
                return backend
        return None

    def service_counts(self) -> dict[ServiceKey, Count]:
        """What clients have sent to each service since it was added; `bytes` are of frames."""
        self._check_open()
        return self._by_service(packet_sums(self._maps["lb_service_counters"]))

    def backend_counts(self) -> dict[Backend, Count]:
        """The same by backend."""
        self._check_open()
        return self._by_backend(packet_sums(self._maps["lb_backend_counters"]))

    def service_of(self, frontend: int) -> FlowService | None:
        """The service that an event of the programs names by a frontend's number."""
        return self._held.table.service_of(frontend)

    def keep(self) -> NoReturn:
        """Not theirs to do: they go on with `Datapath.keep`."""
        raise StateError("services go on with their datapath; call its keep()")

    def __repr__(self) -> str:
        return f"<Services {len(self.services)}>"
