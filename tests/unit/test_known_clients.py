"""Clients with session affinity, as the maps remember them."""

from __future__ import annotations

import sys
import time
from typing import Any

import pytest

from pyciliumlib.conntrack import Clock
from pyciliumlib.kernel import MapType, ObjectSpec
from pyciliumlib.loadbalancer.affinity import KnownClients
from pyciliumlib.resources import object_path
from pyciliumlib.testing import FakeMap
from pyciliumlib.types import Address, parse_address

CLOCK = Clock(250, 0)
CLIENTS = (parse_address("192.0.2.7"), parse_address("2001:db8::7"))


@pytest.fixture
def clients() -> FakeMap:
    spec = ObjectSpec.open(object_path("socket")).maps["lb_affinity"]
    return FakeMap(MapType.HASH, spec.key, spec.value, 16, "lb_affinity")


def remember(clients: FakeMap, client: Any, netns: int, ago: int, backend: int = 3) -> None:
    now = CLOCK.jiffies(time.clock_gettime_ns(time.CLOCK_MONOTONIC))
    clients.update(
        {"client": client, "service": 5, "netns": netns},
        {"backend": backend, "last_used": (now - ago * CLOCK.hz) & 0xFFFFFFFF},
    )


AGO = pytest.mark.parametrize(("ago", "met"), [(0, 3), (9, 3), (10, 0), (100, 0)])


@AGO
def test_namespaces(clients: FakeMap, ago: int, met: int) -> None:
    """One is remembered for each version of IP, until it was silent for the timeout."""
    remember(clients, bytes(8) + (77).to_bytes(8, sys.byteorder), 4, ago)
    ask = KnownClients({"lb_affinity": clients}, CLOCK).of_namespace
    assert ask(77, 4, 5, timeout=10) == met
    assert ask(77, 6, 5, 10) == ask(78, 4, 5, 10) == ask(77, 4, 6, 10) == 0


@AGO
@pytest.mark.parametrize("client", CLIENTS, ids=str)
def test_addresses(clients: FakeMap, client: Address, ago: int, met: int) -> None:
    """The same of a client that is known by its address."""
    remember(clients, client, 0, ago)
    ask = KnownClients({"lb_affinity": clients}, CLOCK).of_address
    assert ask(client, 5, timeout=10) == met
    assert ask(client, 6, 10) == ask(parse_address("192.0.2.8"), 5, 10) == 0
