"""The node's ports that translated flows have, kept from the node's own sockets."""

from __future__ import annotations

import contextlib
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

    Nothing is changed before `protect`, and `give_back` takes back what that did, be it in an
    earlier process.
    """

    def __init__(self, netns: NetNS, config: LoadBalancerConfig, kept: Kept | None) -> None:
        """`config` says which ports, and whether the kernel's settings may be changed."""
        self._netns, self._may_change, self._kept = netns, config.auto_protect_ports, kept
        self._added = parse_ports(kept.reserved_ports) if kept else frozenset()
        self.ports = self._sockets().nat_ports(config)

    def protect(self) -> None:
        """Have the kernel give none of the ports to sockets that ask for any.

        Raises InvalidError where that leaves sockets too few, or must not be done here.
        """
        sockets = self._sockets()
        clash = sockets.to_reserve(self.ports)
        if not clash:
            return
        wanted = format_ports(sockets.reserved | clash)
        if not self._may_change:
            raise InvalidError(
                f"the kernel may give sockets of this node the ports {format_ports(clash)}, which "
                "are for translated connections; run "
                f"`sysctl -w net.ipv4.ip_local_reserved_ports={wanted}`"
            )
        self._added |= clash
        if self._kept is not None:
            self._kept.remember_reserved(format_ports(self._added))
        write_sysctls(self._netns, {_RESERVED: wanted})

    def give_back(self) -> None:
        """Reserve no more what `protect` reserved."""
        if self._added:
            with contextlib.suppress(PyCiliumError):  # the namespace may be gone
                left = self._sockets().reserved - self._added
                write_sysctls(self._netns, {_RESERVED: format_ports(left)})
        self._added = frozenset()

    def _sockets(self) -> SocketPorts:
        first, last = map(int, read_sysctl(self._netns, _GIVEN).split())
        reserved = parse_ports(read_sysctl(self._netns, _RESERVED))
        return SocketPorts(PortProto(first, last), reserved)
