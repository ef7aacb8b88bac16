"""A backend of a service, and the text by which every node knows it alike."""

from __future__ import annotations

import enum
import ipaddress
import struct
from collections.abc import Callable
from typing import Any, Final

from attrs import evolve, field, frozen

from pyciliumlib._fast import ffi, lib
from pyciliumlib.errors import InvalidError, UnitError
from pyciliumlib.types import Address, AddressLike, Protocol
from pyciliumlib.types.ports import PORT_MAX

WEIGHT_DEFAULT: Final = 100
WEIGHT_MAX: Final = 65535
CLUSTER_ID_MAX: Final = 255
#: struct pcl_backend of csrc/fast/cdef.h
_KEY: Final = struct.Struct("=HBBBB16s")
KEY_SIZE: Final = _KEY.size
_TRANSPORT: Final = (Protocol.TCP, Protocol.UDP, Protocol.SCTP)


class BackendState(enum.IntEnum):
    """Whether a backend takes new connections; the numbers of the first four are Cilium's.

    A terminating one still serves: it keeps its connections, and takes new ones where no active
    one is left.
    """

    ACTIVE = 0
    TERMINATING = 1
    QUARANTINED = 2
    MAINTENANCE = 3
    TERMINATING_NOT_SERVING = 4

    def may_become(self, state: BackendState) -> bool:
        """Whether Cilium lets a backend go from this state to `state`.

        >>> BackendState.TERMINATING.may_become(BackendState.ACTIVE)
        False
        """
        return state is self or state in _TRANSITIONS[self]

    def __str__(self) -> str:
        return self.name.lower().replace("_", "-")


_STATE = BackendState
_TRANSITIONS: Final[dict[BackendState, frozenset[BackendState]]] = {
    _STATE.ACTIVE: frozenset(_STATE),
    _STATE.TERMINATING: frozenset({_STATE.TERMINATING_NOT_SERVING}),
    _STATE.QUARANTINED: frozenset(
        {_STATE.ACTIVE, _STATE.TERMINATING, _STATE.TERMINATING_NOT_SERVING}
    ),
    _STATE.MAINTENANCE: frozenset({_STATE.ACTIVE}),
    _STATE.TERMINATING_NOT_SERVING: frozenset(),
}


def transport(value: str | int) -> Protocol:
    """A protocol that services can have; UnitError for any other."""
    protocol = Protocol.parse(value)
    if protocol not in _TRANSPORT:
        raise UnitError(f"{protocol} has no services; write TCP, UDP or SCTP")
    return protocol


def split_endpoint(text: str) -> tuple[str, int, str]:
    """Address, port and protocol of "10.0.0.1:80", "[fd00::1]:53/UDP"; UnitError otherwise."""
    place, _, protocol = text.strip().partition("/")
    host, colon, port = place.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if not colon or not (port.isascii() and port.isdigit()) or (":" in host and not bracketed):
        raise UnitError(f"{text!r} is no endpoint; write 10.0.0.1:80/TCP or [fd00::1]:80/TCP")
    return host[1:-1] if bracketed else host, int(port), protocol or "TCP"


def _address(value: AddressLike) -> Address:
    """As `parse_address`, but v4-mapped ones are taken: Maglev has a text for them."""
    if isinstance(value, (ipaddress.IPv4Address, ipaddress.IPv6Address)):
        address = value
    else:
        try:
            address = ipaddress.ip_address(value)
        except ValueError as error:
            raise UnitError(f"{value!r} is no address; write 10.0.0.1 or fd00::1") from error
    if address.version == 6 and address.scope_id is not None:
        raise UnitError(f"{address} carries a zone; write it without %{address.scope_id}")
    return address


def number(first: int, last: int, what: str) -> Callable[[Any, Any, int], None]:
    """A validator for whole numbers from `first` to `last`."""

    def check(_: Any, __: Any, value: int) -> None:
        if isinstance(value, bool) or not isinstance(value, int) or not first <= value <= last:
            raise UnitError(f"{what} {value!r}: write a whole number, {first} to {last}")

    return check


def _state(value: BackendState | str) -> BackendState:
    if isinstance(value, BackendState):
        return value
    known = {str(state): state for state in BackendState}
    if value not in known:
        raise UnitError(f"state {value!r}: write one of {', '.join(known)}")
    return known[value]


@frozen(order=True, cache_hash=True)
class Backend:
    """One address and port that serves.

    `weight` is its share beside the others (Maglev only), 0 to 65535. `cluster_id` is that of a
    remote cluster whose addresses may overlap with ours; `internal` marks the backend of a
    frontend that only this cluster sees. `node` is the name of the node it runs on, "" unknown.

    >>> Backend("10.0.0.1", 8080).hash_string
    '[10.0.0.1:8080/TCP,State:active]'
    """

    address: Address = field(converter=_address)
    port: int = field(validator=number(1, PORT_MAX, "port"))
    protocol: Protocol = field(default=Protocol.TCP, converter=transport)
    weight: int = field(default=WEIGHT_DEFAULT, validator=number(0, WEIGHT_MAX, "weight"))
    cluster_id: int = field(default=0, validator=number(0, CLUSTER_ID_MAX, "cluster id"))
    internal: bool = False
    state: BackendState = field(default=BackendState.ACTIVE, converter=_state)
    node: str = ""
    key: bytes = field(init=False, eq=False, repr=False)
    """What tells it from all others: address, port, protocol, cluster and scope."""

    @classmethod
    def parse(cls, text: str | Backend) -> Backend:
        """Read "10.0.0.1:80" (TCP) or "[fd00::1]:53/UDP"; raises UnitError that quotes the text.

        >>> print(Backend.parse("[fd00::1]:53/UDP"))
        [fd00::1]:53/UDP
        """
        return text if isinstance(text, Backend) else cls(*split_endpoint(text))

    def in_state(self, state: BackendState | str) -> Backend:
        """The same backend in another state.

        Raises InvalidError where Cilium knows no such change.
        """
        wanted = _state(state)
        if not self.state.may_become(wanted):
            allowed = ", ".join(str(s) for s in sorted(_TRANSITIONS[self.state])) or "nothing else"
            raise InvalidError(f"{self} is {self.state} and cannot become {wanted}, but {allowed}")
        return evolve(self, state=wanted)

    def __attrs_post_init__(self) -> None:
        cluster, version = self.cluster_id, self.address.version
        address = self.address.packed
        key = _KEY.pack(self.port, self.protocol, cluster, version, self.internal, address)
        object.__setattr__(self, "key", key)

    @property
    def hash_string(self) -> str:
        """What Cilium hashes to place the backend: equal on every node and in every version."""
        text = ffi.new("char[80]")
        size = lib.pcl_backend_text(ffi.from_buffer("struct pcl_backend *", self.key), text)
        return bytes(ffi.buffer(text, size)).decode()

    def __str__(self) -> str:
        host = _text(self.address)
        host = f"[{host}]" if self.address.version == 6 else host
        return f"{host}:{self.port}/{self.protocol}"


def _text(address: Address) -> str:
    """The address as Go writes it: Python wrote v4-mapped ones in hexadecimal until 3.13."""
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return f"::ffff:{address.ipv4_mapped}"
    return str(address)
