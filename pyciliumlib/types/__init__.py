"""The words that every room shares: addresses, prefixes, ports, and the map protocol."""

from __future__ import annotations

from pyciliumlib.types.addresses import (
    Address,
    AddressLike,
    Network,
    NetworkLike,
    address_from_bytes,
    address_to_bytes,
    covers_ipv4,
    network_from_key,
    network_to_key,
    parse_address,
    parse_network,
)
from pyciliumlib.types.direction import Direction
from pyciliumlib.types.drift import Drift
from pyciliumlib.types.maps import Column, MapLike, UpdateMode
from pyciliumlib.types.ports import PortProto, Protocol

__all__ = [
    "Address",
    "AddressLike",
    "Column",
    "Direction",
    "Drift",
    "MapLike",
    "Network",
    "NetworkLike",
    "PortProto",
    "Protocol",
    "UpdateMode",
    "address_from_bytes",
    "address_to_bytes",
    "covers_ipv4",
    "network_from_key",
    "network_to_key",
    "parse_address",
    "parse_network",
]
