"""The rig of the endpoint programs with services in its maps, and the packets of a translated flow.

What a program should make of a packet is built by scapy from the addresses that it should have, so
every byte and every checksum of an answer is compared.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import numpy as np
from attrs import frozen
from scapy.layers.l2 import Ether

from pyciliumlib.kernel import ObjectSpec, Program
from pyciliumlib.loadbalancer import LoadBalancerConfig, LocalNode, Service
from pyciliumlib.loadbalancer.table import ServiceTable
from pyciliumlib.resources import object_path
from pyciliumlib.types import address_to_bytes, parse_address
from tests.bpf import packets
from tests.bpf.harness import CLIENT, FROM, SERVER, TO, Devices, Outcome, Rig, rig
from tests.bpf.packets import V4, Family

CONFIG: Final = LoadBalancerConfig(table_size=251, algorithm_annotation=True)
#: The service loopback addresses.
LOOPBACK: Final = {4: "169.254.42.1", 6: "fe80::1"}
VIP: Final = {4: "10.96.0.10", 6: "fd96::10"}
OTHER_VIP: Final = {4: "10.96.0.11", 6: "fd96::11"}
NODE: Final = {4: "192.0.2.1", 6: "2001:db8:2::1"}
HERE: Final = LocalNode("here", list(NODE.values()))
PORT, TARGET, SPORT = 80, 8080, 40000
FLOW_SERVICE, FLOW_BACKEND = 8, 16
_SIZES: Final = {
    "lb_services": 64,
    "lb_members": 64,
    "lb_backends": 64,
    "lb_backend_counters": 64,
    "lb_revisions": 64,
    "lb_service_counters": 64,
    "lb_frontends": 64,
    "lb_slots": 512,
    "lb_affinity": 64,
}
_DATA: Final = (
    "lb_services", "lb_members", "lb_affinity", "lb_backends", "lb_revisions", "lb_frontends",
    "lb_slots", "lb_filter", "lb_service_counters", "lb_backend_counters",
)  # fmt: skip


class ServiceRig:
    """A rig, the table that fills its maps, and what the two pods say."""

    def __init__(self, bare: Rig, config: LoadBalancerConfig = CONFIG) -> None:
        self.rig = bare
        self.maps = bare.maps
        self.table = self._table(config)

    def _table(self, config: LoadBalancerConfig, node: LocalNode = HERE) -> ServiceTable:
        return ServiceTable(self.maps, config, node)

    def reset(self, config: LoadBalancerConfig = CONFIG, node: LocalNode = HERE) -> None:
        """No services, and the rest as `Rig.reset` makes it."""
        self.rig.reset()
        for name in _DATA:
            found = self.maps[name]
            keys, values = found.lookup_batch()
            if name in ("lb_services", "lb_members", "lb_affinity"):
                found.delete_batch(keys)
            else:
                found.update_batch(keys, np.zeros_like(values))
        self.maps["lb_ranges"].clear()
        self.table = self._table(config, node)

    # ------------------------------------------------------------------ services

    def put(self, *services: Service) -> None:
        self.table.apply(self.table.plan(services, whole=False))

    def only(self, *services: Service) -> None:
        """Hold these and no others."""
        self.table.apply(self.table.plan(services))

    def backend_number(self, address: str, port: int = TARGET) -> int:
        """The number that the maps have for a backend."""
        wanted = parse_address(address), port
        (number,) = [
            number
            for number, backend in self.table.backends.items()
            if (backend.address, backend.port) == wanted
        ]
        return number

    # ------------------------------------------------------------------ packets

    def send(self, hook: str, endpoint: int, frame: bytes) -> Outcome:
        return self.rig.send(hook, endpoint, frame)

    def from_client(self, frame: bytes) -> Outcome:
        return self.rig.send(FROM, CLIENT, frame)

    def from_server(self, frame: bytes) -> Outcome:
        return self.rig.send(FROM, SERVER, frame)

    def from_stack(self, frame: bytes) -> Outcome:
        return self.rig.send(TO, CLIENT, frame)

    # ------------------------------------------------------------------ flows

    def entry(self, one: str, other: str, table: str = "flows") -> Any:
        """The entry between two addresses, whatever the ports; None if there is none."""
        keys = self._keys(one, other, table)
        return self.maps[table].lookup(keys[0]) if keys else None

    def forget(self, one: str, other: str, table: str = "flows") -> None:
        """Delete the entries between two addresses."""
        for key in self._keys(one, other, table):
            self.maps[table].delete(key)

    def _keys(self, one: str, other: str, table: str) -> list[Any]:
        wanted = {address_to_bytes(parse_address(text)) for text in (one, other)}
        keys, _ = self.maps[table].lookup_batch()
        return [key for key in keys if {key["low"].tobytes(), key["high"].tobytes()} == wanted]


@contextmanager
def service_rig(where: Devices, **config: Any) -> Iterator[ServiceRig]:
    """The endpoint programs with room for services."""
    loopback = {
        "loopback_ipv4": int.from_bytes(ipaddress.ip_address(LOOPBACK[4]).packed, "big"),
        "loopback_ipv6": np.frombuffer(
            ipaddress.ip_address(LOOPBACK[6]).packed, np.uint32
        ).tolist(),
        "flow_seed_ipv4": CONFIG.maglev().seed.flow.seed_ipv4,
        "flow_seed_ipv6": CONFIG.maglev().seed.flow.seed_ipv6,
    }
    with rig(where, sizes=_SIZES, **{**loopback, **config}) as made:
        yield ServiceRig(made)


#: What the programs of a device must be told as those of the endpoints are.
_TOLD: Final = (
    "max_endpoints", "ipcache_cells", "jiffies_per_second", "loopback_ipv4", "loopback_ipv6",
    "flow_seed_ipv4", "flow_seed_ipv6",
)  # fmt: skip


@contextmanager
def device_rig(where: Devices) -> Iterator[ServiceRig]:
    """The same, and the programs of the node's device over the same maps."""
    with service_rig(where) as made, device_programs(made) as programs:
        made.rig.programs = {**made.rig.programs, **programs}
        yield made


