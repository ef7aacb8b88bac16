"""A load balancer at the sockets of a cgroup: connections go to backends from the beginning."""

from __future__ import annotations

import contextlib
import functools
import ipaddress
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from attrs import evolve

from pyciliumlib.conntrack.program import kernel_clock
from pyciliumlib.errors import FeatureError, InvalidError
from pyciliumlib.flow.metrics import Metrics
from pyciliumlib.kernel import Link, Object, Program, attach_cgroup, find_cgroup2
from pyciliumlib.kernel.link import live_link
from pyciliumlib.kernel.pinroot import PinLayout
from pyciliumlib.loadbalancer.affinity import KnownClients
from pyciliumlib.loadbalancer.backend import Backend
from pyciliumlib.loadbalancer.balancer import Client, Placement, Why
from pyciliumlib.loadbalancer.config import LoadBalancerConfig
from pyciliumlib.loadbalancer.documents import LocalNode
from pyciliumlib.loadbalancer.installed import Applied
from pyciliumlib.loadbalancer.kinds import Direction, FrontendType, ProxyDelegation
from pyciliumlib.loadbalancer.program.counters import number_sums, zero, zero_others
from pyciliumlib.loadbalancer.program.kept import Kept, kept_settings
from pyciliumlib.loadbalancer.program.kernel_balancer import (
    HeldServices,
    KernelBalancer,
    refuse_exceptions,
)
from pyciliumlib.loadbalancer.program.loading import Sizes
from pyciliumlib.loadbalancer.program.socket_loading import (
    SOCKET_HOOKS,
    SocketPlace,
    load_sockets,
)
from pyciliumlib.loadbalancer.program.socket_settings import SocketSettings
from pyciliumlib.loadbalancer.program.terminator import SocketTerminator
from pyciliumlib.loadbalancer.service import Frontend, Service, ServiceKey
from pyciliumlib.loadbalancer.sockets import SocketConnection, Sockets
from pyciliumlib.net import Netlink, NetNS, check_can_destroy, netns_inode_of
from pyciliumlib.types import Address, Protocol

#: Its number counts changes of what is pinned that an older or newer version cannot use.
_LAYOUT: Final = PinLayout("SocketBalancer", "sockets-v1")


