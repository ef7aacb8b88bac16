"""The sockets that were translated, as values."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from attrs import field, frozen

from pyciliumlib.conntrack.model import Clock
from pyciliumlib.errors import NotFoundError
from pyciliumlib.loadbalancer.backend import Backend
from pyciliumlib.loadbalancer.kinds import FrontendType
from pyciliumlib.loadbalancer.service import Frontend
from pyciliumlib.types import Address, MapLike, Protocol, address_from_bytes

if TYPE_CHECKING:
    import numpy.typing as npt


@frozen
class SocketConnection:
    """What a socket asked for, and the backend that it got.

    `cookie` is the kernel's number of the socket. One that is not connected may have several
    backends, and keeps one that it does not talk to any more until it is closed or room is needed.
    """

    cookie: int
    to: Frontend
    backend: Backend


@frozen
class Orphan:
    """A socket whose backend is gone, or is its service's no more."""

    cookie: int
    protocol: Protocol
    peer: tuple[Address, int]
    _key: npt.NDArray[Any] = field(repr=False, eq=False)


class Sockets:
    """Reads the map of what sockets asked for; owns none of the maps."""

    def __init__(self, maps: Mapping[str, MapLike], clock: Clock) -> None:
        self._asked, self._clients = maps["lb_reverse_sk"], maps["lb_affinity"]
        self._backends, self._members = maps["lb_backends"], maps["lb_members"]
        self._clock = clock

    def read(self, backends: Mapping[int, Backend]) -> Iterator[SocketConnection]:
        """Those whose backend is there; `backends` by their numbers."""
        keys, values = self._asked.lookup_batch()
        for row in (~self._orphaned(values)).nonzero()[0]:
            asked, backend = values[row], backends.get(int(values[row]["backend"]))
            if backend is not None:
                address = address_from_bytes(asked["addr"].tobytes())
                to = Frontend(
                    address, int(asked["port"]), int(asked["proto"]), FrontendType.HOST_PORT
                )
                yield SocketConnection(int(keys[row]["socket"]), to, backend)

    def orphans(self) -> list[Orphan]:
        """Those whose backend is gone."""
        keys, values = self._asked.lookup_batch()
        return [
            Orphan(
                int(keys[row]["socket"]),
                Protocol(int(values[row]["proto"])),
                (address_from_bytes(keys[row]["addr"].tobytes()), int(keys[row]["port"])),
                keys[row],
            )
            for row in self._orphaned(values).nonzero()[0]
        ]

    def forget(self, orphans: list[Orphan]) -> None:
        """They are looked for no more."""
        for orphan in orphans:
            self._asked.delete(orphan._key)

    def met(self, service: int, netns: int, version: int, timeout: int) -> int:
        """The number of the backend that a namespace met less than `timeout` seconds ago, or 0.

        `netns` is its cookie, `version` that of IP.
        """
        client = np.zeros(1, self._clients.key_dtype)
        client["client"][0, -8:] = np.frombuffer(netns.to_bytes(8, sys.byteorder), np.uint8)
        client["service"], client["netns"] = service, version
        try:
            known = self._clients.lookup(client[0])
        except NotFoundError:
            return 0
        now = self._clock.jiffies(time.clock_gettime_ns(time.CLOCK_MONOTONIC))
        silent = (now - known.last_used) & 0xFFFFFFFF
        return int(known.backend) if silent < timeout * self._clock.hz else 0

    def _orphaned(self, asked: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
        _, backends = self._backends.lookup_batch()
        members, _ = self._members.lookup_batch()
        gone: npt.NDArray[np.bool_] = (
            backends["revision"][asked["backend"]] != asked["backend_rev"]
        ) | ~np.isin(_pairs(asked), _pairs(members))
        return gone


def _pairs(rows: npt.NDArray[Any]) -> npt.NDArray[np.uint64]:
    """Services and backends as one number each."""
    pairs: npt.NDArray[np.uint64] = rows["service"].astype(np.uint64) << np.uint64(32)
    pairs |= rows["backend"]
    return pairs
