"""The hash by which a flow finds its slot, as Cilium's programs compute it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
from attrs import field, frozen

from pyciliumlib.errors import InvalidError
from pyciliumlib.types import Address, AddressLike, Protocol, parse_address

if TYPE_CHECKING:
    import numpy.typing as npt

_INITVAL: Final = 0xDEADBEEF
#: Bytes of the three words that jhash_3words hashes.
_THREE_WORDS: Final = 3 << 2


def _address(value: AddressLike) -> Address:
    return parse_address(value)


def _protocol(value: str | int) -> Protocol:
    return Protocol.parse(value)


@frozen
class FlowTuple:
    """What of a connection decides on its slot.

    The service's address is left out, so that two services with the same port and backends send
    a client to the same backend.
    """

    client: Address = field(converter=_address)
    client_port: int
    service_port: int
    protocol: Protocol = field(default=Protocol.TCP, converter=_protocol)


@frozen
class FlowHash:
    """jhash (Bob Jenkins, lookup3, 2006) of flow tuples, with a seed for each family.

    The hashes are those of a little-endian machine.
    """

    seed_ipv4: int
    seed_ipv6: int

    def of(self, flow: FlowTuple, *, affinity: bool = False) -> int:
        """The hash of one flow, 32 bits; with `affinity` the client's port is left out."""
        client_port = 0 if affinity else flow.client_port
        return int(
            self.of_columns(
                np.frombuffer(flow.client.packed, np.uint8)[np.newaxis],
                np.array([client_port], np.uint16),
                np.array([flow.service_port], np.uint16),
                np.array([flow.protocol], np.uint8),
            )[0]
        )

    def of_columns(
        self,
        clients: npt.NDArray[np.uint8],
        client_ports: npt.NDArray[np.uint16],
        service_ports: npt.NDArray[np.uint16],
        protocols: npt.NDArray[np.uint8],
    ) -> npt.NDArray[np.uint32]:
        """The hashes of n flows of one family.

        `clients` has shape (n, 4) or (n, 16), the addresses' bytes in network order; the other
        columns have n numbers. Raises InvalidError for another shape.
        """
        if clients.ndim != 2 or clients.shape[1] not in (4, 16):
            raise InvalidError(f"clients: shape (n, 4) or (n, 16), found {clients.shape}")
        words = np.ascontiguousarray(clients, np.uint8).view("<u4").astype(np.uint32)
        ports = _in_network_order(service_ports) << np.uint32(16) | _in_network_order(client_ports)
        last = np.asarray(protocols, np.uint32)
        if clients.shape[1] == 4:
            start = np.uint32((self.seed_ipv4 + _INITVAL + _THREE_WORDS) & 0xFFFFFFFF)
            return _final(words[:, 0] + start, ports + start, last + start)
        a, b, c = _mix(words[:, 0], words[:, 1], words[:, 2])
        a, b, c = _mix(a + words[:, 3], b + ports, c + last)
        return _final(a + np.uint32(self.seed_ipv6), b, c)


def _in_network_order(ports: npt.NDArray[Any]) -> npt.NDArray[np.uint32]:
    """Ports as a little-endian machine reads them from a packet."""
    return np.asarray(ports, np.uint16).byteswap().astype(np.uint32)


_Words = tuple["npt.NDArray[np.uint32]", "npt.NDArray[np.uint32]", "npt.NDArray[np.uint32]"]


def _rotate(word: npt.NDArray[np.uint32], bits: int) -> npt.NDArray[np.uint32]:
    return word << np.uint32(bits) | word >> np.uint32(32 - bits)


def _mix(a: Any, b: Any, c: Any) -> _Words:
    for bits in (4, 6, 8, 16, 19, 4):
        a = (a - c) ^ _rotate(c, bits)
        c = c + b
        a, b, c = b, c, a
    return a, b, c


def _final(a: Any, b: Any, c: Any) -> npt.NDArray[np.uint32]:
    for bits in (14, 11, 25, 16, 4, 14, 24):
        c = (c ^ b) - _rotate(b, bits)
        a, b, c = b, c, a
    # seven steps turn the three words once more than twice round: the last one changed is b
    return np.asarray(b, np.uint32)
