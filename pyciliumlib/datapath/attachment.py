"""Where an endpoint hangs: a device of the node with the two programs on it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final, Literal, TypeAlias

from attrs import frozen

from pyciliumlib.datapath.endpoint import Endpoint, mac_bytes
from pyciliumlib.datapath.node import NodeLike, PodLike
from pyciliumlib.errors import InvalidError, StateError
from pyciliumlib.kernel import Object
from pyciliumlib.kernel.anchor import Head
from pyciliumlib.kernel.clsact import TcFilter
from pyciliumlib.kernel.link import Link
from pyciliumlib.kernel.probe import probe
from pyciliumlib.kernel.tc import attach_tc, find_tc
from pyciliumlib.net import (
    Netlink,
    NetNS,
    add_host_route,
    add_permanent_neighbour,
    remove_host_route,
    veth_peer,
)
from pyciliumlib.types import Address, AddressLike, parse_address

Hook: TypeAlias = Literal["ingress", "egress"]
Backend: TypeAlias = Literal["auto", "tcx", "clsact"]
#: Program and hook of the host-side device: what the pod sends comes in there.
HOOKS: Final[tuple[tuple[str, Hook], ...]] = (
    ("from_endpoint", "ingress"),
    ("to_endpoint", "egress"),
)
#: The same at a device that leads out of the node, for what the node sends and is sent.
HOST_HOOKS: Final[tuple[tuple[str, Hook], ...]] = (("to_host", "ingress"), ("from_host", "egress"))
_GUEST_DEVICE: Final = "eth0"


@frozen
class Place:
    """The two ends of an endpoint's veth, and its addresses."""

    device: str
    ifindex: int
    node_mac: str
    mac: str
    addresses: tuple[Address, ...]

    def __attrs_post_init__(self) -> None:
        if not self.addresses:
            raise InvalidError(f"device {self.device}: an endpoint needs at least one address")
        mac_bytes(self.mac)
        mac_bytes(self.node_mac)


def place_of_pod(pod: PodLike) -> Place:
    """The place of a pod that knows its device, such as a lab's."""
    return Place(pod.host_ifname, pod.ifindex, pod.host_mac, pod.mac, pod.addresses)


def place_of_namespace(node: NodeLike, netns: str, ifname: str = _GUEST_DEVICE) -> Place:
    """The place of a namespace that a veth joins to the node already; its addresses are asked.

    Raises NotFoundError, DeviceError (no such device there, or no veth to this node).
    """
    with NetNS.open(netns) as guest:
        host_side = veth_peer(guest, ifname, into=node.netns)
        with Netlink(guest) as netlink:
            link = netlink.link(ifname)
            addresses = tuple(
                a.ip for a in netlink.addresses(link.ifindex) if not a.ip.is_link_local
            )
    return Place(host_side.name, host_side.ifindex, host_side.mac, link.mac, addresses)


def place_of_device(
    node: NodeLike, device: str, mac: str, addresses: Iterable[AddressLike]
) -> Place:
    """The place of whatever is behind a host-side device, of which the caller knows the rest."""
    with Netlink(node.netns) as netlink:
        link = netlink.link(device)
    found = tuple(parse_address(address) for address in addresses)
    return Place(link.name, link.ifindex, link.mac, mac, found)


def place_of(endpoint: Endpoint) -> Place:
    """The place that an endpoint has."""
    return Place(
        endpoint.device, endpoint.ifindex, endpoint.node_mac, endpoint.mac, endpoint.addresses
    )


def is_there(node: NodeLike, place: Place) -> bool:
    """Whether the node still has the device, and not another one of the same number."""
    with Netlink(node.netns) as netlink:
        return any(
            (link.ifindex, link.mac) == (place.ifindex, place.node_mac) for link in netlink.links()
        )


