"""A load balancer on one device, alone: no endpoints, no other part of the datapath."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
from collections.abc import Iterable, Iterator
from typing import Final

import numpy as np
from attrs import evolve, frozen

from pyciliumlib.conntrack.program import kernel_clock
from pyciliumlib.errors import DeviceError, FeatureError, InvalidError
from pyciliumlib.flow.metrics import Metrics
from pyciliumlib.kernel import Map, Object, possible_cpus
from pyciliumlib.loadbalancer.backend import Backend
from pyciliumlib.loadbalancer.balancer import Client, Placement, Why
from pyciliumlib.loadbalancer.config import LoadBalancerConfig
from pyciliumlib.loadbalancer.connections import Connection, Connections
from pyciliumlib.loadbalancer.documents import LocalNode
from pyciliumlib.loadbalancer.installed import Applied
from pyciliumlib.loadbalancer.kinds import (
    DSRDispatch,
    ForwardingMode,
    FrontendType,
    ProxyDelegation,
)
from pyciliumlib.loadbalancer.program.kernel_balancer import HeldServices, KernelBalancer
from pyciliumlib.loadbalancer.program.loading import HOOKS, Hook, Place, Sizes, load
from pyciliumlib.loadbalancer.program.neighbours import NeighbourKeeper, wake
from pyciliumlib.loadbalancer.program.own_ports import OwnPorts
from pyciliumlib.loadbalancer.service import Frontend, Service, ServiceKey
from pyciliumlib.net import Netlink, NetNS, read_sysctl
from pyciliumlib.types import PortProto

#: What a stand-alone balancer does where nothing else is said.
DEFAULTS: Final = LoadBalancerConfig(
    algorithm="maglev", mode="dsr", dispatch="ipip", acceleration="native"
)


@frozen
class Count:
    """Packets, and bytes of IP, that went to backends."""

    packets: int
    bytes: int


class LoadBalancer(KernelBalancer):
    """Balances connections that arrive at one device over backends behind it or beside it.

    By default packets go on in an outer IP header (DSR by IP in IP), so backends see the client's
    address and answer it themselves; each of them needs a `DSRBackend` and the service's address.
    With `mode="snat"` of the config they are translated: backends see the balancer's address,
    need nothing, may listen at another port, and answer by way of this device; `hybrid` is DSR for
    TCP and SNAT for the rest. Connections that are known keep their backend while it is there,
    whatever else changes.

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

        `config.acceleration` says where it runs: in the driver's XDP ("native"), in the stack's
        ("generic"), at tc ("disabled"), or in the driver if that can, else at tc ("best-effort");
        `hook` tells which it became. `node` is this one, for NodePorts and traffic policies; by
        default it has the device's addresses and no name.
        Raises DeviceError, ExistsError where the device runs another balancer or XDP program,
        FeatureError where its driver cannot, InvalidError, PrivilegeError.
        """
        super().__init__()
        self.device = device
        try:
            self._netns = self._resources.enter_context(NetNS.current())
            self._ports = self._resources.enter_context(OwnPorts(self._netns, config))
            self._place, found = _place_of(self._netns, device, self._ports.ports)
            self._object, self.hook = self._start(config, sizes or Sizes())
            maps = self._object.maps
            self._join(HeldServices(self, maps, config, node or found))
            sources = {4: self._place.ipv4, 6: self._place.ipv6}
            self._flows = Connections(maps, kernel_clock(), sources)
            self._resources.callback(NeighbourKeeper(self._netns, maps, self._backends_now).close)
        except BaseException:
            self._resources.close()
            raise

    def _start(self, config: LoadBalancerConfig, sizes: Sizes) -> tuple[Object, Hook]:
        """The program at its device, where it passes everything by as long as it has no service."""
        *better, last = HOOKS[config.acceleration]
        for hook in better:
            with contextlib.suppress(FeatureError):
                return self._start_at(hook, config, sizes), hook
        return self._start_at(last, config, sizes), last

    def _start_at(self, hook: Hook, config: LoadBalancerConfig, sizes: Sizes) -> Object:
        with contextlib.ExitStack() as stack:
            loaded = stack.enter_context(load(config, self._place, sizes, hook))
            link = hook.attach(loaded.programs[hook.program], self.device)
            stack.callback(link.close)
            self._resources.push(stack.pop_all())
        return loaded

    # ------------------------------------------------------------------ services

    def _refusals(self, service: Service) -> Iterator[str]:
        key, config = service.key, self.config
        try:
            if config.forwarding_of(service) is ForwardingMode.SNAT:
                self._ports.protect()
            elif config.dispatch_of(service) is not DSRDispatch.IPIP:
                yield (
                    f"{key}: only the dispatch ipip is implemented, and that needs backends "
                    "with the frontend's port"
                )
        except InvalidError as error:
            yield f"{key}: {error}"
        if service.proxy_delegation is not ProxyDelegation.NONE:
            yield f"{key}: proxy delegation is not implemented"
        for version in sorted({backend.address.version for backend in service.backends}):
            if self._place.source(version) is None:
                yield f"{key}: {self.device} has no IPv{version} address to send from"
            elif not _forwards(self._netns, self.device, version):
                name = f"net.ipv{version}.conf.{self.device}.forwarding"
                yield f"{key}: forwarding is off at the device; run `sysctl -w {name}=1`"

    def _applied(self, applied: Applied) -> None:
        _zero(self._object.maps["lb_service_counters"], applied.unused_services)
        _zero(self._object.maps["lb_backend_counters"], applied.unused_backends)
        wake(self._netns, {backend.address for backend in applied.backends.values()})

    # ------------------------------------------------------------------ questions

    def where(self, client: str | Client, to: str | Frontend) -> Placement:
        """Where a client's connection goes, and why: "192.0.2.7:40000" to "203.0.113.10:80".

        A connection that the kernel knows has its backend; for any other it is the model's answer
        for its first packet, less the clients that the kernel remembers.
        """
        self._check_open()
        caller, target = Client.parse(client), Frontend.parse(to, FrontendType.HOST_PORT)
        with self._held.lock:
            placed = self._held.model.where(caller, target)
            backend = self._flows.backend_of(caller, target, self._held.table.backends)
        if backend is None or placed.service is None:
            return placed
        return evolve(placed, why=Why.CONNECTION, backend=backend, candidates=())

    def connections(self) -> Iterator[Connection]:
        """The connections that the kernel knows and has not forgotten."""
        self._check_open()
        return self._flows.read(self._backends_now())

    def service_counts(self) -> dict[ServiceKey, Count]:
        """What was sent on for each service since it was added."""
        self._check_open()
        return self._by_service(_counts(self._object.maps["lb_service_counters"]))

    def backend_counts(self) -> dict[Backend, Count]:
        """What was sent to each backend."""
        self._check_open()
        return self._by_backend(_counts(self._object.maps["lb_backend_counters"]))

    def metrics(self) -> Metrics:
        """Packets and bytes of services: forwarded, and dropped by reason."""
        self._check_open()
        return Metrics.read(self._object.maps["metrics"])

    def __repr__(self) -> str:
        return f"<LoadBalancer at {self.device}, {len(self.services)} services>"


def _place_of(netns: NetNS, device: str, ports: PortProto) -> tuple[Place, LocalNode]:
    with Netlink(netns) as netlink:
        link = netlink.link(device)
        addresses = [interface.ip for interface in netlink.addresses(device)]
    usable = [address for address in addresses if not address.is_link_local]
    ipv4 = next((a for a in usable if isinstance(a, ipaddress.IPv4Address)), None)
    ipv6 = next((a for a in usable if isinstance(a, ipaddress.IPv6Address)), None)
    if ipv4 is None and ipv6 is None:
        raise DeviceError(errno.EADDRNOTAVAIL, f"{device} has no address to send from; give it one")
    return Place(ipv4, ipv6, link.mtu, ports), LocalNode(addresses=usable)


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
