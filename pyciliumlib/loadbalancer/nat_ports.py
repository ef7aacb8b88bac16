"""Which ports of a node are for translated flows, and which stay its own.

A backend answers to the node's address. So that an answer is never taken for one to a socket of
the node, the kernel must not give a socket the port of a flow: Linux picks from
`ip_local_port_range`, less `ip_local_reserved_ports`.
https://docs.kernel.org/networking/ip-sysctl.html
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Final

from attrs import frozen

from pyciliumlib.errors import InvalidError
from pyciliumlib.loadbalancer.config import LoadBalancerConfig
from pyciliumlib.types import PortProto
from pyciliumlib.types.ports import PORT_MAX

#: Of the ports that the kernel gives to sockets, those that stay theirs where nothing is said.
_KEPT: Final = 4096
#: The fewest with which a node can live.
_FEWEST: Final = 1024


def parse_ports(text: str) -> frozenset[int]:
    """The ports of `ip_local_reserved_ports`: "8080,9148-9150"; "" are none."""
    found: set[int] = set()
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    return frozenset(found)


def format_ports(ports: Iterable[int]) -> str:
    """The same as text, runs of ports as first-last.

    >>> format_ports({1, 2, 3, 7})
    '1-3,7'
    """
    return ",".join(
        f"{run.start}-{run[-1]}" if len(run) > 1 else f"{run.start}" for run in _runs(ports)
    )


@frozen
class SocketPorts:
    """The ports that the kernel may give to sockets that ask for none.

    `given` is `ip_local_port_range`, from which those that are `reserved` are left out.
    """

    given: PortProto
    reserved: frozenset[int] = frozenset()

    @property
    def ports(self) -> frozenset[int]:
        """All of them."""
        return frozenset(range(self.given.first, self.given.last + 1)) - self.reserved

    def nat_ports(self, config: LoadBalancerConfig) -> PortProto:
        """The ports of translated flows: what the config says, else those after NodePorts.

        Less, then, the first 4,096 of what sockets may get.
        """
        if config.nat_ports is not None:
            return config.nat_ports
        nodes = range(config.node_ports.first, config.node_ports.last + 1)
        kept = sorted(self.ports.difference(nodes))[:_KEPT]
        rest = set(range(config.node_ports.last + 1, PORT_MAX + 1)).difference(kept)
        if not rest:
            raise InvalidError(
                f"node_ports {config.node_ports.first}-{config.node_ports.last} leave no ports "
                "after them for translated flows; write nat_ports"
            )
        longest = max(_runs(rest), key=len)
        return PortProto(longest.start, longest[-1])

    def to_reserve(self, nat: PortProto) -> frozenset[int]:
        """What sockets must not get any more; InvalidError where too little would be left."""
        clash = self.ports.intersection(range(nat.first, nat.last + 1))
        left = len(self.ports) - len(clash)
        if clash and left < _FEWEST:
            raise InvalidError(
                f"nat_ports {nat.first}-{nat.last} leave the node's own sockets {left} of the "
                f"ports {self.given.first}-{self.given.last}, fewer than {_FEWEST}; change "
                "nat_ports, or net.ipv4.ip_local_port_range"
            )
        return clash


def _runs(ports: Iterable[int]) -> list[range]:
    """Ports that follow one another, together."""
    runs = []
    for _, found in itertools.groupby(enumerate(sorted(ports)), lambda pair: pair[1] - pair[0]):
        run = [port for _, port in found]
        runs.append(range(run[0], run[-1] + 1))
    return runs
