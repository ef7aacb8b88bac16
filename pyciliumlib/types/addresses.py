"""Addresses and prefixes, and their 16-byte form: IPv4 is held v4-mapped (RFC 4291, 2.5.5.2).

An IPv6 address that is itself v4-mapped would be the same 16 bytes as an IPv4 address, so it is
refused wherever a value enters.
"""

from __future__ import annotations

import ipaddress
from typing import Final

from pyciliumlib.errors import UnitError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
AddressLike = str | bytes | Address
NetworkLike = str | Address | Network

ADDRESS_BITS: Final = 128
#: Bits of the v4-mapped prefix: IPv4 /n is /(96 + n) of the 16-byte form.
V4_MAPPED_BITS: Final = 96
_V4_MAPPED: Final = bytes(10) + b"\xff\xff"
_V4_MAPPED_NETWORK: Final = ipaddress.IPv6Network("::ffff:0:0/96")


def parse_address(value: AddressLike) -> Address:
    """An address from its text, its 4 or 16 bytes in network order, or itself.

    Raises UnitError for anything else and for an IPv6 address that is v4-mapped in text.
    """
    if isinstance(value, bytes) and len(value) == 16:
        return address_from_bytes(value)
    if isinstance(value, (ipaddress.IPv4Address, ipaddress.IPv6Address)):
        return _refuse_mapped(value)
    if isinstance(value, (str, bytes)):
        try:
            address = ipaddress.ip_address(value)
        except ValueError as error:
            raise UnitError(f"{value!r} is no address; write 10.0.0.1 or fd00::1") from error
        return _refuse_mapped(address)
    raise UnitError(f"{value!r} is no address; pass a text, bytes or an ipaddress object")


def _refuse_mapped(address: Address) -> Address:
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            raise UnitError(f"{address} is an IPv4 address in IPv6; write {address.ipv4_mapped}")
        if address.scope_id is not None:
            raise UnitError(f"{address} carries a zone; write it without %{address.scope_id}")
    return address


def parse_network(value: NetworkLike) -> Network:
    """A prefix from its text, an address (then /32 or /128), or itself; host bits are masked.

    >>> parse_network("10.1.2.3/8")
    IPv4Network('10.0.0.0/8')
    """
    if isinstance(value, (ipaddress.IPv4Network, ipaddress.IPv6Network)):
        network = value
    elif isinstance(value, (str, ipaddress.IPv4Address, ipaddress.IPv6Address)):
        try:
            network = ipaddress.ip_network(value, strict=False)
        except ValueError as error:
            raise UnitError(f"{value!r} is no prefix; write 10.0.0.0/8 or fd00::/64") from error
    else:
        raise UnitError(f"{value!r} is no prefix; pass a text or an ipaddress object")
    if isinstance(network, ipaddress.IPv6Network) and network.subnet_of(_V4_MAPPED_NETWORK):
        raise UnitError(f"{network} is an IPv4 prefix in IPv6; write it as IPv4")
    return network


def address_to_bytes(address: Address) -> bytes:
    """The 16-byte form.

    >>> address_to_bytes(ipaddress.ip_address("10.0.0.1")).hex()
    '00000000000000000000ffff0a000001'
    """
    return _V4_MAPPED + address.packed if address.version == 4 else address.packed


def address_from_bytes(data: bytes) -> Address:
    """The address whose 16-byte form `data` is."""
    if len(data) != 16:
        raise UnitError(f"an address has 16 bytes here, found {len(data)}")
    if data[:12] == _V4_MAPPED:
        return ipaddress.IPv4Address(data[12:])
    return ipaddress.IPv6Address(data)


def network_to_key(network: Network) -> tuple[int, bytes]:
    """The length in bits of the 16-byte form, and that form: the key of a longest-prefix map.

    >>> network_to_key(parse_network("10.0.0.0/8"))[0]
    104
    """
    length = network.prefixlen + (V4_MAPPED_BITS if network.version == 4 else 0)
    return length, address_to_bytes(network.network_address)


def network_from_key(length: int, data: bytes) -> Network:
    """The prefix whose key (see `network_to_key`) this is."""
    address = address_from_bytes(data)
    if not 0 <= length <= ADDRESS_BITS:
        raise UnitError(f"a prefix of {length} bits; an address has {ADDRESS_BITS}")
    if isinstance(address, ipaddress.IPv4Address) and length >= V4_MAPPED_BITS:
        return ipaddress.IPv4Network((address, length - V4_MAPPED_BITS), strict=False)
    return ipaddress.IPv6Network((data, length), strict=False)


def covers_ipv4(network: Network) -> bool:
    """Whether an IPv6 prefix is so short that its 16-byte form holds all of IPv4."""
    return isinstance(network, ipaddress.IPv6Network) and _V4_MAPPED_NETWORK.subnet_of(network)
