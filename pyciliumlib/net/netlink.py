"""Devices, addresses, routes and neighbours of one namespace, over rtnetlink."""

from __future__ import annotations

import ipaddress
import socket
import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pyciliumlib.closeable import Closeable
from pyciliumlib.errors import ClosedError, DeviceError, InvalidError
from pyciliumlib.net import route
from pyciliumlib.net._errors import kernel_error
from pyciliumlib.net.link import Link, check_ifname, check_mac
from pyciliumlib.net.neighbour import (
    NTF_EXT_LEARNED,
    NTF_EXT_MANAGED,
    NUD_PERMANENT,
    NUD_STALE,
    Neighbour,
)
from pyciliumlib.net.netns import NetNS
from pyciliumlib.net.route import NextHop
from pyciliumlib.net.worker import NetNSWorker
from pyciliumlib.types import AddressLike, NetworkLike, parse_address

if TYPE_CHECKING:
    from pyroute2 import IPRoute

T = TypeVar("T")
Interface = ipaddress.IPv4Interface | ipaddress.IPv6Interface

ENODEV = 19
IFA_F_NODAD = 0x2
RTF_LOCAL = 0x80000000
_FAMILIES = (socket.AF_INET, socket.AF_INET6)


class Netlink(Closeable):
    """An rtnetlink client that lives in one namespace.

    It owns a thread there, because a netlink socket belongs to the namespace of the thread that
    made it, and because the client runs an event loop, which must not meet the caller's (a
    notebook's, say). Methods may be called from any thread; they run one after another.

    >>> with NetNS.current() as here, Netlink(here) as nl:
    ...     nl.link("lo").ifindex
    1
    """

    def __init__(self, netns: NetNS) -> None:
        """Open a client in `netns`."""
        self._where = str(netns.name or netns.path or "the current namespace")
        self._worker: NetNSWorker | None = NetNSWorker(netns)
        try:
            self._route: IPRoute = self._worker.call(_open_client)
        except BaseException:
            self._worker.close()
            self._worker = None
            raise

    # -- devices -----------------------------------------------------------------------------

    def links(self) -> tuple[Link, ...]:
        """All devices, in the order of their numbers."""
        messages = self._do("listing devices", lambda ipr: list(ipr.link("dump")))
        return tuple(sorted(map(Link.from_netlink, messages), key=lambda link: link.ifindex))

    def link(self, device: str | int) -> Link:
        """The device of that name or number; `DeviceError` if there is none."""
        key = {"index": device} if isinstance(device, int) else {"ifname": check_ifname(device)}
        (message,) = self._do(
            f"looking for device {device!r}", lambda ipr: list(ipr.link("get", **key))
        )
        return Link.from_netlink(message)

    def add_veth(
        self,
        name: str,
        peer: str,
        *,
        peer_netns: NetNS | None = None,
        mac: str | None = None,
        peer_mac: str | None = None,
        mtu: int | None = None,
    ) -> Link:
        """Make a veth pair whose other end `peer` is in `peer_netns`, and return this end.

        The peer is made where it belongs, never moved, so that its name cannot clash here.
        """
        far = _device_fields(peer, peer_mac, mtu)
        if peer_netns is not None:
            far["net_ns_fd"] = peer_netns.fd
        near = _device_fields(name, mac, mtu)
        self._do(
            f"making the veth pair {name}-{peer}",
            lambda ipr: ipr.link("add", kind="veth", peer=far, **near),
        )
        return self.link(name)

    def add_bridge(self, name: str, *, mac: str | None = None, mtu: int | None = None) -> Link:
        """Make a bridge that learns, with no spanning tree and no multicast snooping."""
        wanted = _device_fields(name, mac, mtu)
        self._do(
            f"making the bridge {name}",
            lambda ipr: ipr.link(
                "add", kind="bridge", br_stp_state=0, br_mcast_snooping=0, **wanted
            ),
        )
        return self.link(name)

    def set_link(
        self,
        device: str | int,
        *,
        up: bool | None = None,
        mac: str | None = None,
        mtu: int | None = None,
        master: str | int | None = None,
    ) -> None:
        """Change what is given of a device: state, MAC, MTU in bytes, the bridge it belongs to."""
        changes = _device_fields(None, mac, mtu)
        if up is not None:
            changes["state"] = "up" if up else "down"
        if master is not None:
            changes["master"] = self.ifindex(master)
        index = self.ifindex(device)
        self._do(f"changing device {device!r}", lambda ipr: ipr.link("set", index=index, **changes))

    def wait_operational(self, device: str | int, *, timeout: float = 5.0) -> Link:
        """Wait until a device can send; `DeviceError` after `timeout` seconds.

        When the other end of a veth comes up, this end gets its queue from a kernel worker a moment
        later, and until then drops what it should send.
        """
        deadline = time.monotonic() + timeout
        # from Linux 6.8 on (rtnl_getlink syncs linkwatch) asking once is enough
        while not (link := self.link(device)).operational:
            if time.monotonic() > deadline:
                raise DeviceError(
                    ENODEV,
                    f"{link.name} in {self._where} has no carrier after {timeout:g} s: "
                    "is its other end up?",
                )
            time.sleep(0.001)
        return link

    def delete_link(self, device: str | int) -> None:
        """Remove a device; a veth takes its other end with it."""
        index = self.ifindex(device)
        self._do(f"removing device {device!r}", lambda ipr: ipr.link("del", index=index))

    def ifindex(self, device: str | int) -> int:
        """The number of a device; a number is returned as it is."""
        return device if isinstance(device, int) else self.link(device).ifindex

    def netnsid_of(self, other: NetNS) -> int | None:
        """The number by which this namespace knows `other`, or None if it knows no such one."""
        reply = self._do("asking for a namespace id", lambda ipr: ipr.get_netnsid(fd=other.fd))
        nsid = None if reply is None else reply["nsid"]
        return None if nsid is None or nsid < 0 else int(nsid)

    # -- addresses ---------------------------------------------------------------------------

    def add_address(self, device: str | int, address: str | Interface) -> None:
        """Give a device an address with its prefix length, such as "10.0.0.1/24".

        For IPv6 duplicates are not looked for (nodad): on a link that the library builds nobody
        else can have it. It is usable a moment later all the same: see `wait_usable`.
        """
        wanted = _parse_interface(address)
        index = self.ifindex(device)
        extra = {"flags": IFA_F_NODAD} if wanted.version == 6 else {}
        self._do(
            f"adding {wanted} to device {device!r}",
            lambda ipr: ipr.addr(
                "add",
                index=index,
                family=_family(wanted),
                address=str(wanted.ip),
                prefixlen=wanted.network.prefixlen,
                **extra,
            ),
        )

    def wait_usable(self, device: str | int, ip: AddressLike, *, timeout: float = 5.0) -> None:
        """Wait until an IPv6 address of an operational device takes packets and answers ND.

        `DeviceError` after `timeout` seconds. The kernel joins the multicast group that neighbour
        discovery needs, and adds the local route, in a worker (addrconf_dad_work), even with nodad.
        """
        wanted, name = parse_address(ip), self.link(device).name
        if wanted.version == 4:
            return
        deadline = time.monotonic() + timeout
        while not self._call(lambda: _has_local_route(wanted.packed.hex(), name)):
            if time.monotonic() > deadline:
                raise DeviceError(
                    ENODEV,
                    f"{wanted} on {name} in {self._where} is not usable after {timeout:g} s: "
                    "is the address on it?",
                )
            time.sleep(0.001)

    def delete_address(self, device: str | int, address: str | Interface) -> None:
        """Take an address from a device; `NotFoundError` if it has no such one."""
        wanted = _parse_interface(address)
        index = self.ifindex(device)
        self._do(
            f"removing {wanted} from device {device!r}",
            lambda ipr: ipr.addr(
                "del",
                index=index,
                family=_family(wanted),
                address=str(wanted.ip),
                prefixlen=wanted.network.prefixlen,
            ),
        )

    def addresses(self, device: str | int) -> tuple[Interface, ...]:
        """The addresses of a device, IPv4 first, in the kernel's order."""
        index = self.ifindex(device)
        messages = self._do(
            f"listing addresses of {device!r}", lambda ipr: list(ipr.addr("dump", index=index))
        )
        found = []
        for message in messages:
            # of a point-to-point IPv4 address, IFA_ADDRESS is the far end's
            ip = message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")
            found.append(ipaddress.ip_interface(f"{ip}/{message['prefixlen']}"))
        return tuple(sorted(found, key=lambda interface: interface.version))

    # -- routes ------------------------------------------------------------------------------

    def add_route(
        self,
        dst: NetworkLike,
        *,
        dev: str | int | None = None,
        via: AddressLike | None = None,
        hops: Iterable[NextHop] = (),
        src: AddressLike | None = None,
        replace: bool = False,
    ) -> None:
        """Add a route to `dst`, a prefix, an address or "default4"/"default6".

        With `dev` the gateway `via` is taken to be on that link, whatever the other routes say.
        `hops`, in the place of both, are several gateways that share the flows (ECMP); by what the
        kernel tells flows apart, `net.ipv4.fib_multipath_hash_policy` says.
        `src` is the address that this machine's own packets start from.
        """
        wanted, several = route.parse_destination(dst), list(hops)
        if several and (dev is not None or via is not None):
            raise InvalidError(f"the route to {wanted}: give hops=, or dev= and via=")
        if several:
            fields = route.multipath(wanted, several, self.ifindex)
        else:
            fields = route.single(wanted, dev, via, self.ifindex)
        if src is not None:
            fields["prefsrc"] = str(parse_address(src))
        verb = "replace" if replace else "add"
        self._do(f"adding the route to {wanted}", lambda ipr: ipr.route(verb, **fields))

    def delete_route(
        self, dst: NetworkLike, *, dev: str | int | None = None, via: AddressLike | None = None
    ) -> None:
        """Remove a route; `NotFoundError` if there is none such."""
        wanted = route.parse_destination(dst)
        fields = route.single(wanted, dev, via, self.ifindex)
        self._do(f"removing the route to {wanted}", lambda ipr: ipr.route("del", **fields))

    # -- neighbours --------------------------------------------------------------------------

    def neighbours(self) -> tuple[Neighbour, ...]:
        """What the kernel knows of hosts on all links, of both families."""
        messages = self._do(
            "listing neighbours",
            lambda ipr: [m for f in _FAMILIES for m in ipr.neigh("dump", family=f)],
        )
        return tuple(map(Neighbour.from_netlink, messages))

    def add_neighbour(self, device: str | int, ip: AddressLike, mac: str) -> None:
        """Say for good that `ip` is at `mac` on that device; an older entry is replaced."""
        fields = {"lladdr": check_mac(mac), "state": NUD_PERMANENT}
        self._neighbour("replace", "adding", device, ip, fields)

    def manage_neighbour(self, device: str | int, ip: AddressLike, protocol: int) -> None:
        """Let the kernel itself keep a neighbour known, as long as nobody says otherwise.

        It asks again by itself, and never forgets it. `protocol`, 1 to 255, says whose wish it is.
        Least kernel: 5.16; an older one only never forgets it.
        """
        fields = {
            "state": NUD_STALE,
            "flags": NTF_EXT_LEARNED,
            "NDA_FLAGS_EXT": NTF_EXT_MANAGED,
            "NDA_PROTOCOL": protocol,
        }
        self._neighbour("replace", "managing", device, ip, fields)

    def release_neighbour(self, device: str | int, ip: AddressLike) -> None:
        """Undo `manage_neighbour`: it is known, and in time forgotten, as any other."""
        fields = {"state": NUD_STALE, "flags": 0, "NDA_FLAGS_EXT": 0}
        try:
            self._neighbour("replace", "releasing", device, ip, fields)
        except InvalidError:  # its MAC is not known
            self.delete_neighbour(device, ip)

    def delete_neighbour(self, device: str | int, ip: AddressLike) -> None:
        """Forget a neighbour; `NotFoundError` if it is unknown."""
        self._neighbour("del", "removing", device, ip, {})

    def _neighbour(
        self, verb: str, doing: str, device: str | int, ip: AddressLike, fields: dict[str, Any]
    ) -> None:
        wanted = parse_address(ip)
        index = self.ifindex(device)
        self._do(
            f"{doing} neighbour {wanted} on {device!r}",
            lambda ipr: ipr.neigh(
                verb, family=_family(wanted), dst=str(wanted), ifindex=index, **fields
            ),
        )

    # -- life --------------------------------------------------------------------------------

    def close(self) -> None:
        """Close the socket and end the thread; again is no error."""
        worker, self._worker = self._worker, None
        if worker is not None:
            try:
                worker.call(self._route.close)
            finally:
                worker.close()

    def __del__(self) -> None:
        if getattr(self, "_worker", None) is not None:
            warnings.warn(f"{self!r} was never closed", ResourceWarning, stacklevel=2, source=self)

    def __repr__(self) -> str:
        return f"<Netlink in {self._where}>"

    def _do(self, doing: str, operation: Callable[[IPRoute], T]) -> T:
        from pyroute2.netlink.exceptions import NetlinkError  # late: pyroute2 costs 120 ms

        try:
            return self._call(lambda: operation(self._route))
        except NetlinkError as error:
            raise kernel_error(error.code, f"{doing} in {self._where}") from error

    def _call(self, fn: Callable[[], T]) -> T:
        if self._worker is None:
            raise ClosedError(f"{self!r} is closed")
        return self._worker.call(fn)


def _open_client() -> IPRoute:
    from pyroute2 import IPRoute  # late: see Netlink._do

    return IPRoute()


def _has_local_route(address: str, device: str) -> bool:
    # fields: destination, length, source, length, gateway, metric, references, uses, flags, device
    for line in Path("/proc/thread-self/net/ipv6_route").read_text().splitlines():
        fields = line.split()
        if fields[0] == address and fields[9] == device and int(fields[8], 16) & RTF_LOCAL:
            return True
    return False


def _device_fields(name: str | None, mac: str | None, mtu: int | None) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    if name is not None:
        fields["ifname"] = check_ifname(name)
    if mac is not None:
        fields["address"] = check_mac(mac)
    if mtu is not None:
        fields["mtu"] = mtu
    return fields


def _parse_interface(value: str | Interface) -> Interface:
    try:
        return ipaddress.ip_interface(value)
    except ValueError as error:
        raise InvalidError(f"{value!r} is no address with prefix; write 10.0.0.1/24") from error


def _family(value: Any) -> int:
    return socket.AF_INET if value.version == 4 else socket.AF_INET6