class SocketBalancer(KernelBalancer):
    """Balances connections of processes on this machine, at their sockets: no packet is touched.

    A socket of the cgroup that connects or sends to a service's address gets a backend in its
    place, TCP and UDP, and goes on seeing the service. Chance chooses, or affinity by the
    client's network namespace. Where there is no backend, and at other ports of a service's
    address, the call fails with EHOSTUNREACH (EPERM before Linux 6.1). NodePorts are found at the
    node's addresses and, in its own namespace, at loopback; no socket there may be bound to one.

        with SocketBalancer() as balancer:
            balancer.upsert(Service("web", ["10.96.0.10:80"], ["10.0.0.1:8080", "10.0.0.2:8080"]))

    Needs CAP_BPF and CAP_NET_ADMIN, or root, and cgroup2. Least kernel: 5.10.
    """

    def __init__(
        self,
        cgroup: str | os.PathLike[str] | None = None,
        *,
        share: KernelBalancer | None = None,
        config: LoadBalancerConfig | None = None,
        sizes: Sizes | None = None,
        node: LocalNode | None = None,
        pin_root: str | os.PathLike[str] | None = None,
    ) -> None:
        """Balance the sockets of `cgroup` and those below it; by default all of the machine.

        With `share` the services are those of another balancer, whose maps both then read: a
        change by either is one for both. Config and node are that one's too, and it has to be
        closed last. The calling thread's network namespace is the node's; by default `node` has
        its addresses and no name.

        Without `pin_root` everything ends with `close()` or the process. With it, a directory below
        /sys/fs/bpf, programs, maps and services go on, and the next balancer takes them over: this
        class with the same `pin_root`, or `open`. Raises then what `open` does, too; one that is
        shared needs a `pin_root` of its own.

        Raises NotFoundError where there is no such cgroup, StateError for another file system's
        directory, FeatureError for a setting that this kernel cannot fulfil, InvalidError,
        PrivilegeError, ServiceError for a shared service that sockets cannot have.
        """
        _check_arguments(share, config, node, pin_root)
        super().__init__(None if pin_root is None else Kept(pin_root, _LAYOUT))
        self.cgroup = os.fspath(cgroup if cgroup is not None else find_cgroup2())
        try:
            self._netns = self._resources.enter_context(NetNS.current())
            settings = SocketSettings(
                self.cgroup,
                self._netns.inode,
                share.config if share else config or LoadBalancerConfig(),
                sizes or Sizes(),
                node,
                share._held.maps["lb_services"].info.id if share else 0,
            )
            if self._kept is not None and not self._is_new:
                SocketSettings.from_json(self._kept.settings).check(settings)
            self._object = self._load(settings, share)
            maps = self._object.maps
            self._sockets = Sockets(maps)
            self._clients = KnownClients(maps, kernel_clock())
            self._terminator = self._terminator_of(settings.config)
            if share is not None:
                self._join(share._held)
            else:
                here = node or _node_at(self._netns)
                self._join(HeldServices(self, maps, settings.config, here, self._kept))
                if not self._is_new:
                    self._held.restore()
            self._start(settings)
        except BaseException:
            self._give_up()
            raise

    @classmethod
    def open(
        cls,
        pin_root: str | os.PathLike[str],
        *,
        share: KernelBalancer | None = None,
        config: LoadBalancerConfig | None = None,
        sizes: Sizes | None = None,
        node: LocalNode | None = None,
    ) -> SocketBalancer:
        """Take over what an earlier process left at `pin_root`; its clients go on meanwhile.

        To be called in the same network namespace, with the balancer that it shared, if any.
        Cgroup and settings are as they were; a `config` or `node` that is given takes their place.
        Each hook gets this version's program in one step, over the same maps, and sockets that
        were translated go on seeing their service. A change that was cut short is carried out.

        Raises NotFoundError if nothing is kept there, LockedError if another process has it,
        LayoutError for another version's pins, MismatchError for other `sizes`, StateError in
        another namespace and for other services than before, ServiceError if a service cannot be
        served any more. Then all is as it was.
        """
        was = SocketSettings.from_json(kept_settings(pin_root, _LAYOUT))
        return cls(
            was.cgroup,
            share=share,
            config=config if share else config or was.config,
            sizes=sizes or was.sizes,
            node=node if share else node or was.node,
            pin_root=pin_root,
        )

    def _load(self, settings: SocketSettings, share: KernelBalancer | None) -> Object:
        place = SocketPlace(_cookie_of(self._netns), settings.config.socket_host_only)
        shared = share._held.maps if share else None
        pins = self._kept.maps if self._kept else None
        return self._resources.enter_context(load_sockets(place, settings.sizes, shared, pins))

    def _start(self, settings: SocketSettings) -> None:
        """Have the programs at their hooks, new ones or in the place of an earlier process's."""
        if self._kept is not None:
            self._kept.remember(settings.to_json())
        for name, hook in SOCKET_HOOKS.items():
            program = self._object.programs[name]
            self._attach(
                hook,
                functools.partial(attach_cgroup, program, self.cgroup, hook),
                functools.partial(_adopt, program),
            )
        if not self._is_new:
            maps, table = self._object.maps, self._held.table
            zero_others(maps["lb_socket_services"], map(table.service_id, table.services))
            zero_others(maps["lb_socket_backends"], table.backends)
            if self._terminator:
                self._terminator.wake()  # for backends that went when nobody was there

    def _terminator_of(self, config: LoadBalancerConfig) -> SocketTerminator | None:
        if not config.socket_terminate:
            return None
        check_can_destroy(self._netns)
        terminator = SocketTerminator(self._sockets)
        self._resources.callback(terminator.close)
        return terminator

    # ------------------------------------------------------------------ services

    def _refusals(self, service: Service) -> Iterator[str]:
        if service.protocol is Protocol.SCTP and self._held.owner is self:
            yield f"{service.key}: sockets of SCTP are not translated, and nothing else serves it"
        yield from refuse_exceptions(service)
        if service.proxy_delegation is not ProxyDelegation.NONE:
            yield f"{service.key}: proxy delegation is not implemented"

    def _applied(self, applied: Applied) -> None:
        zero(self._object.maps["lb_socket_services"], applied.unused_services)
        zero(self._object.maps["lb_socket_backends"], applied.unused_backends)
        if self._terminator and applied.parted:
            self._terminator.wake()

    # ------------------------------------------------------------------ questions

    def where(self, to: str | Frontend, netns: NetNS | None = None) -> Placement:
        """Where a connection to "10.96.0.10:80" goes, and why, from a network namespace.

        By default that is the node's. A namespace that has affinity meets the backend again that
        the kernel remembers (from Linux 5.14 on); any other is told the candidates.
        """
        self._check_open()
        target = Frontend.parse(to, FrontendType.HOST_PORT)
        at_node = netns is None or netns.inode == self._netns.inode
        if self.config.socket_host_only and not at_node:
            return Placement(Why.NO_SERVICE)
        if target.address.is_loopback or target.address.is_unspecified:
            if not at_node:
                return Placement(Why.NO_SERVICE)
            target = evolve(target, address=_UNSPECIFIED[target.address.version])
        with self._held.lock:
            nobody = Client(_UNSPECIFIED[target.address.version], 0)
            placed = self._held.model.where(nobody, target, direction=Direction.SOCKET)
            return self._remembered(placed, netns or self._netns)

    def _remembered(self, placed: Placement, netns: NetNS) -> Placement:
        """The same, where a namespace that the kernel remembers meets its backend again."""
        version = placed.candidates[0].address.version if placed.candidates else 0
        with contextlib.suppress(FeatureError):
            return self._held.by_affinity(
                placed, lambda *of: self._clients.of_namespace(netns.cookie, version, *of)
            )
        return placed

    def connections(self) -> Iterator[SocketConnection]:
        """The sockets that were translated, and to which backend."""
        self._check_open()
        return self._sockets.read(self._backends_now())

    def service_counts(self) -> dict[ServiceKey, int]:
        """How many connects and unconnected datagrams were translated, by service."""
        self._check_open()
        return self._by_service(number_sums(self._object.maps["lb_socket_services"]))

    def backend_counts(self) -> dict[Backend, int]:
        """The same by backend."""
        self._check_open()
        return self._by_backend(number_sums(self._object.maps["lb_socket_backends"]))

    def metrics(self) -> Metrics:
        """Connects and datagrams that were translated, and those refused by reason."""
        self._check_open()
        return Metrics.read(self._object.maps["metrics"])

    @property
    def ended(self) -> int:
        """How many sockets were ended because their backend was gone (`socket_terminate`)."""
        return self._terminator.ended if self._terminator else 0

    def __repr__(self) -> str:
        return f"<SocketBalancer at {self.cgroup}, {len(self.services)} services>"


