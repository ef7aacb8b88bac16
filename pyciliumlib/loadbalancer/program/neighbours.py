"""Neighbours that the program needs, which no packet of the stack asks for."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from pyciliumlib.flow import DropReason
from pyciliumlib.flow.metrics import Metrics
from pyciliumlib.kernel import Map
from pyciliumlib.loadbalancer.backend import Backend
from pyciliumlib.net import NetNS
from pyciliumlib.types import Address

#: The discard service (RFC 863): a datagram for it wants no answer.
_DISCARD: Final = 9
#: Seconds between looks at the drops, and how many looks between two rounds of all neighbours.
_LOOK: Final = 1.0
_ROUND: Final = 10


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
    """

    def __init__(
        self,
        netns: NetNS,
        maps: Mapping[str, Map],
        backends: Callable[[], Mapping[int, Backend]],
    ) -> None:
        """`maps` are the program's, `backends` those of the moment by their numbers."""
        self._netns, self._backends = netns, backends
        self._hops, self._metrics = maps["lb_hops"], maps["metrics"]
        self._ending = threading.Event()
        self._thread = threading.Thread(
            target=self._keep, name="pyciliumlib-neighbours", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """End the thread."""
        self._ending.set()
        self._thread.join()

    def _keep(self) -> None:
        dropped, looks = 0, 0
        while not self._ending.wait(_LOOK):
            looks += 1
            now = Metrics.read(self._metrics).packets(DropReason.FIB)
            if now > dropped or looks % _ROUND == 0:
                wake(self._netns, self._to_wake(known=looks % _ROUND == 0))
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
