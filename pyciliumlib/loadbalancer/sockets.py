"""The sockets that were translated, as values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from attrs import field, frozen

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

    def __init__(self, maps: Mapping[str, MapLike]) -> None:
        self._asked = maps["lb_reverse_sk"]
        self._backends, self._members = maps["lb_backends"], maps["lb_members"]

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
