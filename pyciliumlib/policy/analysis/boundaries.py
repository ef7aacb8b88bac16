"""The ports at which rules may change their mind: between two of them all ports are alike."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from attrs import frozen

from pyciliumlib.policy.model import NamedPorts, PortMatch, Rule
from pyciliumlib.types import Protocol
from pyciliumlib.types.ports import PORT_MAX

_WITH_PORTS = (Protocol.TCP, Protocol.UDP, Protocol.SCTP)
_ICMP = (Protocol.ICMP, Protocol.ICMPv6)
_ICMP_TYPE_MAX = 255


@frozen(order=True)
class PortRange:
    """Ports (or types) of a protocol about which rules say one thing."""

    protocol: Protocol
    first: int
    last: int

    def __str__(self) -> str:
        if self.protocol not in _ICMP or self.first == self.last:
            return str(PortMatch(self.protocol, self.first, self.last))
        if (self.first, self.last) == (0, _ICMP_TYPE_MAX):
            return f"{self.protocol} any type"
        return f"{self.protocol} types {self.first}-{self.last}"


def boundaries(
    rules: Iterable[Rule], named_ports: Iterable[NamedPorts] = ()
) -> tuple[PortRange, ...]:
    """Ranges that cover every port and type, none of which a rule divides.

    `named_ports` are those of all parties, since a rule may mean their numbers.
    """
    starts: dict[Protocol, set[int]] = {p: {0} for p in (*_WITH_PORTS, *_ICMP)}
    for rule in rules:
        for clause in rule.clauses:
            for match in clause.ports:
                if match.protocol.extended:
                    starts[match.protocol] = {0}
                elif not match.name and match.protocol in starts:
                    starts[match.protocol] |= {match.first, match.last + 1}
    for ports in named_ports:
        for number, protocol in ports.values():
            if protocol in starts:
                starts[protocol] |= {number, number + 1}
    return tuple(_ranges(starts))


def _ranges(starts: Mapping[Protocol, set[int]]) -> Iterable[PortRange]:
    for protocol, found in starts.items():
        last = 0 if protocol.extended else _ICMP_TYPE_MAX if protocol in _ICMP else PORT_MAX
        edges = sorted(start for start in found if start <= last)
        for first, following in zip(edges, [*edges[1:], last + 1], strict=True):
            yield PortRange(protocol, first, following - 1)
