"""Routes as netlink takes them: where a prefix is, by a link or a gateway, or by several."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable
from typing import Any, Final

from attrs import field, frozen

from pyciliumlib.errors import InvalidError
from pyciliumlib.types import (
    Address,
    AddressLike,
    Network,
    NetworkLike,
    parse_address,
    parse_network,
)

_ONLINK: Final = 0x4
_SCOPE_UNIVERSE, _SCOPE_LINK = 0, 253
_NAMED: Final = {"default4": "0.0.0.0/0", "default6": "::/0"}
_WEIGHT_MAX: Final = 256
#: The number of a device by its name.
FindDevice = Callable[["str | int"], int]


@frozen
class NextHop:
    """One of the gateways of a route; `weight`, 1 to 256, is its share of the flows."""

    via: Address = field(converter=parse_address)
    dev: str | int | None = None
    weight: int = 1

    def __attrs_post_init__(self) -> None:
        if not 1 <= self.weight <= _WEIGHT_MAX:
            raise InvalidError(f"weight {self.weight} of next hop {self.via}: 1 to {_WEIGHT_MAX}")


def parse_destination(dst: NetworkLike) -> Network:
    """The prefix of a route: one, an address, or "default4" and "default6"."""
    return parse_network(_NAMED.get(dst, dst) if isinstance(dst, str) else dst)


def single(
    wanted: Network, dev: str | int | None, via: AddressLike | None, find: FindDevice
) -> dict[str, Any]:
    """The message of a route by a link, a gateway, or both; `via` is then taken to be on `dev`."""
    if dev is None and via is None:
        raise InvalidError(f"a route to {wanted} needs dev=, via= or both, or hops=")
    fields = _common(wanted)
    # the kernel wants link scope for what is reached with no gateway (IPv4 only)
    if wanted.version == 4:
        fields["scope"] = _SCOPE_LINK if via is None else _SCOPE_UNIVERSE
    if dev is not None:
        fields["oif"] = find(dev)
    if via is not None:
        fields["gateway"] = str(_gateway(parse_address(via), wanted))
        if dev is not None:
            fields["flags"] = _ONLINK
    return fields


def multipath(wanted: Network, hops: Iterable[NextHop], find: FindDevice) -> dict[str, Any]:
    """The message of a route by several gateways, which share its flows."""
    listed = [
        {
            "gateway": str(_gateway(hop.via, wanted)),
            "hops": hop.weight - 1,
            **({} if hop.dev is None else {"oif": find(hop.dev), "flags": _ONLINK}),
        }
        for hop in hops
    ]
    if not listed:
        raise InvalidError(f"a route to {wanted} needs one next hop at least")
    return {**_common(wanted), "multipath": listed}


def _common(wanted: Network) -> dict[str, Any]:
    family = socket.AF_INET if wanted.version == 4 else socket.AF_INET6
    return {"family": family, "dst": str(wanted)}


def _gateway(via: Address, wanted: Network) -> Address:
    if via.version != wanted.version:
        raise InvalidError(f"{via} cannot be the gateway to {wanted}: other family")
    return via
