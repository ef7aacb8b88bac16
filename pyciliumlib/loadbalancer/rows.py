"""One service as rows of the maps: its frontends' entries, source ranges, and filter bits."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterable
from typing import Final

from attrs import frozen

from pyciliumlib.loadbalancer import selection
from pyciliumlib.loadbalancer.config import LoadBalancerConfig
from pyciliumlib.loadbalancer.documents import LocalNode
from pyciliumlib.loadbalancer.filter import FRAGMENTS, OTHER_PORTS, port_bit
from pyciliumlib.loadbalancer.kinds import (
    Algorithm,
    Direction,
    DSRDispatch,
    ForwardingMode,
    FrontendType,
    SourceRangesPolicy,
)
from pyciliumlib.loadbalancer.service import Frontend, Service
from pyciliumlib.types import Network, address_to_bytes, network_to_key
from pyciliumlib.types.addresses import covers_ipv4

# enum lb_service_flags
FLAG_MAGLEV: Final = 1
FLAG_DENY_RANGES: Final = 2
FLAG_OTHER_PORTS: Final = 4
FLAG_CLUSTER_IP: Final = 8
FLAG_NODE_PORT: Final = 16
FLAG_OPTION: Final = 32
FLAG_GENEVE: Final = 64
FLAG_SNAT: Final = 128
FLAG_MAGLEV_INSIDE: Final = 256
_DISPATCH: Final = {DSRDispatch.OPT: FLAG_OPTION, DSRDispatch.GENEVE: FLAG_GENEVE}
# enum lb_scope
EXTERNAL: Final = 0
INTERNAL: Final = 1
#: Of a member that takes new connections, the bits of both.
BOTH_SCOPES: Final = 1 << EXTERNAL | 1 << INTERNAL
#: Whose entry it is that lies in a scope.
DIRECTIONS: Final = {EXTERNAL: Direction.NORTH_SOUTH, INTERNAL: Direction.EAST_WEST}
#: Frontends at addresses that are the node's.
_ON_NODE: Final = (FrontendType.NODE_PORT, FrontendType.HOST_PORT, FrontendType.EXTERNAL_IPS)
#: Bits of a source range's key before the address: the number of its set.
_SET_BITS: Final = 32
#: Of the node's loopback addresses, for which no program asks the filter.
_UNSPECIFIED: Final = frozenset(map(address_to_bytes, map(ipaddress.ip_address, ("0.0.0.0", "::"))))
_ALL_IPV4: Final = ipaddress.IPv4Network("0.0.0.0/0")

#: 16-byte address, port, protocol.
Place = tuple[bytes, int, int]
#: The same and a scope.
Spot = tuple[bytes, int, int, int]
#: Prefix length in bits, 16-byte address, whether it is inside.
RangeRow = tuple[int, bytes, int]


@frozen
class Entry:
    """The value of a frontend's entry (`struct lb_service`)."""

    id: int
    first: int = 0
    slots: int = 0
    ranges: int = 0
    affinity: int = 0
    revision: int = 0
    frontend: int = 0
    frontend_revision: int = 0
    flags: int = 0


def spots(service: Service, node: LocalNode) -> dict[Spot, Frontend]:
    """Where clients find the service on this node; the unspecified address is each of its own.

    A spot of the internal scope is there only where it differs, at the unspecified address, and
    where only clients inside are redirected.
    """
    found: dict[Spot, Frontend] = {}
    for frontend in service.frontends:
        place = frontend.port, int(frontend.protocol)
        if frontend.type is FrontendType.LOCAL_REDIRECT:  # nobody outside is redirected
            found[(address_to_bytes(frontend.address), *place, INTERNAL)] = frontend
            continue
        addresses = [frontend.address]
        if frontend.address.is_unspecified:
            addresses = [a for a in node.addresses if a.version == frontend.address.version]
            found.setdefault((address_to_bytes(frontend.address), *place, INTERNAL), frontend)
        for address in map(address_to_bytes, addresses):
            if found.setdefault((address, *place, EXTERNAL), frontend) is not frontend:
                continue  # an earlier frontend of the service has it
            if selection.has_two_scopes(service, frontend):
                found[(address, *place, INTERNAL)] = frontend
    return found


def is_open(service: Service, frontend: Frontend) -> bool:
    """Whether it is a service at all: an address that is redirected is one while that leads on."""
    if frontend.type is not FrontendType.LOCAL_REDIRECT:
        return True
    return bool(selection.redirected(service, frontend, Direction.EAST_WEST))


def other_ports(address: bytes) -> Spot:
    """The spot of all ports of an address that no frontend has."""
    return address, 0, 0, EXTERNAL


def flags_of(
    service: Service, frontend: Frontend, direction: Direction, config: LoadBalancerConfig
) -> int:
    """What a program must know of a frontend beside its slots."""
    how = selection.algorithm(service, frontend, direction, config)
    inside = selection.algorithm(service, frontend, Direction.EAST_WEST, config)
    deny = service.source_ranges_policy is SourceRangesPolicy.DENY
    return (
        (FLAG_MAGLEV if how is Algorithm.MAGLEV else 0)
        | (FLAG_MAGLEV_INSIDE if inside is Algorithm.MAGLEV else 0)
        | (FLAG_DENY_RANGES if deny else 0)
        | (FLAG_CLUSTER_IP if selection.hidden_cluster_ip(frontend, direction, config) else 0)
        | (FLAG_NODE_PORT if frontend.type in _ON_NODE else 0)
        | _forwarding_flag(service, config)
    )


def _forwarding_flag(service: Service, config: LoadBalancerConfig) -> int:
    if config.forwarding_of(service) is ForwardingMode.SNAT:
        return FLAG_SNAT
    return _DISPATCH.get(config.dispatch_of(service), 0)


def range_rows(networks: Iterable[Network]) -> list[RangeRow]:
    """A service's source ranges; IPv4 lies inside the 16-byte space of IPv6."""
    given = list(networks)
    rows: dict[tuple[int, bytes], int] = {}
    if any(covers_ipv4(network) for network in given) and _ALL_IPV4 not in given:
        rows[network_to_key(_ALL_IPV4)] = 0
    rows.update(dict.fromkeys(map(network_to_key, given), 1))
    return [(_SET_BITS + bits, address, inside) for (bits, address), inside in rows.items()]


def filter_needs(found: Collection[Spot], own: frozenset[bytes]) -> list[tuple[bytes, int]]:
    """The filter's bits for these spots; the node's `own` addresses have other ports as well."""
    needs = []
    for address, port, protocol, scope in found:
        if scope == INTERNAL:
            if (address, port, protocol, EXTERNAL) not in found and address not in _UNSPECIFIED:
                needs.append((address, port_bit(port, protocol)))
            continue  # else clients inside find the bits of those outside
        needs.append((address, port_bit(port, protocol)))
        needs.append((address, FRAGMENTS))
        if address not in own:
            needs.append((address, OTHER_PORTS))
    return needs
