"""A network device as a value."""

from __future__ import annotations

import re
from typing import Any

import attrs

from pyciliumlib.errors import InvalidError

IFF_UP = 0x1
_ARPHRD_ETHER = 1
#: IFNAMSIZ less the final zero.
IFNAME_MAX = 15


@attrs.frozen
class Link:
    """One network device, as the kernel showed it at one moment."""

    ifindex: int
    name: str
    kind: str
    """ "veth", "bridge", ...; empty for hardware and the loopback."""
    mac: str
    mtu: int
    up: bool
    """Whether it was set up; see `operational`."""
    operational: bool
    """Whether it can send: set up, carrier there, and the kernel has noticed (RFC 2863 "up")."""
    master: int | None = None
    """The ifindex of the bridge it belongs to."""
    peer_ifindex: int | None = None
    """Of a veth: its other end, numbered in the namespace where that end is."""
    peer_netnsid: int | None = None
    """The number by which this namespace knows the other end's one; None if it is the same."""
    is_ethernet: bool = True
    """Whether its frames begin with an Ethernet header (ARPHRD_ETHER)."""

    @classmethod
    def from_netlink(cls, message: Any) -> Link:
        """From an RTM_NEWLINK message of pyroute2."""
        info = message.get_attr("IFLA_LINKINFO")
        return cls(
            ifindex=message["index"],
            name=message.get_attr("IFLA_IFNAME"),
            kind=(info.get_attr("IFLA_INFO_KIND") if info else None) or "",
            mac=message.get_attr("IFLA_ADDRESS") or "",
            mtu=message.get_attr("IFLA_MTU"),
            up=bool(message["flags"] & IFF_UP),
            operational=message.get_attr("IFLA_OPERSTATE") == "UP",
            master=message.get_attr("IFLA_MASTER"),
            peer_ifindex=message.get_attr("IFLA_LINK"),
            peer_netnsid=message.get_attr("IFLA_LINK_NETNSID"),
            is_ethernet=message["ifi_type"] == _ARPHRD_ETHER,
        )


_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}", re.IGNORECASE)


def check_mac(mac: str) -> str:
    """`mac` if it is the address of one device, in the form 0a:58:0a:f4:01:02."""
    if not _MAC.fullmatch(mac) or int(mac[:2], 16) & 1:
        raise InvalidError(
            f"{mac!r} is no MAC address of a device: six bytes in hex with colons, not multicast"
        )
    return mac


def check_ifname(name: str) -> str:
    """`name` if the kernel takes it as the name of a device, else `InvalidError`.

    >>> check_ifname("lxc-web")
    'lxc-web'
    """
    encoded = name.encode()
    if not 0 < len(encoded) <= IFNAME_MAX or name in (".", "..") or set(name) & set("/: \t\n\0%"):
        raise InvalidError(
            f"{name!r} is no name for a device: "
            f"1 to {IFNAME_MAX} bytes without slash, colon, percent or blank"
        )
    return name
