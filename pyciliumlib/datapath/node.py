"""What a datapath needs of the node that it works on, and of the pods there."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, runtime_checkable

from pyciliumlib.net import Netlink, NetNS
from pyciliumlib.types import Address


@runtime_checkable
class NodeLike(Protocol):
    """A network namespace that forwards between its pods; `Lab.node()` is one."""

    @property
    def netns(self) -> NetNS: ...

    @property
    def addresses(self) -> tuple[Address, ...]:
        """The node's own addresses: they are the identity `host`."""


@runtime_checkable
class PodLike(Protocol):
    """A pod behind a veth of the node; `Node.pod()` of a lab is one.

    `ifindex`, `host_ifname` and `host_mac` are of the device on the node, `mac` of the pod's own.
    """

    ifindex: int
    host_ifname: str
    host_mac: str
    mac: str

    @property
    def addresses(self) -> tuple[Address, ...]: ...


@runtime_checkable
class PodMaker(Protocol):
    """A node that can make pods of its own."""

    def pod(self, name: str) -> PodLike: ...


class ThisNode:
    """The network namespace of the calling thread, as a node."""

    def __init__(self) -> None:
        self.netns = NetNS.current()

    @property
    def addresses(self) -> tuple[Address, ...]:
        """The addresses of all devices at this moment, without link-local ones."""
        with Netlink(self.netns) as netlink:
            return tuple(_own_addresses(netlink))

    def close(self) -> None:
        """Let go of the namespace."""
        self.netns.close()


def _own_addresses(netlink: Netlink) -> Iterable[Address]:
    for link in netlink.links():
        for address in netlink.addresses(link.ifindex):
            if not address.ip.is_link_local and not address.ip.is_loopback:
                yield address.ip