def add_routes(node: NodeLike, place: Place) -> None:
    """The node's way to the endpoint's addresses, and permanent neighbours for them."""
    with Netlink(node.netns) as netlink:
        for address in place.addresses:
            add_host_route(netlink, address, dev=place.ifindex)
            add_permanent_neighbour(netlink, address, place.mac, dev=place.ifindex)


def remove_routes(node: NodeLike, place: Place) -> None:
    """Undo `add_routes`; what is gone already is no error."""
    with Netlink(node.netns) as netlink:
        for address in place.addresses:
            remove_host_route(netlink, address, dev=place.ifindex)


class Attachment:
    """The programs on one device; `close()` takes them off unless they are pinned.

    Links and filters are numbers of a namespace, so all is done inside the node's.
    """

    def __init__(
        self,
        netns: NetNS,
        ifindex: int,
        pins: Mapping[str, Path],
        backend: Backend,
        hooks: Sequence[tuple[str, Hook]] = HOOKS,
        *,
        first: bool = False,
    ) -> None:
        """`pins`, by program, is where they outlive this process; empty: they do not.

        `first`: where the kernel has tcx, before all programs that are there already.
        """
        self._netns = netns
        self._ifindex = ifindex
        self._pins = pins
        self._backend = backend
        self._hooks = hooks
        self._first = first
        self._links: dict[str, Link | TcFilter] = {}

    def attach(self, programs: Object) -> None:
        """Attach both programs, or none. Raises DeviceError, FeatureError, PrivilegeError."""

        def attach() -> None:
            for name, hook in self._hooks:
                self._attach_one(programs, name, hook)

        try:
            self._netns.call(attach)
        except BaseException:
            self.detach()
            raise

    def adopt(self, programs: Object) -> None:
        """Take over what an earlier process pinned, with this process's programs.

        What is missing is attached. Raises StateError if a pinned link is of another device.
        """

        def adopt() -> None:
            for name, hook in self._hooks:
                found = find_tc(self._ifindex, hook, pin=self._pins[name])
                if found is None:
                    self._attach_one(programs, name, hook)
                else:
                    self._links[name] = found
                    found.update(programs.programs[name])

        self._netns.call(adopt)

    def update(self, programs: Object) -> None:
        """Replace both programs where they are others; each packet meets the old or the new one."""

        def update() -> None:
            for name, link in self._links.items():
                program = programs.programs[name]
                if link.info.prog_id != program.id:
                    link.update(program)

        self._netns.call(update)

    @property
    def attached(self) -> bool:
        """Whether both programs are on the device now."""
        links = tuple(self._links.values())
        return len(links) == len(self._hooks) and self._netns.call(
            lambda: all(link.attached for link in links)
        )

    def detach(self) -> None:
        """Take the programs off and remove their pins; a device that is gone is no error."""

        def detach() -> None:
            for link in self._links.values():
                with contextlib.suppress(OSError):
                    link.detach()

        self._netns.call(detach)
        self._links.clear()
        for pin in self._pins.values():
            pin.unlink(missing_ok=True)

    def take_off(self) -> None:
        """Take off what an earlier process attached and pinned; what is gone is no error."""

        def find() -> None:
            for name, hook in self._hooks:
                with contextlib.suppress(StateError):  # the device is gone
                    found = find_tc(self._ifindex, hook, pin=self._pins[name])
                    if found is not None:
                        self._links[name] = found

        self._netns.call(find)
        self.detach()

    def close(self) -> None:
        """Let go of the links; pinned ones go on, others end."""
        if self._links and not self._pins:
            self.detach()
        for link in self._links.values():
            link.close()
        self._links.clear()

    def _attach_one(self, programs: Object, name: str, hook: Hook) -> None:
        orders = self._backend != "clsact" and probe("tcx").has("tcx")
        anchor = Head() if self._first and orders else None
        program = programs.programs[name]
        link = attach_tc(program, self._ifindex, hook, backend=self._backend, anchor=anchor)
        self._links[name] = link
        if name in self._pins:
            link.keep(self._pins[name])
