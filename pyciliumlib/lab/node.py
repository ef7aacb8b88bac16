"""Nodes, the pods on them, and hosts outside."""

from __future__ import annotations

import contextlib
import ipaddress
from typing import TYPE_CHECKING, Final

from pyciliumlib.errors import DeviceError
from pyciliumlib.lab.addressing import LAN4, LAN6, PodAddresses, mac_for
from pyciliumlib.lab.host import Host
from pyciliumlib.lab.names import check_host_name, device_name
from pyciliumlib.net import (
    Link,
    Netlink,
    NetNS,
    add_host_route,
    add_permanent_neighbour,
    remove_host_route,
    write_sysctls,
)
from pyciliumlib.types import Address, AddressLike

if TYPE_CHECKING:
    from pyciliumlib.lab.lab import Lab

#: The device of every host that leads out of it.
UPLINK: Final = "eth0"
#: First two bytes of a MAC; the other four are the IPv4 address.
POD_MAC, NODE_MAC, LAN_MAC = 0x0A58, 0x0E58, 0x0658

#: For every namespace: tests and demos must see the traffic they make and no other, and each of
#: their refused probes must be answered, so the kernel's rate limits of ICMP errors are off.
QUIET: Final = {
    "ipv6/conf/all/accept_dad": 0,
    "ipv6/conf/default/accept_dad": 0,
    "ipv6/conf/default/accept_ra": 0,
    "ipv6/conf/default/addr_gen_mode": 1,  # no link-local address, so no DAD or MLD for it
    # no type is rationed; a ratelimit of 0 would leave the machine's own limit in force
    "ipv4/icmp_ratemask": 0,
    "ipv6/icmp/ratemask": "",
    "ipv4/ping_group_range": "0 2147483647",
}
#: For a node: it forwards, and judges no packet by the device it came from.
FORWARDING: Final = {
    "ipv4/ip_forward": 1,
    "ipv6/conf/all/forwarding": 1,
    "ipv4/conf/all/rp_filter": 0,
    "ipv4/conf/default/rp_filter": 0,
}


class Pod(Host):
    """A namespace with one device, `eth0`, that a veth joins to its node."""

    def __init__(
        self,
        node: Node,
        name: str,
        netns: NetNS,
        ip4: ipaddress.IPv4Address,
        ip6: ipaddress.IPv6Address,
        link: Link,
        mac: str,
    ) -> None:
        """Made by `Node.pod`."""
        super().__init__(node.lab, name, netns, ip4, ip6)
        self.node = node
        self.ifname = UPLINK
        """The device in the pod."""
        self.mac = mac
        """Of the device in the pod."""
        self.host_ifname = link.name
        """The device in the node's namespace."""
        self.ifindex = link.ifindex
        """The number of the device in the node's namespace."""
        self.host_mac = link.mac
        """Of the device in the node's namespace."""

    def _detach(self) -> None:
        self.node._forget(self)


