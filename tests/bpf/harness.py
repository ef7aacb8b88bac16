"""A node with two endpoints that are only test-run: real devices, maps filled by hand.

Nothing is attached. `Rig.send` gives a frame to one of the loaded programs, inside a namespace
where the devices exist, and returns what the program said, did to the frame, and told user space.
"""

from __future__ import annotations

import itertools
import os
import platform
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pytest
from attrs import field, frozen

from pyciliumlib.conntrack.model import FlowEntry, signed32
from pyciliumlib.conntrack.program import kernel_clock
from pyciliumlib.flow import DropReason
from pyciliumlib.flow.metrics import Metrics
from pyciliumlib.identity import addr_hash
from pyciliumlib.kernel import Map, Object, ObjectSpec, Program
from pyciliumlib.kernel.ring import RingBuffer
from pyciliumlib.net import Netlink, NetNS
from pyciliumlib.policy import table
from pyciliumlib.policy.entries import KEY_DTYPE, VALUE_DTYPE, PolicyEntries
from pyciliumlib.policy.grouped import GroupedEntries
from pyciliumlib.policy.nodes import PolicyNodes
from pyciliumlib.resources import object_path
from pyciliumlib.types.addresses import address_to_bytes, parse_address
from tests.bpf import packets

OK, SHOT, REDIRECT = 0, 2, 7
CLIENT, SERVER, HOST = 1, 2, 3
CLIENT_IDENTITY, SERVER_IDENTITY, PEER_IDENTITY, HOST_IDENTITY = 1001, 1002, 2003, 1
INGRESS, EGRESS = 0, 1
FROM, TO = "from_endpoint", "to_endpoint"
IPCACHE_CELLS: Final = 64

_DROP, _TRACE, _VERDICT = 1, 4, 5
_SIZES = {
    "policies": 16,
    "policy_template": 4096,
    "ipcache": 64,
    "ipcache_rev": IPCACHE_CELLS,
    "flows": 4096,
    "pending": 4096,
    "fragments": 1024,
}
_MAX_ENDPOINTS: Final = 8
_serial = itertools.count()


def jiffies() -> int:
    """The kernel's clock as the programs read it."""
    return kernel_clock().jiffies(time.clock_gettime_ns(time.CLOCK_MONOTONIC))


@frozen
class Outcome:
    """What a program did with one frame. `events` are records of `struct event`, in order."""

    action: int
    packet: bytes
    mark: int
    events: tuple[Any, ...] = field(repr=False)

    @property
    def drop(self) -> int:
        """The reason of the drop event, 0 without one."""
        reasons = [event.reason for event in self.events if event.type == _DROP]
        assert len(reasons) <= 1
        return reasons[0] if reasons else 0

    @property
    def verdicts(self) -> list[tuple[int, int, int]]:
        """Direction, reason and rule cookie of each policy verdict."""
        return [(e.direction, e.reason, e.rule) for e in self.events if e.type == _VERDICT]

    @property
    def traces(self) -> list[Any]:
        return [event for event in self.events if event.type == _TRACE]

    @property
    def passed(self) -> bool:
        return self.action != SHOT

    def __str__(self) -> str:
        reason = f", {DropReason(self.drop)!s}" if self.drop else ""
        return f"action {self.action}{reason}, verdicts {self.verdicts}"


@frozen
class Devices:
    """The namespace and the numbers of the host-side devices in it, by endpoint."""

    netns: NetNS
    ifindex: Mapping[int, int]
    uplink: int


def _route(netns: NetNS) -> None:
    """Forward whatever is not the namespace's own, by the uplink."""
    script = """
        sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
        ip link set eth0 up && ip link set wire up
        ip route add default dev eth0 && ip -6 route add default dev eth0
    """
    done = netns.call(lambda: subprocess.run(["sh", "-ec", script], capture_output=True, text=True))
    assert done.returncode == 0, done.stderr


