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
    """Reads the maps of flows; owns none of them.

    A connection stands if its next packet goes to the backend that it has: also where its service
    has changed since its last one, as long as the service still has that backend.
    """

    def __init__(
        self, maps: Mapping[str, MapLike], clock: Clock, sources: Mapping[int, Address | None]
    ) -> None:
        """`sources` are the addresses by which backends of each IP version know the balancer."""
        self._sources = sources
        self._flows, self._pending = maps["lb_flows"], maps["lb_pending"]
        self._backends, self._revisions = maps["lb_backends"], maps["lb_revisions"]
        self._services, self._members = maps["lb_services"], maps["lb_members"]
        self._clock = clock

    def read(self, backends: Mapping[int, Backend]) -> Iterator[Connection]:
        """All that stand and have one of `backends`, which are by their numbers."""
        # A connection moves from the pending to the flows, so in this order none is missed.
        pending_keys, pending = self._pending.lookup_batch()
        keys, flows = self._flows.lookup_batch()
        now = self._now()
        # The programs pass over one that has expired, and pend the connection anew.
        known = set(_rows(keys[_left(flows, now) >= 0]).tolist()) if len(pending_keys) else set()
        new = np.array([row not in known for row in _rows(pending_keys).tolist()], np.bool_)
        keys = np.concatenate([pending_keys[new], keys])
        flows = np.concatenate([pending[new], flows])
        for row in self._standing(keys, flows, backends, now).nonzero()[0]:
            backend = backends[int(flows[row]["backend"])]
            yield self._decode(keys[row], flows[row], backend, bool(row >= new.sum()), now)

    def backend_of(
        self, client: Client, to: Frontend, backends: Mapping[int, Backend]
    ) -> Backend | None:
        """The backend that this connection has, or None if it is not known."""
        key = np.zeros(1, self._flows.key_dtype)
        key["client"] = np.frombuffer(address_to_bytes(client.address), np.uint8)
        key["service"] = np.frombuffer(address_to_bytes(to.address), np.uint8)
        key["client_port"], key["service_port"] = client.port, to.port
        key["proto"] = int(to.protocol)
        rows = []
        for table in (self._pending, self._flows):
            with contextlib.suppress(NotFoundError):
                rows.append(table.lookup(key[0]))
        now = self._now()
        found = next((row for row in reversed(rows) if signed32(row.expires - now) >= 0), None)
        if found is None:
            return None
        if self._backends.lookup(found.backend).revision != found.backend_rev:
            return None
        if self._revisions.lookup(found.service) != found.service_rev:
            try:
                service = self._services.lookup(_service_keys(key, self._services.key_dtype)[0])
                self._members.lookup((found.service, found.backend))
            except NotFoundError:
                return None
            if service.id != found.service:
                return None
        return backends.get(found.backend)

    def _standing(
        self, keys: npt.NDArray[Any], flows: npt.NDArray[Any], backends: Mapping[int, Backend],
        now: int,
    ) -> npt.NDArray[np.bool_]:  # fmt: skip
        """Which of these stand and have one of `backends`."""
        _, rows = self._backends.lookup_batch()
        _, revisions = self._revisions.lookup_batch()
        wanted = np.isin(flows["backend"], np.array(list(backends), np.uint32))
        same = rows["revision"][flows["backend"]] == flows["backend_rev"]
        stands: npt.NDArray[np.bool_] = wanted & same & (_left(flows, now) >= 0)
        older = stands & (revisions[flows["service"]] != flows["service_rev"])
        stands[older] = self._kept(keys[older], flows[older])
        return stands

    def _kept(self, keys: npt.NDArray[Any], flows: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
        """Which of these keep their backend when they are decided again, as the programs do it."""
        if not len(keys):
            return np.zeros(0, np.bool_)
        entries, services = self._services.lookup_batch()
        ids = dict(zip(_rows(entries).tolist(), services["id"].tolist(), strict=True))
        wanted = _rows(_service_keys(keys, entries.dtype)).tolist()
        same = np.array([ids.get(key, -1) for key in wanted]) == flows["service"]
        members, _ = self._members.lookup_batch()
        pairs = np.zeros(len(flows), members.dtype)
        pairs["service"], pairs["backend"] = flows["service"], flows["backend"]
        found: npt.NDArray[np.bool_] = same & np.isin(_rows(pairs), _rows(members))
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


def _left(flows: npt.NDArray[Any], now: int) -> npt.NDArray[np.int32]:
    """Jiffies until each expires; below 0 it has."""
    left: npt.NDArray[np.int32] = (flows["expires"] - np.uint32(now)).astype(np.int32)
    return left


def _rows(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Each element as its bytes, to be compared whole."""
    return np.ascontiguousarray(array).view(f"V{array.dtype.itemsize}")


def _service_keys(flows: npt.NDArray[Any], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """The keys of the services that flows of these keys are for."""
    made = np.zeros(len(flows), dtype)
    made["addr"], made["port"], made["proto"] = (
        flows["service"], flows["service_port"], flows["proto"],
    )  # fmt: skip
    return made
