"""A small network of nodes, pods and outside hosts on one machine, made of network namespaces."""

from __future__ import annotations

import atexit
import contextlib
import ipaddress
import itertools
import os
import warnings
import weakref

from pyciliumlib.closeable import Closeable
from pyciliumlib.errors import ClosedError, DeviceError, ExistsError, NotFoundError, nearest
from pyciliumlib.lab.addressing import (
    FIRST_OUTSIDE,
    LAN4,
    LAN6,
    PodAddresses,
    address_pair,
    lan_addresses,
    link_local,
    mac_for,
    pod_cidrs,
)
from pyciliumlib.lab.host import Host
from pyciliumlib.lab.names import check_host_name, device_name, netns_prefix
from pyciliumlib.lab.node import LAN_MAC, UPLINK, Node, Outside, prepare
from pyciliumlib.lab.processes import Spawner
from pyciliumlib.lab.server import ServerLoop
from pyciliumlib.lab.state import LabState, remove_stale
from pyciliumlib.net import Netlink, NetNS
from pyciliumlib.types import AddressLike, NetworkLike

_LAN = "lan"
_BRIDGE = "br0"


class Lab(Closeable):
    """Nodes, pods and hosts outside, as namespaces with real devices, addresses and routes.

    Everything is removed by `close()`, at the end of `with`, at the end of the interpreter, and,
    if the process was killed, by the next `Lab()` or `Lab.cleanup_stale()`. Needs root.

        with Lab() as lab:
            node = lab.node()
            web, api = node.pod("web"), node.pod("api")
            api.serve("8080/TCP")
            print(web.connect(api.ip4, "8080/TCP").reply)       # b'api\\n'
    """

    def __init__(self, *, mtu: int = 1500) -> None:
        """Start an empty lab whose devices all have `mtu` bytes; removes labs left by a crash."""
        remove_stale()
        self.mtu = mtu
        self.nodes: dict[str, Node] = {}
        self.outsiders: dict[str, Outside] = {}
        self.servers = ServerLoop()
        """The thread that runs the hosts' servers."""
        self.spawner = Spawner()
        """The thread that starts the hosts' programs."""
        self._node_numbers = itertools.count(1)
        self._outside_numbers = itertools.count(FIRST_OUTSIDE)
        self._lan: Netlink | None = None
        self._pid = os.getpid()
        self._state = LabState()
        self._closed = False
        _open_labs.add(self)

    @property
    def id(self) -> str:
        """The part that the names of this lab's namespaces share: `pcl-<id>-<host>`."""
        return self._state.id

    @staticmethod
    def cleanup_stale() -> tuple[str, ...]:
        """Remove the labs of processes that are gone; returns their ids. Live labs are safe."""
        return remove_stale()

    def node(
        self,
        name: str | None = None,
        *,
        cidr4: NetworkLike | None = None,
        cidr6: NetworkLike | None = None,
    ) -> Node:
        """Make a node; "n1", "n2", ... unless named.

        Its pods get addresses from `cidr4` and `cidr6`, by default 10.244.N.0/24 and
        fd00:10:244:N::/64. Nodes and hosts outside share a LAN, and know the way to each other.
        """
        index = next(self._node_numbers)
        name = check_host_name(f"n{index}" if name is None else name)
        pods = PodAddresses(*pod_cidrs(index, cidr4, cidr6))
        ip4, ip6 = lan_addresses(index)
        with contextlib.ExitStack() as undo:
            netns = self._host(name, ip4, ip6, undo, forwards=True)
            netlink = undo.enter_context(Netlink(netns))
            netlink.add_address("lo", f"{pods.router4}/32")
            netlink.add_address("lo", f"{pods.router6}/128")
            netlink.wait_usable("lo", pods.router6)
            node = Node(self, name, netns, ip4, ip6, pods, netlink)
            for other in self.nodes.values():
                _connect_nodes(node, other)
                _connect_nodes(other, node)
            for host in self.outsiders.values():
                if host.of is None:
                    host.add_route_to(node)
            undo.pop_all()
        self.nodes[name] = node
        return node

    def outside(
        self,
        name: str,
        *,
        of: Node | None = None,
        ip4: AddressLike | None = None,
        ip6: AddressLike | None = None,
    ) -> Outside:
        """Make a host beyond the native devices, by default 192.0.2.100+N and 2001:db8::64+N.

        It and node `of`, or every node, also those to come, can reach each other. Addresses outside
        the LAN's prefixes are fine.
        """
        check_host_name(name)
        default4, default6 = lan_addresses(next(self._outside_numbers))
        v4, v6 = address_pair(default4 if ip4 is None else ip4, default6 if ip6 is None else ip6)
        with contextlib.ExitStack() as undo:
            netns = self._host(name, v4, v6, undo, forwards=False)
            host = Outside(self, name, netns, v4, v6, of)
            for node in self.nodes.values() if of is None else (of,):
                host.add_route_to(node)
            undo.pop_all()
        self.outsiders[name] = host
        return host

    def host(self, name: str) -> Host:
        """The node, pod or outside host of that name; `NotFoundError` if there is none."""
        hosts: dict[str, Host] = {**self.outsiders, **self.nodes}
        for node in self.nodes.values():
            hosts.update(node.pods)
        if name not in hosts:
            raise NotFoundError(f"the lab has no host {name!r}{nearest(str(name), hosts)}")
        return hosts[name]

    def make_netns(self, name: str, *, forwards: bool = False) -> NetNS:
        """A new namespace of this lab with quiet defaults; it ends with the lab at the latest."""
        if self._closed:
            raise ClosedError("this lab is closed")
        try:
            netns = NetNS.create(netns_prefix(self.id) + name)
        except ExistsError:
            raise ExistsError(
                f"the lab has a host {name!r} already: names are unique over nodes, pods and "
                "hosts outside"
            ) from None
        try:
            prepare(netns, forwards=forwards)
        except BaseException:
            netns.delete()
            raise
        return netns

    # -- life --------------------------------------------------------------------------------

    def close(self) -> None:
        """Remove everything; again is no error, also after one that was interrupted.

        In a process forked from the lab's owner this closes only what the child holds.
        """
        if self._closed:
            return
        if self._pid != os.getpid():
            self._state.abandon()
        else:
            self.servers.close()
            for host in (*self.outsiders.values(), *self.nodes.values()):
                host.release()
            self.spawner.close()
            if self._lan is not None:
                self._lan.close()
            self._state.remove()
        self._closed = True
        _open_labs.discard(self)

    def __del__(self) -> None:
        if not getattr(self, "_closed", True) and self._pid == os.getpid():
            warnings.warn(f"{self!r} was never closed", ResourceWarning, stacklevel=2, source=self)
            self.close()

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"{len(self.nodes)} nodes"
        return f"<Lab {self.id} {state}>"

    # -- the LAN between nodes ---------------------------------------------------------------

    def _host(
        self,
        name: str,
        ip4: ipaddress.IPv4Address,
        ip6: ipaddress.IPv6Address,
        undo: contextlib.ExitStack,
        *,
        forwards: bool,
    ) -> NetNS:
        """A namespace with `eth0` on the LAN; `undo` learns how to remove it."""
        lan = self._open_lan()
        netns = self.make_netns(name, forwards=forwards)
        undo.callback(netns.delete)
        port = lan.add_veth(
            device_name("lan-", name),
            UPLINK,
            peer_netns=netns,
            peer_mac=mac_for(LAN_MAC, ip4),
            mtu=self.mtu,
        )
        undo.callback(lan.delete_link, port.ifindex)
        lan.set_link(port.ifindex, master=_BRIDGE, up=True)
        with Netlink(netns) as here:
            device = here.link(UPLINK).ifindex
            here.set_link("lo", up=True)
            here.set_link(device, up=True)
            lan.wait_operational(port.ifindex)
            for ip, prefix in ((ip4, LAN4), (ip6, LAN6)):
                length = prefix.prefixlen if ip in prefix else ip.max_prefixlen
                here.add_address(device, f"{ip}/{length}")
                here.add_route(prefix, dev=device, src=ip, replace=True)
            # a router asks for its next hop (ND) from a link-local address, and none is made alone
            here.add_address(device, f"{link_local(ip4)}/64")
            for address in (ip6, link_local(ip4)):
                here.wait_usable(device, address)
        return netns

    def leave_lan(self, name: str) -> None:
        """Take a node or an outside host that is being closed off the LAN and the lists."""
        if self._lan is not None:
            with contextlib.suppress(DeviceError):  # gone with a namespace that was deleted
                self._lan.delete_link(device_name("lan-", name))
        self.nodes.pop(name, None)
        self.outsiders.pop(name, None)

    def _open_lan(self) -> Netlink:
        if self._lan is None:
            netns = self.make_netns(_LAN)
            try:
                lan = Netlink(netns)
                try:
                    bridge = lan.add_bridge(_BRIDGE, mtu=self.mtu)
                    lan.set_link(bridge.ifindex, up=True)
                except BaseException:
                    lan.close()
                    raise
            finally:
                netns.close()  # the name and the client's thread keep the namespace
            self._lan = lan
        return self._lan


def _connect_nodes(node: Node, other: Node) -> None:
    node.netlink.add_route(other.cidr4, via=other.ip4, dev=node.native, replace=True)
    node.netlink.add_route(other.cidr6, via=other.ip6, dev=node.native, replace=True)


_open_labs: weakref.WeakSet[Lab] = weakref.WeakSet()


@atexit.register
def _close_open_labs() -> None:
    for lab in tuple(_open_labs):
        if lab._pid == os.getpid():
            warnings.warn(f"{lab!r} was never closed", ResourceWarning, stacklevel=1, source=lab)
            lab.close()
