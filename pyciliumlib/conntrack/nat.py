"""Source NAT as a model: which port a translated flow may get, and what its packets become.

The port is chosen by chance in part, so the model says which ones are allowed, and is told which it
became.
"""

from __future__ import annotations

from attrs import evolve, field, frozen

from pyciliumlib.errors import ExistsError, InvalidError, NotFoundError
from pyciliumlib.types import Address, PortProto, Protocol, parse_address
from pyciliumlib.types.ports import PORT_MAX


def _protocol(value: str | int) -> Protocol:
    return Protocol.parse(value)


@frozen
class Ends:
    """Between whom a packet goes: two addresses with their ports, and a protocol."""

    source: Address = field(converter=parse_address)
    sport: int
    destination: Address = field(converter=parse_address)
    dport: int
    protocol: Protocol = field(default=Protocol.TCP, converter=_protocol)

    def __attrs_post_init__(self) -> None:
        for port in (self.sport, self.dport):
            if isinstance(port, bool) or not isinstance(port, int) or not 0 <= port <= PORT_MAX:
                raise InvalidError(f"port {port!r}: write a whole number, 0 to {PORT_MAX}")
        if self.source.version != self.destination.version:
            raise InvalidError(f"{self.source} and {self.destination} are of two families")

    @property
    def reversed(self) -> Ends:
        """Of a packet the other way."""
        return Ends(self.destination, self.dport, self.source, self.sport, self.protocol)


@frozen
class _Mapping:
    """A flow as its client sees it, and as its backend does."""

    outside: Ends
    inside: Ends


class Nat:
    """The flows that one address translates, by ports of its own.

    A flow is named by what its client sends, and has a backend. Two flows to one backend have
    different ports; to different ones, or of different protocols, they may share one.

    >>> nat = Nat("192.0.2.1", PortProto(50000, 50003))
    >>> flow = Ends("198.51.100.7", 50001, "203.0.113.10", 80)
    >>> nat.allowed(flow, "10.0.0.1", 8080)
    frozenset({50001})
    >>> inside = nat.bind(flow, "10.0.0.1", 8080, 50001)
    >>> nat.back(inside.reversed) == flow.reversed
    True
    """

    def __init__(self, address: str | Address, ports: PortProto) -> None:
        """Flows are seen by backends as from `address` and one of `ports`, 1 to 65535."""
        if ports.any_port:
            raise InvalidError(f"{ports} are all ports; write the first and the last")
        self.address, self.ports = parse_address(address), ports
        self._flows: dict[Ends, _Mapping] = {}
        self._answers: dict[Ends, _Mapping] = {}

    def allowed(self, flow: Ends, backend: str | Address, port: int) -> frozenset[int]:
        """The ports that the flow may get towards a backend; none is left if it is empty.

        That it has; else its client's own, if it is one of ours and nobody's; else any that is
        nobody's. Raises InvalidError for a backend of another family.
        """
        known = self._flows.get(flow)
        if known is not None:
            has = known.inside.sport
            if known.inside == self._inside(flow, backend, port, has):
                return frozenset({has})
        free = frozenset(
            ours
            for ours in range(self.ports.first, self.ports.last + 1)
            if self._inside(flow, backend, port, ours).reversed not in self._answers
        )
        return frozenset({flow.sport}) if flow.sport in free else free

    def bind(self, flow: Ends, backend: str | Address, port: int, chosen: int) -> Ends:
        """Give the flow a port; what its packets to the backend are between then.

        Raises InvalidError for a port that is none of ours, ExistsError for one that another flow
        has. The flow's mapping to another backend is forgotten.
        """
        if not self.ports.first <= chosen <= self.ports.last:
            raise InvalidError(f"port {chosen} is none of {self.ports.first}-{self.ports.last}")
        inside = self._inside(flow, backend, port, chosen)
        other = self._answers.get(inside.reversed)
        if other is not None and other.outside != flow:
            raise ExistsError(f"port {chosen} towards {backend}:{port} is another flow's")
        if flow in self._flows:
            self.release(flow)
        self._flows[flow] = self._answers[inside.reversed] = _Mapping(flow, inside)
        return inside

    def release(self, flow: Ends) -> None:
        """Forget the flow; NotFoundError if it is not known."""
        if flow not in self._flows:
            raise NotFoundError(f"no flow from {flow.source}:{flow.sport} is translated")
        del self._answers[self._flows.pop(flow).inside.reversed]

    def out(self, packet: Ends) -> Ends | None:
        """What a client's packet becomes, None if its flow is not known."""
        known = self._flows.get(packet)
        return known.inside if known else None

    def back(self, packet: Ends) -> Ends | None:
        """What a backend's packet becomes, None if it answers no flow."""
        known = self._answers.get(packet)
        return known.outside.reversed if known else None

    def quoted(self, quoted: Ends) -> Ends | None:
        """What the packet becomes that an ICMP error quotes, whichever way that went."""
        there = self.back(quoted.reversed) or self.out(quoted.reversed)
        return there.reversed if there else None

    def __len__(self) -> int:
        return len(self._flows)

    def _inside(self, flow: Ends, backend: str | Address, port: int, ours: int) -> Ends:
        return evolve(
            flow, source=self.address, sport=ours, destination=parse_address(backend), dport=port
        )