@contextmanager
def device_programs(rig: ServiceRig, node_port: bool = True) -> Iterator[Mapping[str, Program]]:
    """The programs of the node's device over the maps of a rig."""
    spec = ObjectSpec.open(object_path("host"))
    shared = {n: m for n, m in rig.maps.items() if n[:1] != "." and n in spec.maps}
    for name, table in shared.items():
        spec.resize(name, table.spec.max_entries)
    spec.config.update({name: rig.rig.config[name] for name in _TOLD})
    spec.config.update({"node_port": node_port, "host_firewall": True})
    with spec.load(reuse=shared) as loaded:
        yield loaded.programs


@frozen
class Pair:
    """One transport of one family between the client, the service and a backend."""

    family: Family
    transport: str
    backend: str
    #: The client's second address is ordered otherwise against the service's than its first.
    second: bool = False

    @property
    def client(self) -> str:
        return self.family.client_second if self.second else self.family.client

    @property
    def vip(self) -> str:
        return VIP[self.family.version]

    @property
    def target(self) -> int:
        """The backend's port; SCTP cannot change it."""
        return PORT if self.transport == "sctp" else TARGET

    @property
    def protocol(self) -> str:
        return self.transport.upper()

    def service(self, *backends: str, **options: Any) -> Service:
        """The service with the pair's backend, or others."""
        host = {4: "{}", 6: "[{}]"}[self.family.version]
        ports = [f"{host.format(address)}:{self.target}/{self.protocol}"
                 for address in backends or (self.backend,)]  # fmt: skip
        return Service("web", [f"{host.format(self.vip)}:{PORT}/{self.protocol}"], ports, **options)

    def packet(
        self, src: str, sport: int, dst: str, dport: int, flags: str = packets.ACK, **more: Any
    ) -> bytes:
        build = getattr(self.family, self.transport)
        if self.transport == "tcp":
            more["flags"] = flags
        return bytes(build(src, dst, dport, sport=sport, **more))

    def request(self, flags: str = packets.ACK, **more: Any) -> bytes:
        """What the client sends to the service."""
        return self.packet(self.client, SPORT, self.vip, PORT, flags, **more)

    def request_inside(self, flags: str = packets.ACK, **more: Any) -> bytes:
        """The same, as the backend gets it."""
        return self.packet(self.client, SPORT, self.backend, self.target, flags, **more)

    def answer_inside(self, flags: str = packets.ACK, **more: Any) -> bytes:
        """What the backend sends."""
        return self.packet(self.backend, self.target, self.client, SPORT, flags, **more)

    def answer(self, flags: str = packets.ACK, **more: Any) -> bytes:
        """The same, as the client gets it."""
        return self.packet(self.vip, PORT, self.client, SPORT, flags, **more)


def establish(rig: ServiceRig, pair: Pair) -> None:
    """A connection to the pair's backend, over the stack or on the node."""
    hook = rig.from_server if pair.backend == pair.family.server else rig.from_stack
    assert rig.from_client(pair.request(packets.SYN)).passed
    assert hook(pair.answer_inside(packets.SYN_ACK)).passed
    assert rig.from_client(pair.request(packets.ACK)).passed


def delivered(frame: bytes, to: int) -> bytes:
    """The frame as an endpoint of the node gets it: a hop less, and its device's addresses."""
    packet = Ether(frame)
    macs = {
        CLIENT: (packets.CLIENT_MAC, packets.CLIENT_NODE_MAC),
        SERVER: (packets.SERVER_MAC, packets.SERVER_NODE_MAC),
    }
    packet.dst, packet.src = macs[to]
    if packet.payload.version == 4:
        packet.payload.ttl -= 1
        del packet.payload.chksum
    else:
        packet.payload.hlim -= 1
    return bytes(packet)


def family_of(address: str) -> Family:
    return packets.V6 if ":" in address else V4
