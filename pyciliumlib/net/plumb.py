"""How a pod's device hangs together with the node's: the questions and steps a datapath has."""

from __future__ import annotations

import contextlib

from pyciliumlib.errors import DeviceError, NotFoundError
from pyciliumlib.net.link import Link
from pyciliumlib.net.netlink import ENODEV, Netlink
from pyciliumlib.net.netns import NetNS
from pyciliumlib.types import AddressLike, parse_address


def ifindex_in(netns: NetNS, name: str) -> int:
    """The number of device `name` in `netns`; `DeviceError` if there is none."""
    with Netlink(netns) as nl:
        return nl.link(name).ifindex


def mac_of(netns: NetNS, name: str) -> str:
    """The MAC address of device `name` in `netns`; `DeviceError` if there is none."""
    with Netlink(netns) as nl:
        return nl.link(name).mac


def veth_peer(netns: NetNS, name: str, *, into: NetNS) -> Link:
    """The other end of veth `name` of `netns`, which has to be in the namespace `into`.

    Both ends are asked, since numbers repeat from one namespace to the next. `DeviceError` if it is
    no veth, or if its other end is elsewhere.
    """
    with Netlink(netns) as near:
        device = near.link(name)
        peer_ns_is_into = (
            device.peer_netnsid is None
            if netns.inode == into.inode
            else device.peer_netnsid is not None and device.peer_netnsid == near.netnsid_of(into)
        )
    if device.kind != "veth" or device.peer_ifindex is None:
        raise DeviceError(ENODEV, f"{name} in {netns} is no veth but {device.kind or 'hardware'}")
    if not peer_ns_is_into:
        raise DeviceError(ENODEV, f"the other end of {name} in {netns} is not in {into}")
    with Netlink(into) as far:
        peer = far.link(device.peer_ifindex)
    if peer.peer_ifindex != device.ifindex:
        raise DeviceError(ENODEV, f"{name} in {netns} changed while its other end was looked up")
    return peer


def add_host_route(
    nl: Netlink, ip: AddressLike, *, dev: str | int, src: AddressLike | None = None
) -> None:
    """Send what is for the one address `ip` to `dev`; an older route to it is replaced."""
    nl.add_route(parse_address(ip), dev=dev, src=src, replace=True)


def add_permanent_neighbour(nl: Netlink, ip: AddressLike, mac: str, *, dev: str | int) -> None:
    """Spare the node ARP and ND towards a pod, so that nobody can answer in the pod's stead."""
    nl.add_neighbour(dev, ip, mac)


def remove_host_route(nl: Netlink, ip: AddressLike, *, dev: str | int) -> bool:
    """Undo `add_host_route` and `add_permanent_neighbour`; False if there was no route."""
    with contextlib.suppress(NotFoundError, DeviceError):  # the device may have taken it with it
        nl.delete_neighbour(dev, ip)
    try:
        nl.delete_route(parse_address(ip), dev=dev)
    except (NotFoundError, DeviceError):
        return False
    return True
