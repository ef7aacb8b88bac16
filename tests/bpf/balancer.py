"""A load balancer that is only test-run: a device with routes and neighbours, and its maps.

`Rig.send` gives a frame to the program and returns what it said and did to it; scapy reads the
packet that comes out, so that a second implementation checks every byte and checksum.
"""

from __future__ import annotations

import ipaddress
import itertools
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Final

import numpy as np
from attrs import frozen
from scapy.layers.inet import IP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from pyciliumlib.conntrack.program import kernel_clock
from pyciliumlib.flow import DropReason
from pyciliumlib.flow.metrics import Metrics
from pyciliumlib.kernel import Object
from pyciliumlib.loadbalancer import Backend, Balancer, LoadBalancerConfig, LocalNode, Service
from pyciliumlib.loadbalancer.program.load_balancer import DEFAULTS
from pyciliumlib.loadbalancer.program.loading import Hook, Place, Sizes, load
from pyciliumlib.loadbalancer.table import ServiceTable
from pyciliumlib.net import Netlink, NetNS, write_sysctls
from pyciliumlib.types import PortProto

DROP, PASS, TX, REDIRECT = 1, 2, 3, 4
#: What tc's actions are in XDP; tc does not say whether a redirect goes back out where it came in.
_TC_ACTIONS: Final = {0: PASS, 2: DROP, 7: TX}
ROUTER_MAC, OWN_MAC = "0a:00:00:00:00:99", "0a:00:00:00:00:01"
CLIENT_MAC = "0a:00:00:00:00:42"
SIZES: Final = Sizes(services=64, frontends=64, backends=64, slots=8192, flows=4096, clients=512,
                     translated=4096)  # fmt: skip
_serial = itertools.count()


@frozen
class Family:
    """The addresses of one family, all routed from the balancer's device."""

    version: int
    vip: str
    other_vip: str
    client: str
    other_client: str
    own: str
    backends: tuple[str, ...]
    unroutable: str

    def __str__(self) -> str:
        return f"IPv{self.version}"

    def at(self, address: str, port: int, protocol: str = "TCP") -> str:
        """Address, port and protocol as a service has them."""
        host = f"[{address}]" if self.version == 6 else address
        return f"{host}:{port}/{protocol}"

    def served(self, port: int = 80, protocol: str = "TCP") -> list[str]:
        """The backends at a port."""
        return [self.at(address, port, protocol) for address in self.backends]

    def ip(self, src: str, dst: str, **fields: Any) -> Packet:
        """The link and network headers of a packet for the balancer."""
        layer = (
            IP(src=src, dst=dst, **fields)
            if self.version == 4
            else IPv6(src=src, dst=dst, **fields)
        )
        return Ether(src=CLIENT_MAC, dst=OWN_MAC) / layer


V4 = Family(4, "203.0.113.10", "203.0.113.11", "198.51.100.7", "198.51.100.8", "192.0.2.1",
            ("10.0.0.1", "10.0.0.2", "10.0.0.3", "192.0.2.31"), "10.9.0.1")  # fmt: skip
V6 = Family(6, "2001:db8:a::10", "2001:db8:a::11", "2001:db8:c::7", "2001:db8:c::8",
            "2001:db8::1", ("fd00::1", "fd00::2", "fd00::3", "2001:db8::31"),
            "fd99::1")  # fmt: skip
FAMILIES = (V4, V6)


@frozen
class Outcome:
    """What the program did with one frame."""

    action: int
    data: bytes
    reason: int

    @property
    def packet(self) -> Packet:
        return Ether(self.data)

    @property
    def outer(self) -> Any:
        """The outer IP header of a packet that was sent on."""
        return self.packet.getlayer(1)

    @property
    def to(self) -> str:
        """The backend's address."""
        assert self.action in (TX, REDIRECT), self
        return str(ipaddress.ip_address(self.outer.dst))

    def __str__(self) -> str:
        return f"action {self.action}, {DropReason(self.reason)!s}, {self.packet.summary()}"