def _check_arguments(
    share: KernelBalancer | None,
    config: LoadBalancerConfig | None,
    node: LocalNode | None,
    pin_root: str | os.PathLike[str] | None,
) -> None:
    if share is None:
        return
    if config is not None or node is not None:
        raise InvalidError("config and node are those of the balancer that is shared")
    if pin_root is not None and share._held.kept is None:
        raise InvalidError(
            "what is pinned would outlive the services that it needs: give the balancer that is "
            "shared a pin_root as well"
        )


def _adopt(program: Program, pin: Path) -> Link | None:
    """What an earlier process attached and kept, with this program; None if it is gone."""
    link = live_link(pin)
    if link is not None:
        link.update(program)
    return link


_UNSPECIFIED: Final[dict[int, Address]] = {
    4: ipaddress.IPv4Address("0.0.0.0"),
    6: ipaddress.IPv6Address("::"),
}


def _node_at(netns: NetNS) -> LocalNode:
    """The node whose addresses are all those of a namespace."""
    with Netlink(netns) as netlink:
        devices = [link.ifindex for link in netlink.links()]
        found = [interface.ip for device in devices for interface in netlink.addresses(device)]
    usable = [ip for ip in found if not ip.is_link_local and not ip.is_loopback]
    return LocalNode(addresses=tuple(dict.fromkeys(usable)))


def _cookie_of(netns: NetNS) -> int:
    """By what the program knows the node's namespace; 0 stands for the initial one."""
    try:
        return netns.cookie
    except FeatureError as error:
        if netns.inode == netns_inode_of(1):
            return 0
        raise FeatureError(
            error.errno or 0,
            "a balancer of sockets for a node in a network namespace of its own needs Linux 5.14",
            error.feature,
        ) from error
