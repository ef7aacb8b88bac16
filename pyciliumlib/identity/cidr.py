"""The labels of a prefix outside the cluster: one `cidr` label and the world.

Only the prefix itself is a label; that a wider one covers it is the selector's business
(`Label.has_key`). A `/0` has no `cidr` label: it is the world.
"""

from __future__ import annotations

from collections.abc import Iterable

from pyciliumlib.errors import LabelError
from pyciliumlib.identity.labels import SOURCE_CIDR, Label, Labels, covers
from pyciliumlib.identity.numeric import ReservedIdentity
from pyciliumlib.identity.selector import Operator, Requirement, Selector
from pyciliumlib.types import NetworkLike, parse_network


def cidr_label(prefix: NetworkLike) -> Label:
    """The `cidr` label of a prefix; in IPv6 each `:` becomes `-`, and `0` fills an empty end.

    >>> str(cidr_label("::1/128")), str(cidr_label("10.1.2.3/8"))
    ('cidr:0--1/128', 'cidr:10.0.0.0/8')
    """
    network = parse_network(prefix)
    address = str(network.network_address).replace(":", "-")
    if address.startswith("-"):
        address = "0" + address
    if address.endswith("-"):
        address += "0"
    return Label(SOURCE_CIDR, f"{address}/{network.prefixlen}")


def world_identity(family: int, ipv4: bool = True, ipv6: bool = True) -> ReservedIdentity:
    """What the world of a family (4 or 6) is on a node with these families enabled.

    It is plain `world` on a node of one family alone.

    >>> world_identity(4).name, world_identity(4, ipv6=False).name
    ('WORLD_IPV4', 'WORLD')
    """
    if family == 4:
        return ReservedIdentity.WORLD if ipv4 and not ipv6 else ReservedIdentity.WORLD_IPV4
    return ReservedIdentity.WORLD if ipv6 and not ipv4 else ReservedIdentity.WORLD_IPV6


def cidr_labels(prefix: NetworkLike, ipv4: bool = True, ipv6: bool = True) -> Labels:
    """The labels of a prefix on a node with these families enabled.

    >>> str(cidr_labels("10.0.0.0/8", ipv6=False))
    'cidr:10.0.0.0/8,reserved:world'
    """
    network = parse_network(prefix)
    world = world_identity(network.version, ipv4, ipv6).label
    return Labels((cidr_label(network), world) if network.prefixlen else (world,))


def cidr_selector(prefix: NetworkLike, exceptions: Iterable[NetworkLike] = ()) -> Selector:
    """Selects the prefixes inside `prefix`, less those inside one of `exceptions`.

    Raises LabelError where an exception lies outside the prefix.
    """
    network = parse_network(prefix)
    requirements = [_requirement(cidr_label(network), Operator.EXISTS)]
    for exception in exceptions:
        hole = parse_network(exception)
        if not covers(network, hole):
            raise LabelError(f"except {hole} is not inside {network}")
        requirements.append(_requirement(cidr_label(hole), Operator.DOES_NOT_EXIST))
    return Selector(requirements)


def _requirement(label: Label, operator: Operator) -> Requirement:
    return Requirement(label.source, label.key, operator)