class Rig:
    """The program, its maps as a table of services, and the model beside it."""

    def __init__(
        self,
        loaded: Object,
        netns: NetNS,
        ifindex: int,
        config: LoadBalancerConfig,
        hook: Hook = Hook.NATIVE,
    ) -> None:
        self.maps, self.program, self.hook = loaded.maps, loaded.programs[hook.program], hook
        self.netns, self.ifindex, self.config = netns, ifindex, config
        self.node = LocalNode("n1", [family.own for family in FAMILIES])
        self.reset()

    def reset(self) -> None:
        """No services, no flows, counters at zero."""
        self.forget_flows()
        for name in ("lb_services", "lb_members", "lb_ranges"):
            self.maps[name].clear()
        for name in ("lb_backends", "lb_revisions", "lb_filter", "metrics", "lb_hops",
                     "lb_nat_used", "lb_collecting", "lb_service_counters",
                     "lb_backend_counters"):  # fmt: skip
            keys, values = self.maps[name].lookup_batch()
            self.maps[name].update_batch(keys, np.zeros_like(values))
        self.table = ServiceTable(self.maps, self.config, self.node)
        self.model = Balancer((), self.config, self.node)

    def forget_flows(self) -> None:
        """No flows, and nothing that is remembered of any."""
        for name in ("lb_flows", "lb_pending", "lb_nat", "lb_nat_pending", "lb_affinity",
                     "lb_fragments"):  # fmt: skip
            self.maps[name].clear()

    def serve(self, *services: Service) -> None:
        """Hold these services and no others."""
        self.table.apply(self.table.plan(services))
        for key in self.model.services.keys() - {one.key for one in services}:
            self.model.delete(key)
        for service in services:
            self.model.upsert(service)

    def send(self, frame: Packet | bytes, repeat: int = 1) -> Outcome:
        """Run the program as at the device."""
        before = Metrics.read(self.maps["metrics"])
        device = "ifindex" if self.hook is Hook.TC else "ingress_ifindex"
        with self.netns.enter():
            result = self.program.run(bytes(frame), {device: self.ifindex}, repeat=repeat)
        action = _TC_ACTIONS[result.retval] if self.hook is Hook.TC else result.retval
        after = Metrics.read(self.maps["metrics"])
        reasons = [row.reason for row in after
                   if row.reason
                   and row.packets > before.packets(row.reason, row.direction)]  # fmt: skip
        return Outcome(action, result.packet, reasons[0] if reasons else 0)

    def backend_of(self, service: Service, outcome: Outcome) -> Backend:
        """The service's backend that a packet was sent to."""
        (found,) = [b for b in service.backends if str(b.address) == outcome.to]
        return found


@contextmanager
def device() -> Iterator[tuple[NetNS, int]]:
    """A namespace with a device whose backends are behind a router, and one beside it."""
    with ExitStack() as stack:
        netns = stack.enter_context(NetNS.create(f"pclB{os.getpid()}-{next(_serial)}"))
        stack.callback(netns.delete)
        netlink = stack.enter_context(Netlink(netns))
        write_sysctls(netns, {"ipv4/ip_forward": 1, "ipv6/conf/all/forwarding": 1})
        eth0 = netlink.add_veth("eth0", "wire", mac=OWN_MAC)
        for name in ("eth0", "wire"):
            netlink.set_link(name, up=True)
        for family, length in ((V4, 24), (V6, 64)):
            netlink.add_address("eth0", f"{family.own}/{length}")
        netlink.wait_operational("eth0")
        netlink.wait_usable("eth0", V6.own)
        for address, mac in (("192.0.2.254", ROUTER_MAC), ("2001:db8::254", ROUTER_MAC),
                             ("192.0.2.31", "0a:00:00:00:00:31"),
                             ("2001:db8::31", "0a:00:00:00:00:31")):  # fmt: skip
            netlink.add_neighbour("eth0", address, mac)
        netlink.add_route("10.0.0.0/24", dev="eth0", via="192.0.2.254")
        netlink.add_route("fd00::/64", dev="eth0", via="2001:db8::254")
        netlink.add_route("198.51.100.0/24", dev="eth0", via="192.0.2.254")
        netlink.add_route("2001:db8:c::/64", dev="eth0", via="2001:db8::254")
        yield netns, eth0.ifindex


@contextmanager
def rig(
    where: tuple[NetNS, int],
    config: LoadBalancerConfig | None = None,
    mtu: int = 1500,
    hook: Hook = Hook.NATIVE,
    nat_ports: str = "32768-65535",
) -> Iterator[Rig]:
    """The program loaded for that device, with a small Maglev table."""
    config = config or LoadBalancerConfig(**{**_fields(DEFAULTS), "table_size": 251})
    place = Place(
        ipaddress.IPv4Address(V4.own),
        ipaddress.IPv6Address(V6.own),
        mtu,
        PortProto.parse(nat_ports),
    )
    with load(config, place, SIZES, hook) as loaded:
        yield Rig(loaded, *where, config, hook)


def _fields(config: LoadBalancerConfig) -> dict[str, Any]:
    return {"algorithm": config.algorithm, "mode": config.mode, "dispatch": config.dispatch}


def hz() -> int:
    """The kernel's ticks a second."""
    return kernel_clock().hz


def jiffies() -> int:
    """The kernel's clock as the program reads it."""
    return kernel_clock().jiffies(time.clock_gettime_ns(time.CLOCK_MONOTONIC))
