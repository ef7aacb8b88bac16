"""Which backend a client with session affinity met before, as the programs remember it."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping

import numpy as np

from pyciliumlib.conntrack.model import Clock
from pyciliumlib.errors import NotFoundError
from pyciliumlib.types import Address, MapLike, address_to_bytes


class KnownClients:
    """Reads the map of clients; does not own it.

    Answers are numbers of backends, 0 for a client that is unknown or was silent for `timeout`
    seconds; `service` is the service's number.
    """

    def __init__(self, maps: Mapping[str, MapLike], clock: Clock) -> None:
        self._clients, self._clock = maps["lb_affinity"], clock

    def of_address(self, client: Address, service: int, timeout: int) -> int:
        """Of a client that is known by its address."""
        return self._met(address_to_bytes(client), 0, service, timeout)

    def of_namespace(self, cookie: int, version: int, service: int, timeout: int) -> int:
        """Of a network namespace, which is a client for each version of IP."""
        return self._met(bytes(8) + cookie.to_bytes(8, sys.byteorder), version, service, timeout)

    def _met(self, client: bytes, netns: int, service: int, timeout: int) -> int:
        key = np.zeros(1, self._clients.key_dtype)
        key["client"] = np.frombuffer(client, np.uint8)
        key["service"], key["netns"] = service, netns
        try:
            known = self._clients.lookup(key[0])
        except NotFoundError:
            return 0
        now = self._clock.jiffies(time.clock_gettime_ns(time.CLOCK_MONOTONIC))
        silent = (now - known.last_used) & 0xFFFFFFFF
        return int(known.backend) if silent < timeout * self._clock.hz else 0
