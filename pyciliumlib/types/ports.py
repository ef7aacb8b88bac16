"""Transport protocols, ports and ranges of them: "8080/TCP", "30000-32767/UDP"."""

from __future__ import annotations

import enum
import re
from collections.abc import Iterator
from operator import index
from typing import Final

from attrs import field, frozen

from pyciliumlib.errors import UnitError, nearest

PORT_MAX: Final = 65535
PORT_BITS: Final = 16


class Protocol(enum.IntEnum):
    """IP protocol numbers; ANY stands for all of them.

    https://www.iana.org/assignments/protocol-numbers
    """

    ANY = 0
    ICMP = 1
    IGMP = 2
    IPIP = 4
    TCP = 6
    UDP = 17
    IPv6 = 41
    GRE = 47
    ESP = 50
    AH = 51
    ICMPv6 = 58
    VRRP = 112
    SCTP = 132

    @classmethod
    def parse(cls, text: str | int) -> Protocol:
        """A protocol from its name (case does not matter) or number."""
        try:
            return cls(text) if isinstance(text, int) else _BY_NAME[str(text).upper()]
        except (KeyError, ValueError):
            names = [protocol.name for protocol in cls]
            hint = nearest(str(text), names)
            raise UnitError(
                f"unknown protocol {text!r}{hint}; known are {', '.join(names)}"
            ) from None

    @property
    def has_ports(self) -> bool:
        """Whether its packets carry ports (ANY may)."""
        return self in (Protocol.ANY, Protocol.TCP, Protocol.UDP, Protocol.SCTP)

    @property
    def extended(self) -> bool:
        """Whether it is one of Cilium's extended protocols: neither ports nor message types."""
        return not self.has_ports and self not in (Protocol.ICMP, Protocol.ICMPv6)

    def __str__(self) -> str:
        return self.name


_BY_NAME = {protocol.name.upper(): protocol for protocol in Protocol}
_PORTS = re.compile(r"(?P<first>[0-9]{1,5})(-(?P<last>[0-9]{1,5}))?")


def are_ports(first: object, last: object) -> bool:
    """Whether both are numbers that a range of ports may have, and in order."""
    try:
        return 0 <= index(first) <= index(last) <= PORT_MAX  # type: ignore[arg-type]
    except TypeError:
        return False


def _protocol(value: str | int) -> Protocol:
    return Protocol.parse(value)


@frozen(order=True)
class PortProto:
    """The ports `first` to `last` of a protocol; 0 to 65535 are all ports.

    >>> str(PortProto.parse("8080/tcp")), str(PortProto.parse("80-90")), str(PortProto.parse("UDP"))
    ('8080/TCP', '80-90/ANY', 'UDP')
    """

    first: int = 0
    last: int = field()
    protocol: Protocol = field(default=Protocol.ANY, converter=_protocol)

    @last.default
    def _last(self) -> int:
        return self.first if self.first else PORT_MAX

    def __attrs_post_init__(self) -> None:
        if not are_ports(self.first, self.last):
            raise UnitError(
                f"ports {self.first!r}-{self.last!r}: write first-last, each 1 to {PORT_MAX}"
            )
        if not self.protocol.has_ports and not self.any_port:
            raise UnitError(f"{self.protocol} has no ports; leave {self.first} out")

    @classmethod
    def parse(cls, text: str | int | PortProto) -> PortProto:
        """Read "8080/TCP", "80-90/UDP", "53" (any protocol), "TCP" or "0/TCP" (all its ports).

        Raises UnitError that quotes the text.
        """
        if isinstance(text, PortProto):
            return text
        ports, _, protocol = str(text).strip().partition("/")
        if not protocol and ports and ports[0] not in "0123456789-":
            return cls(protocol=Protocol.parse(ports))
        match = _PORTS.fullmatch(ports)
        if match is None:
            raise UnitError(f"{text!r} is no port; write 8080/TCP, 80-90/UDP, 53 or TCP")
        first, last = int(match["first"]), match["last"]
        found = Protocol.parse(protocol) if protocol else Protocol.ANY
        if last is None:
            return cls(first, protocol=found)
        return cls(first, int(last), found)

    @property
    def any_port(self) -> bool:
        """Whether all ports are meant."""
        return self.first == 0 and self.last == PORT_MAX

    def contains(self, port: int, protocol: Protocol) -> bool:
        """Whether a packet to `port` of `protocol` is meant."""
        return self.first <= port <= self.last and self.protocol in (Protocol.ANY, protocol)

    def blocks(self) -> Iterator[tuple[int, int]]:
        """The fewest (port, bits) prefixes that make up the range, as CIDRs make up addresses.

        >>> list(PortProto(80, 90).blocks())
        [(80, 13), (88, 15), (90, 16)]
        """
        first = self.first
        while first <= self.last:
            # the largest block that starts here, cut down until it ends within the range
            size = first & -first if first else PORT_MAX + 1
            while first + size - 1 > self.last:
                size >>= 1
            yield first, PORT_BITS - size.bit_length() + 1
            first += size

    def __str__(self) -> str:
        if self.any_port:
            return str(self.protocol)
        ports = str(self.first) if self.first == self.last else f"{self.first}-{self.last}"
        return f"{ports}/{self.protocol}"
