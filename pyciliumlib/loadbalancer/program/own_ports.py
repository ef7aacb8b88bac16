"""The node's ports that translated flows have, kept from the node's own sockets."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Final

from pyciliumlib.errors import InvalidError, PyCiliumError
from pyciliumlib.loadbalancer.config import LoadBalancerConfig
from pyciliumlib.loadbalancer.nat_ports import SocketPorts, format_ports, parse_ports
from pyciliumlib.loadbalancer.program.kept import Kept
from pyciliumlib.net import NetNS, read_sysctl, write_sysctls
from pyciliumlib.types import PortProto

#: Both are IPv6's as well.
_GIVEN: Final = "ipv4/ip_local_port_range"
_RESERVED: Final = "ipv4/ip_local_reserved_ports"


class OwnPorts:
    """The ports of a network namespace that are for translated flows.

    Nothing is changed before `protected`, and `give_back` takes back what that did, be it in an
    earlier process.
    """

    def __init__(self, netns: NetNS, config: LoadBalancerConfig, kept: Kept | None) -> None:
        """`config` says which ports, and whether the kernel's settings may be changed."""
        self._netns, self._may_change, self._kept = netns, config.auto_protect_ports, kept
        self._added = parse_ports(kept.reserved_ports) if kept else frozenset()
        self.ports = self._sockets().nat_ports(config)

    def check(self) -> None:
        """Whether they can be kept from sockets.

        Raises InvalidError where that leaves sockets too few, or must not be done here.
        """
        self._to_reserve(self._sockets())

    @contextlib.contextmanager
    def protected(self) -> Iterator[None]:
        """From here on the kernel gives none of the ports to sockets that ask for any.

        Unless what follows inside fails; then it is as before. Raises what `check` does.
        """
        sockets, before = self._sockets(), self._added
        clash = self._to_reserve(sockets)
        try:
            if clash:
                self._remember(self._added | clash)
                write_sysctls(self._netns, {_RESERVED: format_ports(sockets.reserved | clash)})
            yield
        except BaseException:
            self._release(clash)
            if clash:
                self._remember(before)
            raise

    def give_back(self) -> None:
        """Reserve no more what was reserved."""
        self._release(self._added)
        self._added = frozenset()

    def _to_reserve(self, sockets: SocketPorts) -> frozenset[int]:
        clash = sockets.to_reserve(self.ports)
        if clash and not self._may_change:
            raise InvalidError(
                f"the kernel may give sockets of this node the ports {format_ports(clash)}, which "
                "are for translated connections; run `sysctl -w "
                f"net.ipv4.ip_local_reserved_ports={format_ports(sockets.reserved | clash)}`"
            )
        return clash

    def _release(self, ports: frozenset[int]) -> None:
        if ports:
            with contextlib.suppress(PyCiliumError):  # the namespace may be gone
                left = self._sockets().reserved - ports
                write_sysctls(self._netns, {_RESERVED: format_ports(left)})

    def _remember(self, added: frozenset[int]) -> None:
        self._added = added
        if self._kept is not None:
            self._kept.remember_reserved(format_ports(added))

    def _sockets(self) -> SocketPorts:
        first, last = map(int, read_sysctl(self._netns, _GIVEN).split())
        reserved = parse_ports(read_sysctl(self._netns, _RESERVED))
        return SocketPorts(PortProto(first, last), reserved)
