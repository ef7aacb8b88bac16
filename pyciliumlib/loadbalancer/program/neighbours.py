"""Neighbours that the program needs, which no packet of the stack asks for."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from pyciliumlib.errors import PyCiliumError
from pyciliumlib.flow import DropReason
from pyciliumlib.flow.metrics import Metrics
from pyciliumlib.kernel import Map
from pyciliumlib.loadbalancer.backend import Backend
from pyciliumlib.net import Netlink, NetNS
from pyciliumlib.types import Address

_log = logging.getLogger(__name__)
#: The discard service (RFC 863): a datagram for it wants no answer.
_DISCARD: Final = 9
#: Seconds between looks at the drops, and how many looks between two rounds of all neighbours.
_LOOK: Final = 1.0
_ROUND: Final = 10
#: The protocol number (see /etc/iproute2/rt_protos) of neighbours that are managed for a balancer.
_OURS: Final = 201


def wake(netns: NetNS, addresses: Iterable[Address]) -> None:
    """Let the kernel look for the neighbours on the way to `addresses`.

    An empty datagram to each does it, whatever the routes. What cannot be reached is passed over:
    the program counts the packets that it drops for want of a neighbour.
    """
    by_family: dict[int, list[Address]] = {}
    for address in addresses:
        by_family.setdefault(address.version, []).append(address)
    for version, found in by_family.items():
        family = socket.AF_INET if version == 4 else socket.AF_INET6
        with netns.socket(family, socket.SOCK_DGRAM) as sender:
            sender.setblocking(False)
            for address in found:
                with contextlib.suppress(OSError):
                    sender.sendto(b"", (str(address), _DISCARD))


class NeighbourKeeper:
    """A thread that keeps the ways to backends known.

    The kernel forgets neighbours that its own stack does not use, and does not notice one that has
    changed. So every ten seconds each neighbour is used once, and those on the way to backends
    that packets were dropped for are looked for within a second.

    A balancer that outlives its process has the kernel do so itself, from Linux 5.16 on: neighbours
    that the program uses become managed ones. (On older kernels packets go where a neighbour was
    last until the next process finds it elsewhere; `bpf/lib/lb_hop.h`.)
    """

    def __init__(
        self,
        netns: NetNS,
        maps: Mapping[str, Map],
        backends: Callable[[], Mapping[int, Backend]],
        *,
        lasting: bool = False,
    ) -> None:
        """`maps` are the program's, `backends` those of the moment by their numbers.

        With `lasting` the neighbours are to be known without this process, too.
        """
        self._netns, self._backends, self._lasting = netns, backends, lasting
        self._managed: set[tuple[int, Address]] = set()
        self._hops, self._metrics = maps["lb_hops"], maps["metrics"]
        self._ending = threading.Event()
        self._thread = threading.Thread(
            target=self._keep, name="pyciliumlib-neighbours", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """End the thread; what the kernel manages it goes on managing."""
        self._ending.set()
        self._thread.join()
        if self._lasting:
            self._hand_over()

    def release(self) -> None:
        """End the thread, and let neighbours be forgotten as any others."""
        lasting, self._lasting = self._lasting, False
        self.close()
        if lasting:
            self._hand_over()

    def _keep(self) -> None:
        dropped, looks = 0, 0
        while not self._ending.wait(_LOOK):
            looks += 1
            is_round = looks % _ROUND == 0
            now = Metrics.read(self._metrics).packets(DropReason.FIB)
            if now > dropped or is_round:
                wake(self._netns, self._to_wake(known=is_round))
            if is_round and self._lasting:
                try:
                    self._hand_over()
                except PyCiliumError as error:  # such as a device that just vanished
                    _log.warning("neighbours cannot be managed: %s", error)
            dropped = now

    def _to_wake(self, *, known: bool) -> list[Address]:
        """Backends whose way is not known; with `known` also one for each neighbour that is."""
        _, hops = self._hops.lookup_batch()
        resolved = hops["ifindex"] != 0
        found, seen = [], set()
        for number, backend in self._backends().items():
            cpus = resolved[number].nonzero()[0]
            if not len(cpus):
                found.append(backend.address)
                continue
            neighbour = hops["ethernet"][number, cpus[0]].tobytes()
            if known and neighbour not in seen:
                seen.add(neighbour)
                found.append(backend.address)
        return found

    def _hand_over(self) -> None:
        """Let the kernel manage the neighbours that packets go to, and no longer any others."""
        used = self._used()
        with Netlink(self._netns) as netlink:
            for found in netlink.neighbours():
                place = found.ifindex, found.address
                wanted = self._lasting and (found.ifindex, found.mac) in used
                if found.managed and found.protocol == _OURS:
                    if (found.ifindex, found.mac) in used:
                        self._managed.add(place)
                    if not wanted and place in self._managed:
                        netlink.release_neighbour(*place)
                elif wanted and not found.managed and not found.permanent:
                    netlink.manage_neighbour(*place, _OURS)

    def _used(self) -> set[tuple[int, str]]:
        """Device and MAC of all that packets go to."""
        _, hops = self._hops.lookup_batch()
        known = hops[hops["ifindex"] != 0]
        macs = (mac.tobytes().hex(":") for mac in known["ethernet"][:, :6])
        return set(zip(known["ifindex"].tolist(), macs, strict=True))