@contextmanager
def devices() -> Iterator[Devices]:
    """A namespace of our own with one veth pair for each endpoint, and one for the world."""
    with ExitStack() as stack:
        netns = stack.enter_context(NetNS.create(f"pclT{os.getpid()}-{next(_serial)}"))
        stack.callback(netns.delete)
        netlink = stack.enter_context(Netlink(netns))
        made = [netlink.add_veth(f"lxc{n}", f"pod{n}").ifindex for n in (CLIENT, SERVER)]
        # the packets of the tests all go to this address
        uplink = netlink.add_veth("eth0", "wire", mac=packets.CLIENT_NODE_MAC).ifindex
        _route(netns)
        yield Devices(netns, dict(zip((CLIENT, SERVER), made, strict=True)), uplink)


class Rig:
    """One loaded object with two endpoints, their policies in both generations, and the ring."""

    def __init__(self, where: Devices, loaded: Object, spec: ObjectSpec, stack: ExitStack) -> None:
        self.where = where
        self.maps = loaded.maps
        self.programs: Mapping[str, Program] = loaded.programs
        self.config = dict(spec.config)
        self._event = spec.type("event")
        self._ring = stack.enter_context(RingBuffer(self.maps["events"], self._event.dtype))
        template = self.maps["policies"].spec.inner
        assert template is not None
        self._tries = {
            (generation, endpoint): stack.enter_context(template.create())
            for generation in (0, 1)
            for endpoint in (CLIENT, SERVER, HOST)
        }
        self._nodes = PolicyNodes(self.maps["policy_nodes"], self.maps["policy_entries"])
        self._entries = dict.fromkeys(self._tries, PolicyEntries.empty())

    # ------------------------------------------------------------------ state

    def reset(self) -> None:
        """Both endpoints in place and ready, everything denied, no flows, counters at zero."""
        for name in ("flows", "pending", "fragments", "ipcache", "endpoints", "devices"):
            if name in self.maps:
                self.maps[name].clear()
        for generation, endpoint in self._tries:
            self.clear_rules(endpoint, generation)
        for endpoint in (CLIENT, SERVER, HOST):
            self.set_ready(endpoint)
        self.maps["policy_generation"][0] = 0
        for name in ("metrics", "events_lost"):
            self._zero(self.maps[name])
        if "endpoints" in self.maps:
            self._place_endpoints()
        for family in packets.FAMILIES:
            self.maps["ipcache"][family.peer] = {"identity": PEER_IDENTITY, "flags": 0}
        self.drain()

    def _zero(self, counters: Map) -> None:
        keys, values = counters.lookup_batch()
        counters.update_batch(keys, np.zeros_like(values))

    def _place_endpoints(self) -> None:
        for family in packets.FAMILIES:
            self.place(CLIENT, family.client)
            self.place(CLIENT, family.client_second)
            self.place(SERVER, family.server)
        for endpoint, mac in ((CLIENT, packets.CLIENT_NODE_MAC), (SERVER, packets.SERVER_NODE_MAC)):
            self.maps["devices"][self.where.ifindex[endpoint]] = {
                "endpoint": endpoint,
                "node_mac": _mac(mac),
            }

    def place(self, endpoint: int, address: str, identity: int = 0) -> None:
        """Say that an address is the endpoint's; bumps nothing."""
        client = endpoint == CLIENT
        self.maps["endpoints"][address] = {
            "ifindex": self.where.ifindex[endpoint],
            "identity": identity or (CLIENT_IDENTITY if client else SERVER_IDENTITY),
            "id": endpoint,
            "flags": 0,
            "mac": _mac(packets.CLIENT_MAC if client else packets.SERVER_MAC),
            "node_mac": _mac(packets.CLIENT_NODE_MAC if client else packets.SERVER_NODE_MAC),
        }

    def place_host(self) -> None:
        """Make the node itself an endpoint, and the uplink the device where it is governed."""
        for address in (*(family.host for family in packets.FAMILIES), "::1"):
            self.maps["endpoints"][address] = {
                "ifindex": 0,
                "identity": HOST_IDENTITY,
                "id": HOST,
                "flags": 1,
                "mac": bytes(6),
                "node_mac": bytes(6),
            }
        self.maps["devices"][self.where.uplink] = {"endpoint": HOST, "node_mac": bytes(6)}

    def set_ready(self, endpoint: int, ready: bool = True) -> None:
        """Whether the endpoint's tries are where the programs look for them."""
        policies = self.maps["policies"]
        for generation in (0, 1):
            slot = generation * _MAX_ENDPOINTS + endpoint
            if not ready:
                policies.delete(slot)
            elif slot not in policies:
                policies[slot] = self._tries[generation, endpoint]

    def rule(
        self,
        endpoint: int,
        direction: int,
        *,
        identity: int = 0,
        proto: int = 0,
        port: int = 0,
        bits: int | None = None,
        deny: bool = False,
        proxy: int = 0,
        cookie: int = 0,
        priority: int = 0,
        action: int | None = None,
        generation: int = 0,
    ) -> None:
        """Write one policy entry; `bits` of the port are fixed, all of them if there is a port."""
        if bits is None:
            bits = 16 if port else 0
        lpm_bits = 8 + bits if proto else 0
        if action is None:
            action = 255 if deny else 2 if proxy else 1
        key = {
            "prefixlen": 40 + lpm_bits,
            "identity": identity,
            "direction": direction,
            "proto": proto,
            "port": port,
        }
        value = {
            "proxy_port": proxy,
            "flags": int(deny),
            "lpm_bits": lpm_bits,
            "precedence": (0xFFFFFF - priority) << 8 | action,
            "rule": cookie,
            "auth_type": 0,
            "pad": (0, 0, 0),
        }
        columns = zip((key, value), (KEY_DTYPE, VALUE_DTYPE), strict=True)
        self.rules(
            endpoint,
            *(np.array([tuple(row.values())], dtype) for row, dtype in columns),
            generation=generation,
        )

    def rules(self, endpoint: int, keys: Any, values: Any, generation: int = 0) -> None:
        """Write many entries beside those that are there, given as columns."""
        new = PolicyEntries(keys, values)
        held = self._entries[generation, endpoint].without_keys_of(new)
        self._write(endpoint, generation, PolicyEntries.concatenate([held, new]))

    def clear_rules(self, endpoint: int, generation: int = 0) -> None:
        self._write(endpoint, generation, PolicyEntries.empty())

    def _write(self, endpoint: int, generation: int, entries: PolicyEntries) -> None:
        table.sync(GroupedEntries.of(entries), self._tries[generation, endpoint], self._nodes)
        self._entries[generation, endpoint] = entries

    @contextmanager
    def policy_rows(self, endpoint: int) -> Iterator[tuple[Any, Any]]:
        """Keys and values of the endpoint's map, to be changed; written back."""
        held = self._tries[0, endpoint]
        keys, values = held.lookup_batch()
        yield keys, values
        held.update_batch(keys, values)

    def allow_all(self, *endpoints: int) -> None:
        """No policy: everything may come and go, as for an endpoint that no rule selects."""
        for endpoint in endpoints or (CLIENT, SERVER):
            for direction in (INGRESS, EGRESS):
                self.rule(endpoint, direction)

    def set_identity(self, prefix: str, identity: int) -> None:
        """Write an ipcache entry; bumps nothing."""
        self.maps["ipcache"][prefix] = {"identity": identity, "flags": 0}

    def bump_policy(self, endpoint: int) -> None:
        for cell in (endpoint, 0):
            self.maps["policy_rev"][cell] += 1

    def bump_address(self, address: str) -> None:
        data = address_to_bytes(parse_address(address))
        for cell in (2 + addr_hash(data) % (IPCACHE_CELLS - 2), 0):
            self.maps["ipcache_rev"][cell] += 1

    def bump_prefixes(self) -> None:
        for cell in (1, 0):
            self.maps["ipcache_rev"][cell] += 1

    # ------------------------------------------------------------------ packets

    def send(
        self, hook: str, endpoint: int, frame: bytes, mark: int = 0, *, came_by: int = 0
    ) -> Outcome:
        """Run a program as at the endpoint's device and collect what it told.

        `came_by` is the device by which the node received the frame, 0 if it made it itself. The
        test is skipped where a test-run cannot say so.
        """
        program = self.programs[hook]
        ifindex = self.where.uplink if endpoint == HOST else self.where.ifindex[endpoint]
        context = {"ifindex": ifindex, "mark": mark}
        if came_by:
            context["ingress_ifindex"] = came_by
            if _release() < (5, 16):
                pytest.skip("test-runs take no ingress_ifindex before Linux 5.16")
        with self.where.netns.enter():
            result = program.run(frame, context)
        after = result.ctx["mark"]
        assert isinstance(after, int)
        return Outcome(result.retval, result.packet, after, self.drain())

    def drain(self) -> tuple[Any, ...]:
        """The events since the last call."""
        return tuple(self._event.decode(row.tobytes()) for row in self.drain_array())

    def drain_array(self) -> npt.NDArray[Any]:
        """The same as one structured array."""
        return self._ring.drain()

    # ------------------------------------------------------------------ what is in the maps

    def flow_count(self) -> tuple[int, int]:
        """Entries in `flows` and in `pending`, expired ones too."""
        return len(self.maps["flows"]), len(self.maps["pending"])

    def only_flow(self, table: str = "flows") -> Any:
        """The value of the only entry of a table."""
        (value,) = self.maps[table].values()
        return value

    def only_entry(self, table: str = "flows") -> FlowEntry:
        """The same, with its key, as user space shows it: from the opener's end."""
        keys, values = self.maps[table].lookup_batch()
        ((key, value),) = zip(keys, values, strict=True)
        now = kernel_clock().jiffies64(time.clock_gettime_ns(time.CLOCK_MONOTONIC))
        return FlowEntry.decode(key, value, kernel_clock(), now, table == "flows")

    def forget_flows(self) -> None:
        """Delete every entry of both tables."""
        for name in ("flows", "pending"):
            self.maps[name].clear()

    def expire(self, table: str = "flows", ago: int | None = None) -> None:
        """Let the life of every entry be over, so many jiffies ago or else a second."""
        flows = self.maps[table]
        keys, values = flows.lookup_batch()
        clock = kernel_clock()
        then = clock.jiffies64(time.clock_gettime_ns(time.CLOCK_MONOTONIC)) - (ago or clock.hz)
        values["expires"] = values["due"] = then & 0xFFFFFFFF
        values["expires_high"] = then >> 32 & 0xFF
        flows.update_batch(keys, values)

    def seconds_left(self, table: str = "flows") -> float:
        """How long the only entry of a table still lives."""
        return signed32(self.only_flow(table).expires - jiffies()) / kernel_clock().hz

    def metrics(self) -> dict[tuple[int, int], tuple[int, int]]:
        """(direction, reason) to packets and bytes, of those that are not zero."""
        rows = Metrics.read(self.maps["metrics"], self.maps["events_lost"])
        return {(row.direction, row.reason): (row.packets, row.bytes) for row in rows}


@contextmanager
def rig(
    where: Devices, name: str = "endpoint", sizes: Mapping[str, int] | None = None, **config: Any
) -> Iterator[Rig]:
    """Load an object with other sizes or another configuration, and reset it."""
    spec = ObjectSpec.open(object_path(name))
    for map_name, entries in {**_SIZES, **(sizes or {})}.items():
        spec.resize(map_name, entries)
    spec.config.update(
        {
            "max_endpoints": _MAX_ENDPOINTS,
            "ipcache_cells": IPCACHE_CELLS,
            "jiffies_per_second": kernel_clock().hz,
            **config,
        }
    )
    with ExitStack() as stack:
        made = Rig(where, stack.enter_context(spec.load()), spec, stack)
        made.reset()
        yield made


def _release() -> tuple[int, int]:
    major, minor = platform.release().split(".")[:2]
    return int(major), int(minor)


def _mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))
