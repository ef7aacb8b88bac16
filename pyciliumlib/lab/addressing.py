"""Who gets which address in a lab; pure arithmetic."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import Final

import attrs

from pyciliumlib.errors import ExhaustedError, ExistsError, InvalidError
from pyciliumlib.types import AddressLike, NetworkLike, parse_address, parse_network

#: RFC 5737 and RFC 3849 set these aside for documentation: they are nobody's.
LAN4: Final = ipaddress.IPv4Network("192.0.2.0/24")
LAN6: Final = ipaddress.IPv6Network("2001:db8::/64")
PODS4: Final = ipaddress.IPv4Network("10.244.0.0/16")
PODS6: Final = ipaddress.IPv6Network("fd00:10:244::/48")
#: Nodes take the host numbers below this one of the LAN, hosts outside those from it on.
FIRST_OUTSIDE: Final = 100
FIRST_POD: Final = 2


def node_cidrs(index: int) -> tuple[ipaddress.IPv4Network, ipaddress.IPv6Network]:
    """The /24 and /64 of pods of the node with that number, from 1.

    >>> node_cidrs(1)
    (IPv4Network('10.244.1.0/24'), IPv6Network('fd00:10:244:1::/64'))
    """
    if not 0 < index < FIRST_OUTSIDE:
        raise ExhaustedError(f"a lab has room for {FIRST_OUTSIDE - 1} nodes")
    v4 = int(PODS4.network_address) + (index << 8)
    v6 = int(PODS6.network_address) + (index << 64)
    return ipaddress.IPv4Network((v4, 24)), ipaddress.IPv6Network((v6, 64))


def pod_cidrs(
    index: int, cidr4: NetworkLike | None, cidr6: NetworkLike | None
) -> tuple[ipaddress.IPv4Network, ipaddress.IPv6Network]:
    """The prefixes of the pods of node `index`: those asked for, or else `node_cidrs`.

    Raises UnitError for what is no prefix, InvalidError for one of the other family.
    """
    default4, default6 = node_cidrs(index)
    v4 = default4 if cidr4 is None else parse_network(cidr4)
    v6 = default6 if cidr6 is None else parse_network(cidr6)
    if not isinstance(v4, ipaddress.IPv4Network) or not isinstance(v6, ipaddress.IPv6Network):
        raise InvalidError(f"cidr4={v4} and cidr6={v6}: one is of the other's family")
    return v4, v6


def address_pair(
    v4: AddressLike, v6: AddressLike
) -> tuple[ipaddress.IPv4Address, ipaddress.IPv6Address]:
    """One address of each family; InvalidError if they are not, UnitError if one is none."""
    ip4, ip6 = parse_address(v4), parse_address(v6)
    if not isinstance(ip4, ipaddress.IPv4Address) or not isinstance(ip6, ipaddress.IPv6Address):
        raise InvalidError(f"ip4={ip4} and ip6={ip6}: one is of the other's family")
    return ip4, ip6


def lan_addresses(index: int) -> tuple[ipaddress.IPv4Address, ipaddress.IPv6Address]:
    """The addresses on the LAN between nodes of the host with that number.

    >>> lan_addresses(100)
    (IPv4Address('192.0.2.100'), IPv6Address('2001:db8::64'))
    """
    if not 0 < index < LAN4.num_addresses - 1:
        raise ExhaustedError(f"the LAN of a lab has no host number {index}")
    return LAN4[index], LAN6[index]


def link_local(address: ipaddress.IPv4Address) -> ipaddress.IPv6Address:
    """A link-local address that shows the IPv4 address it goes with.

    >>> link_local(ipaddress.IPv4Address("192.0.2.1"))
    IPv6Address('fe80::c000:201')
    """
    return ipaddress.IPv6Address((0xFE80 << 112) | int(address))


@attrs.define
class PodAddresses:
    """The addresses of one node's pods: which are free, which are taken."""

    cidr4: ipaddress.IPv4Network
    cidr6: ipaddress.IPv6Network
    _taken: set[ipaddress.IPv4Address | ipaddress.IPv6Address] = attrs.field(factory=set)

    @property
    def router4(self) -> ipaddress.IPv4Address:
        """The gateway of the pods: the first address."""
        return self.cidr4[1]

    @property
    def router6(self) -> ipaddress.IPv6Address:
        """The gateway of the pods: the first address."""
        return self.cidr6[1]

    def take(
        self, ip4: AddressLike | None, ip6: AddressLike | None
    ) -> tuple[ipaddress.IPv4Address, ipaddress.IPv6Address]:
        """Take a pair, each the one asked for or else the lowest free one.

        `ExistsError` if one is taken, `InvalidError` if it is not of this node,
        `ExhaustedError` if none is free. Nothing is taken then.
        """
        v4, v6 = address_pair(
            self._free4() if ip4 is None else ip4, self._free6() if ip6 is None else ip6
        )
        for address, cidr, router in (
            (v4, self.cidr4, self.router4),
            (v6, self.cidr6, self.router6),
        ):
            if address not in cidr:
                raise InvalidError(f"{address} is outside this node's pods' {cidr}")
            if address in self._taken or address == router:
                raise ExistsError(f"{address} belongs to another pod or is the router's")
        self._taken |= {v4, v6}
        return v4, v6

    def release(self, addresses: Iterable[ipaddress.IPv4Address | ipaddress.IPv6Address]) -> None:
        """Give addresses back."""
        self._taken.difference_update(addresses)

    def _free4(self) -> ipaddress.IPv4Address:
        for number in range(FIRST_POD, self.cidr4.num_addresses - 1):
            if self.cidr4[number] not in self._taken:
                return self.cidr4[number]
        raise ExhaustedError(f"all addresses of {self.cidr4} are taken: give the node a wider CIDR")

    def _free6(self) -> ipaddress.IPv6Address:
        # at most as many are taken as there are pods, so the search ends in any prefix that fits
        for number in range(FIRST_POD, min(self.cidr6.num_addresses, 1 << 20)):
            if self.cidr6[number] not in self._taken:
                return self.cidr6[number]
        raise ExhaustedError(f"all addresses of {self.cidr6} are taken: give the node a wider CIDR")


def mac_for(prefix: int, address: ipaddress.IPv4Address) -> str:
    """A locally administered MAC that shows the address it goes with.

    >>> mac_for(0x0A58, ipaddress.IPv4Address("10.244.1.2"))
    '0a:58:0a:f4:01:02'
    """
    return (prefix.to_bytes(2, "big") + address.packed).hex(":")
