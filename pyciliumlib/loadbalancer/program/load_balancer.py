"""A load balancer on one device, alone: no endpoints, no other part of the datapath."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Final

from attrs import evolve

from pyciliumlib.conntrack.program import kernel_clock
from pyciliumlib.errors import DeviceError, FeatureError, InvalidError
from pyciliumlib.flow.metrics import Metrics
from pyciliumlib.kernel import Object
from pyciliumlib.kernel.pinroot import PinLayout
from pyciliumlib.loadbalancer.affinity import KnownClients
from pyciliumlib.loadbalancer.backend import Backend
from pyciliumlib.loadbalancer.balancer import Client, Placement, Why
from pyciliumlib.loadbalancer.config import LoadBalancerConfig
from pyciliumlib.loadbalancer.connections import Connection, Connections
from pyciliumlib.loadbalancer.documents import LocalNode
from pyciliumlib.loadbalancer.installed import Applied
from pyciliumlib.loadbalancer.kinds import (
    ForwardingMode,
    FrontendType,
    ProxyDelegation,
)
from pyciliumlib.loadbalancer.program.collector import CollectingThread
from pyciliumlib.loadbalancer.program.counters import Count, packet_sums, zero, zero_others
from pyciliumlib.loadbalancer.program.kept import Kept, kept_settings
from pyciliumlib.loadbalancer.program.kernel_balancer import HeldServices, KernelBalancer
from pyciliumlib.loadbalancer.program.loading import HOOKS, Hook, Place, Sizes, load
from pyciliumlib.loadbalancer.program.neighbours import NeighbourKeeper, wake
from pyciliumlib.loadbalancer.program.own_ports import OwnPorts
from pyciliumlib.loadbalancer.program.settings import Settings
from pyciliumlib.loadbalancer.service import Frontend, Service, ServiceKey
from pyciliumlib.net import Netlink, NetNS, read_sysctl
from pyciliumlib.types import PortProto

#: What a stand-alone balancer does where nothing else is said.
DEFAULTS: Final = LoadBalancerConfig(
    algorithm="maglev", mode="dsr", dispatch="ipip", acceleration="native"
)

#: Its number counts changes of what is pinned that an older or newer version cannot use.
_LAYOUT: Final = PinLayout("LoadBalancer", "loadbalancer-v1")


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
        pin_root: str | os.PathLike[str] | None = None,
    ) -> None:
        """Balance at `device` of the calling thread's network namespace.

        `config.acceleration` says where it runs: in the driver's XDP ("native"), in the stack's
        ("generic"), at tc ("disabled"), or in the driver if that can, else at tc ("best-effort");
        `hook` tells which it became. `node` is this one, for NodePorts and traffic policies; by
        default it has the device's addresses and no name.

        Without `pin_root` everything ends with `close()` or the process. With it, a directory below
        /sys/fs/bpf, program, maps and services go on, and the next balancer takes them over:
        this class with the same `pin_root`, or `open`. Raises then what `open` does, too.

        Raises DeviceError, ExistsError where the device runs another balancer or XDP program,
        FeatureError where its driver cannot, InvalidError, PrivilegeError.
        """
        super().__init__(None if pin_root is None else Kept(pin_root, _LAYOUT))
        self._at_end = contextlib.ExitStack()
        self.device = device
        try:
            self._netns = self._resources.enter_context(NetNS.current())
            self._ports = OwnPorts(self._netns, config, self._kept)
            self._at_end.callback(self._ports.give_back)
            self._place, found = _place_of(self._netns, device, self._ports.ports)
            settings = Settings(device, self._netns.inode, config, sizes or Sizes(), node)
            self._object, self.hook = self._start(settings)
            maps = self._object.maps
            self._join(HeldServices(self, maps, config, node or found, self._kept))
            if not self._is_new:
                self._held.restore()
                self._go_on(settings)
            sources = {4: self._place.ipv4, 6: self._place.ipv6}
            self._flows = Connections(maps, kernel_clock(), sources)
            self._clients = KnownClients(maps, kernel_clock())
            self._keeper = NeighbourKeeper(
                self._netns, maps, self._backends_now, lasting=pin_root is not None
            )
            self._resources.callback(self._keeper.close)
            self._resources.enter_context(CollectingThread(maps))
        except BaseException:
            self._give_up()
            raise

    @classmethod
    def open(
        cls,
        pin_root: str | os.PathLike[str],
        *,
        config: LoadBalancerConfig | None = None,
        sizes: Sizes | None = None,
        node: LocalNode | None = None,
    ) -> LoadBalancer:
        """Take over what an earlier process left at `pin_root`; its traffic goes on meanwhile.

        To be called in the same network namespace. Device and settings are as they were; a
        `config` or `node` that is given takes their place. The device gets this version's program
        in one step, over the same maps: known connections keep their backends. A change that was
        cut short is carried out.

        Raises NotFoundError if nothing is kept there, LockedError if another process has it,
        LayoutError for another version's pins, MismatchError for other `sizes`, StateError in
        another namespace and for a device or hook other than before, ServiceError if a service
        cannot be served any more. Then all is as it was.
        """
        was = Settings.from_json(kept_settings(pin_root, _LAYOUT))
        return cls(
            was.device,
            config=config or was.config,
            sizes=sizes or was.sizes,
            node=node or was.node,
            pin_root=pin_root,
        )

    def _start(self, settings: Settings) -> tuple[Object, Hook]:
        """A new balancer's program is at its device then, and passes everything by.

        Where an earlier one is at the device, that stays there for now.
        """
        if self._kept is not None and not self._is_new:
            hook = Settings.from_json(self._kept.settings).goes_on_as(settings)
            return self._load(hook, settings), hook
        *better, last = HOOKS[settings.config.acceleration]
        for hook in better:
            with contextlib.suppress(FeatureError):
                return self._start_at(hook, settings), hook
        return self._start_at(last, settings), last

    def _start_at(self, hook: Hook, settings: Settings) -> Object:
        loaded = self._load(hook, settings)
        try:
            self._remember(hook, settings)
            self._hang(hook, loaded)
        except BaseException:
            loaded.close()
            raise
        return loaded

    def _load(self, hook: Hook, settings: Settings) -> Object:
        pins = self._kept.maps if self._kept else None
        loaded = load(settings.config, self._place, settings.sizes, hook, pins)
        self._resources.callback(loaded.close)
        return loaded

    def _hang(self, hook: Hook, loaded: Object) -> None:
        program = loaded.programs[hook.program]
        self._attach(
            str(hook),
            lambda: hook.attach(program, self.device),
            lambda pin: hook.adopt(program, self.device, pin),
        )

    def _end(self) -> None:
        self._at_end.close()
        super()._end()

    def _remember(self, hook: Hook, settings: Settings) -> None:
        if self._kept is not None:
            self._kept.remember(evolve(settings, hook=hook).to_json())

    def _go_on(self, settings: Settings) -> None:
        """The maps are an earlier process's, and hold what they should: now the program."""
        self._hang(self.hook, self._object)
        self._remember(self.hook, settings)
        table = self._held.table
        zero_others(self._object.maps["lb_service_counters"], map(table.service_id, table.services))
        zero_others(self._object.maps["lb_backend_counters"], table.backends)
        zero_others(self._object.maps["lb_hops"], table.backends)
        wake(self._netns, {backend.address for backend in table.backends.values()})

    # ------------------------------------------------------------------ services

    def _refusals(self, service: Service) -> Iterator[str]:
        key, config = service.key, self.config
        try:
            if config.forwarding_of(service) is ForwardingMode.SNAT:
                self._ports.check()
            else:
                config.dispatch_of(service)
        except InvalidError as error:
            yield f"{key}: {error}"
        if service.proxy_delegation is not ProxyDelegation.NONE:
            yield f"{key}: proxy delegation is not implemented"

    def _ready_for(self, services: Iterable[Service]) -> AbstractContextManager[None]:
        forwarding = map(self.config.forwarding_of, services)
        if ForwardingMode.SNAT in forwarding:
            return self._ports.protected()
        return contextlib.nullcontext()

    def _unreachable(self, versions: Iterable[int]) -> Iterator[str]:
        """Why the device cannot send to backends of these families."""
        for version in sorted(versions):
            if self._place.source(version) is None:
                yield f"{self.device} has no IPv{version} address to send from; give it one"
            elif not _forwards(self._netns, self.device, version):
                name = f"net.ipv{version}.conf.{self.device}.forwarding"
                yield f"forwarding is off at {self.device}; run `sysctl -w {name}=1`"

    def _applied(self, applied: Applied) -> None:
        zero(self._object.maps["lb_service_counters"], applied.unused_services)
        zero(self._object.maps["lb_backend_counters"], applied.unused_backends)
        zero(self._object.maps["lb_hops"], applied.unused_backends)
        wake(self._netns, {backend.address for backend in applied.backends.values()})

    # ------------------------------------------------------------------ questions

    def where(self, client: str | Client, to: str | Frontend) -> Placement:
        """Where a client's connection goes, and why: "192.0.2.7:40000" to "203.0.113.10:80".

        A connection that the kernel knows has its backend, and so has a client that it remembers
        for session affinity; for any other it is the model's answer for its first packet.
        """
        self._check_open()
        caller, target = Client.parse(client), Frontend.parse(to, FrontendType.HOST_PORT)
        with self._held.lock:
            placed = self._held.model.where(caller, target)
            backend = self._flows.backend_of(caller, target, self._held.table.backends)
            if backend is None or placed.service is None:
                return self._held.by_affinity(
                    placed, lambda *of: self._clients.of_address(caller.address, *of)
                )
        return evolve(placed, why=Why.CONNECTION, backend=backend, candidates=())

    def connections(self) -> Iterator[Connection]:
        """The connections that the kernel knows and has not forgotten."""
        self._check_open()
        return self._flows.read(self._backends_now())

    def service_counts(self) -> dict[ServiceKey, Count]:
        """What was sent on for each service since it was added."""
        self._check_open()
        return self._by_service(packet_sums(self._object.maps["lb_service_counters"]))

    def backend_counts(self) -> dict[Backend, Count]:
        """What was sent to each backend."""
        self._check_open()
        return self._by_backend(packet_sums(self._object.maps["lb_backend_counters"]))

    @property
    def nat_ports(self) -> PortProto:
        """The ports of this node that connections have which are translated."""
        return self._ports.ports

    def metrics(self) -> Metrics:
        """Packets and bytes of services: forwarded, and dropped by reason."""
        self._check_open()
        return Metrics.read(self._object.maps["metrics"])

    def close(self) -> None:
        """Take the program off its device and free what is held, pins too.

        To let it go on, use `keep()`. A second call does nothing.
        """
        if not self._closed:
            self._keeper.release()
        super().close()

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