class Node(Host):
    """A namespace that forwards between its pods, the other nodes and the hosts outside.

    `ip4` and `ip6` are its addresses on `eth0`, the native device; `router4` and `router6` are the
    pods' gateway. Programs for its devices are attached from inside: see `Host.call`.
    """

    def __init__(
        self,
        lab: Lab,
        name: str,
        netns: NetNS,
        ip4: ipaddress.IPv4Address,
        ip6: ipaddress.IPv6Address,
        pods: PodAddresses,
        netlink: Netlink,
    ) -> None:
        """Made by `Lab.node`."""
        super().__init__(lab, name, netns, ip4, ip6)
        self.pods: dict[str, Pod] = {}
        self.cidr4 = pods.cidr4
        self.cidr6 = pods.cidr6
        self.router4 = pods.router4
        self.router6 = pods.router6
        self.native = UPLINK
        """The device that leads out of the node."""
        self.netlink = netlink
        """An open client in the node's namespace."""
        self._pool = pods

    @property
    def addresses(self) -> tuple[Address, ...]:
        """The node's own addresses: on the native device, and the router's."""
        return (self.ip4, self.ip6, self.router4, self.router6)

    def pod(
        self,
        name: str,
        *,
        ip4: AddressLike | None = None,
        ip6: AddressLike | None = None,
    ) -> Pod:
        """Make a pod: a namespace, a veth pair, addresses, routes both ways.

        The pod asks for its gateway by ARP and ND; the node has permanent entries for the pod.
        `ExistsError` if the name or an address is taken.
        """
        self._check_open()
        check_host_name(name)
        v4, v6 = self._pool.take(ip4, ip6)
        with contextlib.ExitStack() as undo:
            undo.callback(self._pool.release, (v4, v6))
            netns = self.lab.make_netns(name)
            undo.callback(netns.delete)
            mac = mac_for(POD_MAC, v4)
            link = self.netlink.add_veth(
                device_name("lxc-", name),
                UPLINK,
                peer_netns=netns,
                mac=mac_for(NODE_MAC, v4),
                peer_mac=mac,
                mtu=self.lab.mtu,
            )
            undo.callback(self._delete_link, link.ifindex)
            self._connect_pod(netns, link, v4, v6, mac)
            pod = Pod(self, name, netns, v4, v6, link, mac)
            undo.pop_all()
        self.pods[name] = pod
        return pod

    def release(self) -> None:
        """End the programs of the pods and the node, and close what is open here."""
        for pod in self.pods.values():
            pod.release()
        self.netlink.close()
        super().release()

    def _detach(self) -> None:
        for pod in tuple(self.pods.values()):
            pod.close()
        self.lab.leave_lan(self.name)

    def _connect_pod(
        self,
        netns: NetNS,
        link: Link,
        v4: ipaddress.IPv4Address,
        v6: ipaddress.IPv6Address,
        mac: str,
    ) -> None:
        here = self.netlink
        here.set_link(link.ifindex, up=True)
        # ND, unlike ARP, is answered only for addresses of the device that the question came in on
        here.add_address(link.ifindex, f"{self.router6}/128")
        with Netlink(netns) as pod:
            device = pod.link(UPLINK).ifindex
            pod.set_link("lo", up=True)
            pod.set_link(device, up=True)
            here.wait_operational(link.ifindex)
            for ip, router, default in (
                (v4, self.router4, "default4"),
                (v6, self.router6, "default6"),
            ):
                pod.add_address(device, f"{ip}/{ip.max_prefixlen}")
                pod.add_route(router, dev=device)
                pod.add_route(default, via=router, dev=device)
                add_host_route(here, ip, dev=link.ifindex, src=router)
                add_permanent_neighbour(here, ip, mac, dev=link.ifindex)
            pod.wait_usable(device, v6)
        here.wait_usable(link.ifindex, self.router6)

    def _forget(self, pod: Pod) -> None:
        self._delete_link(pod.ifindex)
        self._pool.release((pod.ip4, pod.ip6))
        self.pods.pop(pod.name, None)

    def _delete_link(self, ifindex: int) -> None:
        with contextlib.suppress(DeviceError):  # somebody deleted it inside the pod
            self.netlink.delete_link(ifindex)


class Outside(Host):
    """A host beyond the nodes' native devices: the world, an API server, a client."""

    def __init__(
        self,
        lab: Lab,
        name: str,
        netns: NetNS,
        ip4: ipaddress.IPv4Address,
        ip6: ipaddress.IPv6Address,
        of: Node | None,
    ) -> None:
        """Made by `Lab.outside`."""
        super().__init__(lab, name, netns, ip4, ip6)
        self.of = of
        """The only node that has a way to it, or None for every node."""

    def _detach(self) -> None:
        for node in self.lab.nodes.values():
            for ip in (self.ip4, self.ip6):
                if ip not in LAN4 and ip not in LAN6:
                    remove_host_route(node.netlink, ip, dev=node.native)
        self.lab.leave_lan(self.name)

    def add_route_to(self, node: Node) -> None:
        """Let this host and `node` reach each other, and this host the node's pods."""
        if self.ip4 not in LAN4:
            add_host_route(node.netlink, self.ip4, dev=node.native, src=node.ip4)
        if self.ip6 not in LAN6:
            add_host_route(node.netlink, self.ip6, dev=node.native, src=node.ip6)
        with Netlink(self.netns) as here:
            here.add_route(node.cidr4, via=node.ip4, dev=UPLINK, replace=True)
            here.add_route(node.cidr6, via=node.ip6, dev=UPLINK, replace=True)


def prepare(netns: NetNS, *, forwards: bool = False) -> None:
    """Set the kernel's parameters of a new namespace; before its devices come, which inherit."""
    write_sysctls(netns, QUIET | (FORWARDING if forwards else {}))
