"""The connections that the programs know, as values."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from attrs import frozen

from pyciliumlib.conntrack.model import Clock, signed32
from pyciliumlib.errors import NotFoundError
from pyciliumlib.loadbalancer.backend import Backend
from pyciliumlib.loadbalancer.balancer import Client
from pyciliumlib.loadbalancer.kinds import FrontendType
from pyciliumlib.loadbalancer.service import Frontend
from pyciliumlib.types import Address, MapLike, address_from_bytes, address_to_bytes

if TYPE_CHECKING:
    import numpy.typing as npt

# enum lb_flow_flags
_CLOSING: Final = 1
_SNAT: Final = 16


@frozen
class Connection:
    """A client's connection and the backend that has it.

    `known` is true from its second packet on; `expires_in` is in seconds. `nat` is the address and
    port that the backend sees of a connection that is translated.
    """

    client: Client
    to: Frontend
    backend: Backend
    known: bool
    closing: bool
    expires_in: float
    nat: Client | None = None


class Connections:
    """Reads the maps of flows; owns none of them."""

    def __init__(
        self, maps: Mapping[str, MapLike], clock: Clock, sources: Mapping[int, Address | None]
    ) -> None:
        """`sources` are the addresses by which backends of each IP version know the balancer."""
        self._sources = sources
        self._flows, self._pending = maps["lb_flows"], maps["lb_pending"]
        self._backends, self._revisions = maps["lb_backends"], maps["lb_revisions"]
        self._clock = clock

    def read(self, backends: Mapping[int, Backend]) -> Iterator[Connection]:
        """All that live and whose backend is still there; `backends` by their numbers."""
        _, alive = self._backends.lookup_batch()
        _, services = self._revisions.lookup_batch()
        now = self._now()
        for table, known in ((self._flows, True), (self._pending, False)):
            keys, values = table.lookup_batch()
            for row in self._valid(values, alive, services, now).nonzero()[0]:
                backend = backends.get(int(values[row]["backend"]))
                if backend is not None:
                    yield self._decode(keys[row], values[row], backend, known, now)

    def backend_of(
        self, client: Client, to: Frontend, backends: Mapping[int, Backend]
    ) -> Backend | None:
        """The backend that this connection has, or None if it is not known."""
        key = np.zeros(1, self._flows.key_dtype)
        key["client"] = np.frombuffer(address_to_bytes(client.address), np.uint8)
        key["service"] = np.frombuffer(address_to_bytes(to.address), np.uint8)
        key["client_port"], key["service_port"] = client.port, to.port
        key["proto"] = int(to.protocol)
        for table in (self._flows, self._pending):
            with contextlib.suppress(NotFoundError):
                flow = table.lookup(key[0])
                backend, service = flow.backend, flow.service
                if (
                    signed32(flow.expires - self._now()) >= 0
                    and self._backends.lookup(backend).revision == flow.backend_rev
                    and self._revisions.lookup(service) == flow.service_rev
                ):
                    return backends.get(backend)
        return None

    def _valid(
        self, flows: npt.NDArray[Any], backends: npt.NDArray[Any], services: npt.NDArray[Any],
        now: int,
    ) -> npt.NDArray[np.bool_]:  # fmt: skip
        left = (flows["expires"] - np.uint32(now)).astype(np.int32)
        found: npt.NDArray[np.bool_] = (
            (left >= 0)
            & (backends["revision"][flows["backend"]] == flows["backend_rev"])
            & (services[flows["service"]] == flows["service_rev"])
        )
        return found

    def _decode(self, key: Any, value: Any, backend: Backend, known: bool, now: int) -> Connection:
        protocol = int(key["proto"])
        service = address_from_bytes(key["service"].tobytes())
        return Connection(
            Client(address_from_bytes(key["client"].tobytes()), int(key["client_port"])),
            Frontend(service, int(key["service_port"]), protocol, FrontendType.HOST_PORT),
            backend,
            known,
            bool(value["flags"] & _CLOSING),
            signed32(int(value["expires"]) - now) / self._clock.hz,
            self._nat(value, backend),
        )

    def _nat(self, value: Any, backend: Backend) -> Client | None:
        source = self._sources[backend.address.version]
        if not value["flags"] & _SNAT or source is None:
            return None
        return Client(source, int(value["nat_port"]))

    def _now(self) -> int:
        return self._clock.jiffies(time.clock_gettime_ns(time.CLOCK_MONOTONIC)) & 0xFFFFFFFF
