"""The load balancer's maps, read as the program reads them, in plain Python."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from pyciliumlib.flow import DropReason
from pyciliumlib.loadbalancer import FlowTuple, LoadBalancerConfig, Service
from pyciliumlib.loadbalancer.filter import OTHER_PORTS, filter_hashes, port_bit
from pyciliumlib.loadbalancer.rows import is_open
from pyciliumlib.loadbalancer.slots import ROW
from pyciliumlib.types import MapLike, Protocol, address_to_bytes, parse_address

MAGLEV, DENY, OTHER, CLUSTER_IP = 1, 2, 4, 8
MAGLEV_INSIDE = 256
EXTERNAL, INTERNAL = 0, 1


class Reader:
    """Answers for a client's first packet, and checks that everything leads somewhere."""

    def __init__(self, maps: Mapping[str, MapLike], config: LoadBalancerConfig) -> None:
        self._maps, self._hash = maps, config.maglev().seed.flow

    def ask(
        self, client: str, port: int, to: str, dport: int, protocol: str
    ) -> tuple[int, set[str]]:
        """The drop reason (0 none, -1 not a service's), and the backends that it may meet."""
        number = Protocol.parse(protocol)
        address = address_to_bytes(parse_address(to))
        if not (self._bit(address, port_bit(dport, number)) or self._bit(address, OTHER_PORTS)):
            return -1, set()
        entry = self._entry(address, dport, number) or self._entry(address, 0, 0)
        if entry is None:
            return -1, set()
        if entry.flags & OTHER:
            return DropReason.NO_SERVICE_BACKEND, set()
        if entry.flags & CLUSTER_IP:
            return DropReason.IS_CLUSTER_IP, set()
        if entry.ranges and self._inside(entry.ranges, client) is bool(entry.flags & DENY):
            return DropReason.LB_SOURCE_RANGE, set()
        slots = self._slots(entry)
        if not len(slots):
            return DropReason.NO_SERVICE_BACKEND, set()
        if entry.flags & MAGLEV:
            flow = FlowTuple(client, port, dport, number)
            found = slots[self._hash.of(flow, affinity=bool(entry.affinity)) % len(slots)]
            return 0, {self._address(int(found))}
        return 0, {self._address(int(found)) for found in slots}

    def ask_inside(
        self, to: str, dport: int, protocol: str, client: tuple[str, int] | None = None
    ) -> tuple[int, set[str]]:
        """The same of a client in the cluster; without one, of a socket: chance chooses for it."""
        number, address = Protocol.parse(protocol), address_to_bytes(parse_address(to))
        if not (self._bit(address, port_bit(dport, number)) or self._bit(address, OTHER_PORTS)):
            return -1, set()
        entry = (
            self._entry(address, dport, number, INTERNAL)
            or self._entry(address, dport, number)
            or self._entry(address, 0, 0)
        )
        if entry is None:
            return -1, set()
        found = self._slots(entry)
        if entry.flags & OTHER or not len(found):
            return DropReason.NO_SERVICE_BACKEND, set()
        if client is not None and entry.flags & MAGLEV_INSIDE:
            flow = FlowTuple(*client, dport, number)
            slot = self._hash.of(flow, affinity=bool(entry.affinity)) % len(found)
            return 0, {self._address(int(found[slot]))}
        return 0, {self._address(int(backend)) for backend in found}

    def check_links(self) -> None:
        """Every entry's slots name backends that are there and that the service has."""
        for _, entry in self._maps["lb_services"].items():
            for backend in {int(found) for found in self._slots(entry)}:
                row = self._maps["lb_backends"].lookup(backend)
                assert backend and row.revision % 2 == 1, (entry, backend)
                member = {"service": entry.id, "backend": backend}
                assert self._maps["lb_members"].lookup(member) in (0, 1, 2, 3)

    def _check_frontends(self) -> None:
        """Every entry's number is its address's alone, and both know the same of it."""
        whose: dict[int, tuple[str, int, int]] = {}
        for key, entry in self._maps["lb_services"].items():
            if entry.flags & OTHER:
                continue
            place = str(key.addr), key.port, key.proto
            assert entry.frontend and whose.setdefault(entry.frontend, place) == place
            row = self._maps["lb_frontends"].lookup(entry.frontend)
            assert (str(row.addr), row.port, row.proto) == place
            assert row.revision == entry.frontend_revision
            assert (row.service, row.affinity) == (entry.id, entry.affinity)

    def check(self, services: Collection[Service]) -> None:
        """Exactly these services are there, by their frontends; nothing else is left."""
        self.check_links()
        self._check_frontends()
        frontends = [(one, f) for one in services for f in one.frontends]
        wanted = {(str(f.address), f.port) for one, f in frontends if is_open(one, f)}
        others = {(str(f.address), 0) for _, f in frontends if f.type != "LocalRedirect"}
        there = {(str(key.addr), key.port) for key, _ in self._maps["lb_services"].items()}
        assert there == wanted | others
        members = {(key.service, key.backend) for key, _ in self._maps["lb_members"].items()}
        open_ones = {one.key: one for one, frontend in frontends if is_open(one, frontend)}
        assert len(members) == sum(len(one.all_backends) for one in open_ones.values())
        _, backends = self._maps["lb_backends"].lookup_batch()
        alive = int((backends["revision"] % 2 == 1).sum())
        assert alive == len({b.key for one in services for b in one.all_backends})

    def _bit(self, address: bytes, what: int) -> bool:
        cells = self._maps["lb_filter"]
        found = filter_hashes(
            np.frombuffer(address, np.uint8)[np.newaxis], np.array([what], np.uint64)
        )
        place = int(found[0]) % (64 * cells.max_entries)
        return bool(int(cells.lookup(place // 64)) >> place % 64 & 1)

    def _entry(self, address: bytes, port: int, protocol: int, scope: int = EXTERNAL) -> Any:
        key = {"addr": address, "port": port, "proto": protocol, "scope": scope, "pad": bytes(4)}
        services = self._maps["lb_services"]
        return services.lookup(key) if key in services else None

    def _inside(self, ranges: int, client: str) -> bool:
        key = {"prefixlen": 160, "ranges": ranges, "addr": client}
        found = self._maps["lb_ranges"]
        return key in found and bool(found.lookup(key))

    def _slots(self, entry: Any) -> np.ndarray[Any, Any]:
        _, rows = self._maps["lb_slots"].lookup_batch()
        first = entry.first
        assert first % ROW == 0
        return rows["backend"].reshape(-1)[first : first + entry.slots]

    def _address(self, number: int) -> str:
        return str(self._maps["lb_backends"].lookup(number).addr)
