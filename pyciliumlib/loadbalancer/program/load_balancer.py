"""A load balancer on one device, alone: no endpoints, no other part of the datapath."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import threading
from collections.abc import Iterable, Iterator, Mapping
from types import TracebackType
from typing import Final

import numpy as np
from attrs import evolve, frozen

from pyciliumlib.conntrack.program import kernel_clock
from pyciliumlib.errors import ClosedError, DeviceError, InvalidError, ServiceError
from pyciliumlib.flow.metrics import Metrics
from pyciliumlib.kernel import Map, attach_xdp, possible_cpus
from pyciliumlib.kernel.xdp import XdpMode
from pyciliumlib.loadbalancer.backend import Backend, BackendState
from pyciliumlib.loadbalancer.balancer import Balancer, Client, Placement, Why
from pyciliumlib.loadbalancer.config import LoadBalancerConfig
from pyciliumlib.loadbalancer.connections import Connection, Connections
from pyciliumlib.loadbalancer.documents import LocalNode
from pyciliumlib.loadbalancer.kinds import (
    Acceleration,
    DSRDispatch,
    ForwardingMode,
    FrontendType,
    ProxyDelegation,
)
from pyciliumlib.loadbalancer.plan import ServicePlan
from pyciliumlib.loadbalancer.program.loading import Place, Sizes, load
from pyciliumlib.loadbalancer.program.neighbours import NeighbourKeeper, wake
from pyciliumlib.loadbalancer.service import Frontend, Service, ServiceKey
from pyciliumlib.loadbalancer.table import ServiceTable
from pyciliumlib.net import Netlink, NetNS, read_sysctl

#: What a stand-alone balancer does where nothing else is said.
DEFAULTS: Final = LoadBalancerConfig(
    algorithm="maglev", mode="dsr", dispatch="ipip", acceleration="native"
)
_XDP_MODES: Final[dict[Acceleration, XdpMode]] = {
    Acceleration.NATIVE: "native",
    Acceleration.BEST_EFFORT: "auto",
    Acceleration.GENERIC: "generic",
}


@frozen
class Count:
    """Packets, and bytes of IP, that went to backends."""

    packets: int
    bytes: int


class LoadBalancer:
    """Balances connections that arrive at one device over backends behind it or beside it.

    Packets go on in an outer IP header (DSR by IP in IP), so backends see the client's address and
    answer it themselves; each of them needs a `DSRBackend` and the service's address. Connections
    that are known keep their backend while it is there, whatever else changes.

        with LoadBalancer("eth0") as balancer:
            balancer.upsert(Service("web", ["203.0.113.10:80"], ["10.0.0.1:80", "10.0.0.2:80"]))

    The kernel's routes and neighbours say how a backend is reached, so forwarding has to be on at
    the device. Needs CAP_BPF and CAP_NET_ADMIN, or root. Least kernel: 5.10.
    """

    def __init__(
        self,
        device: str,
        *,
        config: LoadBalancerConfig = DEFAULTS,
        sizes: Sizes | None = None,
        node: LocalNode | None = None,
    ) -> None:
        """Balance at `device` of the calling thread's network namespace.

        `node` is this one, for NodePorts and traffic policies; by default it has the device's
        addresses and no name. Raises DeviceError, ExistsError where the device runs another XDP
        program, FeatureError where its driver cannot, InvalidError, PrivilegeError.
        """
        mode = _xdp_mode(config)
        self.config = config
        self.device = device
        self._lock = threading.RLock()
        self._resources = contextlib.ExitStack()
        self._closed = False
        try:
            self._netns = self._resources.enter_context(NetNS.current())
            self._place, found = _place_of(self._netns, device)
            self.node = node or found
            self._object = self._resources.enter_context(
                load(config, self._place, sizes or Sizes())
            )
            maps = self._object.maps
            self._table = ServiceTable(maps, config, self.node)
            self._model = Balancer((), config, self.node)
            self._flows = Connections(maps, kernel_clock())
            self._resources.callback(NeighbourKeeper(self._netns, maps, self._backends_now).close)
            link = attach_xdp(self._object.programs["loadbalancer"], device, mode)
            self._resources.callback(link.close)
        except BaseException:
            self._resources.close()
            raise

    # ------------------------------------------------------------------ services

    @property
    def services(self) -> Mapping[ServiceKey, Service]:
        """The services by their keys, as they were given."""
        return dict(self._table.services)

    @property
    def in_force(self) -> Mapping[ServiceKey, Service]:
        """The services as they are served: with the states of backends in quarantine."""
        return dict(self._table.in_force)

    def upsert(self, *services: Service) -> ServicePlan:
        """Add services, or put them in the place of those of their keys; what was done.

        All of them or none: raises ServiceError for one that cannot be served, ExistsError where
        a frontend is another service's, MapFullError, KernelError.
        """
        with self._lock:
            return self._apply(self._table.plan(services, whole=False))

    def delete(self, *names: str | ServiceKey) -> ServicePlan:
        """Remove services by key or "namespace/name[:port]"; NotFoundError for one not there."""
        keys = list(map(ServiceKey.parse, names))
        with self._lock:
            return self._apply(self._table.plan_deletion(keys))

    def plan(self, services: Iterable[Service]) -> ServicePlan:
        """What `apply` would do."""
        with self._lock:
            return self._table.plan(services)

    def apply(self, services: Iterable[Service]) -> ServicePlan:
        """Hold exactly `services`; what was done. Errors are those of `upsert`."""
        with self._lock:
            return self._apply(self._table.plan(services))

    def drain(self, backend: str | Backend) -> ServicePlan:
        """Give a backend no new connections, in all services; those that it has stay.

        It is then terminating, so it is asked still where no other is left. NotFoundError if no
        service has it, InvalidError if it is in maintenance.
        """
        wanted = Backend.parse(backend)
        with self._lock:
            changed = [
                service.with_backends(
                    one.in_state(BackendState.TERMINATING) if one.key == wanted.key else one
                    for one in service.backends
                )
                for service in self._table.serves(wanted)
            ]
            return self._apply(self._table.plan(changed, whole=False))

    def quarantine(self, *backends: str | Backend) -> ServicePlan:
        """Give backends no new connections until `restore`, in all services, also if given anew.

        Connections that they have stay. Where all backends of a service are quarantined, its new
        connections are dropped. NotFoundError for a backend that no service has.
        """
        return self._quarantine(backends, out=False)

    def restore(self, *backends: str | Backend) -> ServicePlan:
        """Let backends out of quarantine; NotFoundError for one that no service has."""
        return self._quarantine(backends, out=True)

    def _quarantine(self, backends: Iterable[str | Backend], *, out: bool) -> ServicePlan:
        parsed = list(map(Backend.parse, backends))
        with self._lock:
            return self._apply(self._table.plan_quarantine(parsed, out=out))

    def _apply(self, plan: ServicePlan) -> ServicePlan:
        self._check_open()
        changed = [service for _, service in plan.upserts.values()]
        problems = [problem for service in changed for problem in self._refusals(service)]
        problems += self._unreachable({b.address.version for one in changed for b in one.backends})
        if problems:
            raise ServiceError(f"{len(problems)} problem(s); nothing was applied", problems)
        applied = self._table.apply(plan)
        _zero(self._object.maps["lb_service_counters"], applied.unused_services)
        _zero(self._object.maps["lb_backend_counters"], applied.unused_backends)
        for key in plan.deletes:
            self._model.delete(key)
        for key in [key for key in plan.upserts if key in self._model.services]:
            self._model.delete(key)  # first all of them, since a frontend may have moved
        for _, service in plan.upserts.values():
            self._model.upsert(service)
        wake(self._netns, {backend.address for backend in applied.backends.values()})
        return plan

    def _refusals(self, service: Service) -> Iterator[str]:
        """Why this program cannot serve a service that the model knows."""
        key, config = service.key, self.config
        if config.forwarding_of(service) is not ForwardingMode.DSR:
            yield f'{key}: it is forwarded by SNAT, and only DSR is implemented; write mode="dsr"'
        else:
            try:
                if config.dispatch_of(service) is not DSRDispatch.IPIP:
                    yield (
                        f"{key}: only the dispatch ipip is implemented, and that needs backends "
                        "with the frontend's port"
                    )
            except InvalidError as error:
                yield f"{key}: {error}"
        if service.proxy_delegation is not ProxyDelegation.NONE:
            yield f"{key}: proxy delegation is not implemented"

    def _unreachable(self, versions: Iterable[int]) -> Iterator[str]:
        """Why the device cannot send to backends of these families."""
        for version in sorted(versions):
            if self._place.source(version) is None:
                yield f"{self.device} has no IPv{version} address to send from; give it one"
            elif not _forwards(self._netns, self.device, version):
                name = f"net.ipv{version}.conf.{self.device}.forwarding"
                yield f"forwarding is off at {self.device}; run `sysctl -w {name}=1`"

    # ------------------------------------------------------------------ questions

    def where(self, client: str | Client, to: str | Frontend) -> Placement:
        """Where a client's connection goes, and why: "192.0.2.7:40000" to "203.0.113.10:80".

        A connection that the kernel knows has its backend; for any other it is the model's answer
        for its first packet, less the clients that the kernel remembers.
        """
        self._check_open()
        caller, target = Client.parse(client), Frontend.parse(to, FrontendType.HOST_PORT)
        with self._lock:
            placed = self._model.where(caller, target)
            backend = self._flows.backend_of(caller, target, self._table.backends)
        if backend is None or placed.service is None:
            return placed
        return evolve(placed, why=Why.CONNECTION, backend=backend, candidates=())

    def connections(self) -> Iterator[Connection]:
        """The connections that the kernel knows and has not forgotten."""
        self._check_open()
        return self._flows.read(self._table.backends)

    def service_counts(self) -> dict[ServiceKey, Count]:
        """What was sent on for each service since it was added."""
        self._check_open()
        counts = _counts(self._object.maps["lb_service_counters"])
        return {key: counts[self._table.service_id(key)] for key in self.services}

    def backend_counts(self) -> dict[Backend, Count]:
        """What was sent to each backend."""
        self._check_open()
        counts = _counts(self._object.maps["lb_backend_counters"])
        return {backend: counts[number] for number, backend in self._table.backends.items()}

    def metrics(self) -> Metrics:
        """Packets and bytes of services: forwarded, and dropped by reason."""
        self._check_open()
        return Metrics.read(self._object.maps["metrics"])

    # ------------------------------------------------------------------ life

    def _backends_now(self) -> dict[int, Backend]:
        with self._lock:
            return dict(self._table.backends)

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError("this load balancer is closed; make another one")

    def close(self) -> None:
        """Take the program off its device and free its maps; a second call does nothing."""
        with self._lock:
            self._closed = True
        self._resources.close()  # its thread may be waiting for the lock

    def __enter__(self) -> LoadBalancer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<LoadBalancer at {self.device}, {len(self.services)} services>"


def _xdp_mode(config: LoadBalancerConfig) -> XdpMode:
    if config.acceleration not in _XDP_MODES:
        raise InvalidError(
            "acceleration is disabled, and this balancer is XDP; write native, best-effort, or "
            "generic for a device whose driver has none"
        )
    return _XDP_MODES[config.acceleration]


def _place_of(netns: NetNS, device: str) -> tuple[Place, LocalNode]:
    with Netlink(netns) as netlink:
        link = netlink.link(device)
        addresses = [interface.ip for interface in netlink.addresses(device)]
    usable = [address for address in addresses if not address.is_link_local]
    ipv4 = next((a for a in usable if isinstance(a, ipaddress.IPv4Address)), None)
    ipv6 = next((a for a in usable if isinstance(a, ipaddress.IPv6Address)), None)
    if ipv4 is None and ipv6 is None:
        raise DeviceError(errno.EADDRNOTAVAIL, f"{device} has no address to send from; give it one")
    return Place(ipv4, ipv6, link.mtu), LocalNode(addresses=usable)


def _forwards(netns: NetNS, device: str, version: int) -> bool:
    return read_sysctl(netns, f"ipv{version}/conf/{device}/forwarding") == "1"


def _zero(counters: Map, numbers: Iterable[int]) -> None:
    """Begin anew for those who get the numbers next."""
    keys = np.array(sorted(numbers), counters.key_dtype)
    if len(keys):
        counters.update_batch(keys, np.zeros((len(keys), possible_cpus()), counters.value_dtype))


def _counts(counters: Map) -> list[Count]:
    """The sums over all CPUs, by number."""
    _, values = counters.lookup_batch()
    packets, sizes = values["packets"].sum(axis=1).tolist(), values["bytes"].sum(axis=1).tolist()
    return list(map(Count, packets, sizes))
