"""A backend of a service, and the text by which every node knows it alike."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from functools import cached_property
from typing import Any, Final

from attrs import field, frozen

from pyciliumlib.errors import UnitError
from pyciliumlib.types import Address, AddressLike, Protocol
from pyciliumlib.types.ports import PORT_MAX

WEIGHT_DEFAULT: Final = 100
WEIGHT_MAX: Final = 65535
CLUSTER_ID_MAX: Final = 255
_TRANSPORT: Final = (Protocol.TCP, Protocol.UDP, Protocol.SCTP)


def _address(value: AddressLike) -> Address:
    try:
        return ipaddress.ip_address(value)
    except ValueError as error:
        raise UnitError(f"{value!r} is no address; write 10.0.0.1 or fd00::1") from error


def _protocol(value: str | int) -> Protocol:
    protocol = Protocol.parse(value)
    if protocol not in _TRANSPORT:
        raise UnitError(f"{protocol} has no services; write TCP, UDP or SCTP")
    return protocol


def _number(first: int, last: int, what: str) -> Callable[[Any, Any, int], None]:
    def check(_: Any, __: Any, value: int) -> None:
        if isinstance(value, bool) or not isinstance(value, int) or not first <= value <= last:
            raise UnitError(f"{what} {value!r}: write a whole number, {first} to {last}")

    return check


@frozen(order=True, cache_hash=True)
class Backend:
    """One address and port that serves.

    `weight` is its share beside the others (Maglev only), 0 to 65535. `cluster_id` is that of a
    remote cluster whose addresses may overlap with ours; `internal` marks the backend of a
    frontend that only this cluster sees.

    >>> Backend("10.0.0.1", 8080).hash_string
    '[10.0.0.1:8080/TCP,State:active]'
    """

    address: Address = field(converter=_address)
    port: int = field(validator=_number(1, PORT_MAX, "port"))
    protocol: Protocol = field(default=Protocol.TCP, converter=_protocol)
    weight: int = field(default=WEIGHT_DEFAULT, validator=_number(0, WEIGHT_MAX, "weight"))
    cluster_id: int = field(default=0, validator=_number(0, CLUSTER_ID_MAX, "cluster id"))
    internal: bool = False

    @cached_property
    def hash_string(self) -> str:
        """What Cilium hashes to place the backend: equal on every node and in every version."""
        host = _text(self.address)
        if self.cluster_id:
            host += f"@{self.cluster_id}"
        if self.address.version == 6:
            host = f"[{host}]"
        scope = "/i" if self.internal else ""
        return f"[{host}:{self.port}/{self.protocol}{scope},State:active]"

    def __str__(self) -> str:
        host = _text(self.address)
        host = f"[{host}]" if self.address.version == 6 else host
        return f"{host}:{self.port}/{self.protocol}"


def _text(address: Address) -> str:
    """The address as Go writes it: Python wrote v4-mapped ones in hexadecimal until 3.13."""
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return f"::ffff:{address.ipv4_mapped}"
    return str(address)
