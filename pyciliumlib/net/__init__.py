"""Network namespaces, devices, addresses, routes and neighbours, over netlink."""

from __future__ import annotations

from pyciliumlib.net.link import Link, check_ifname
from pyciliumlib.net.neighbour import Neighbour
from pyciliumlib.net.netlink import Netlink
from pyciliumlib.net.netns import (
    NetNS,
    delete_netns,
    every_netns,
    in_new_thread,
    netns_inode_of,
    netns_names,
    processes_in,
)
from pyciliumlib.net.plumb import (
    add_host_route,
    add_permanent_neighbour,
    ifindex_in,
    mac_of,
    remove_host_route,
    veth_peer,
)
from pyciliumlib.net.route import NextHop
from pyciliumlib.net.sockdiag import ConnectedSocket, SocketDiag, check_can_destroy
from pyciliumlib.net.sysctl import read_sysctl, write_sysctls
from pyciliumlib.net.worker import NetNSWorker

__all__ = [
    "ConnectedSocket",
    "Link",
    "Neighbour",
    "NetNS",
    "NetNSWorker",
    "Netlink",
    "NextHop",
    "SocketDiag",
    "add_host_route",
    "add_permanent_neighbour",
    "check_can_destroy",
    "check_ifname",
    "delete_netns",
    "every_netns",
    "ifindex_in",
    "in_new_thread",
    "mac_of",
    "netns_inode_of",
    "netns_names",
    "processes_in",
    "read_sysctl",
    "remove_host_route",
    "veth_peer",
    "write_sysctls",
]
