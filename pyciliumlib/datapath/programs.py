"""The endpoint programs and their maps, loaded with a configuration."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from pyciliumlib.closeable import Closeable
from pyciliumlib.conntrack import Clock
from pyciliumlib.datapath.config import DatapathConfig
from pyciliumlib.kernel import Map, Object, ObjectSpec
from pyciliumlib.kernel.probe import probe
from pyciliumlib.loadbalancer import NoBackendResponse
from pyciliumlib.resources import object_path

_PEER: Final = "helper_redirect_peer"
#: Maps of which a simulation has its own, so that it leaves no trace.
SCRATCH: Final = frozenset(
    {
        "flows",
        "pending",
        "fragments",
        "metrics",
        "events",
        "events_lost",
        "work",
        "lb_affinity",
        "lb_service_counters",
        "lb_backend_counters",
        "hooks",
        "hook_args",
    }
)


class Programs(Closeable):
    """The endpoint programs over one set of maps, and the same with slots for users' programs."""

    def __init__(self, config: DatapathConfig, clock: Clock, pins: Path | None = None) -> None:
        """`pins` is the directory in which the maps are pinned, or are already."""
        self._config = config
        self._clock = clock
        self._hooked: Object | None = None
        self._hosts: dict[bool, Object] = {}
        spec = endpoint_spec(config, clock)
        self.event = spec.type("event").dtype
        self.plain = spec.load(pins=pins)

    @property
    def maps(self) -> Mapping[str, Map]:
        """The maps of both."""
        return self.plain.maps

    @property
    def hooked(self) -> Object:
        """Those that call the slots; loaded when they are first wanted."""
        if self._hooked is None:
            spec = endpoint_spec(self._config, self._clock, hooks=True)
            self._hooked = spec.load(reuse=shared_maps(self.plain))
        return self._hooked

    def host(self, *, hooks: bool) -> Object:
        """Those of the devices that lead out of the node; loaded when they are first wanted."""
        if hooks not in self._hosts:
            self._hosts[hooks] = load_host(self._config, self._clock, self.plain, hooks=hooks)
        return self._hosts[hooks]

    def close(self) -> None:
        """Let go of all; what is pinned or attached lives on."""
        for loaded in (self.plain, self._hooked, *self._hosts.values()):
            if loaded is not None:
                loaded.close()


def endpoint_spec(config: DatapathConfig, clock: Clock, *, hooks: bool = False) -> ObjectSpec:
    """`endpoint.bpf.c` with its maps as large and its programs as configured, to be loaded."""
    spec = ObjectSpec.open(object_path("endpoint"))
    for name, entries in {**_sizes(config), **config.service_sizes.entries()}.items():
        if name in spec.maps:
            spec.resize(name, entries)
    spec.config.update(_variables(config, clock, hooks))
    spec.config.update(_service_variables(config, spec.maps["lb_filter"].max_entries))
    return spec


def load_host(config: DatapathConfig, clock: Clock, endpoints: Object, *, hooks: bool) -> Object:
    """`host.bpf.c` over the maps of the endpoint programs."""
    spec = ObjectSpec.open(object_path("host"))
    shared = {n: m for n, m in shared_maps(endpoints).items() if n in spec.maps}
    for name, table in shared.items():
        spec.resize(name, table.spec.max_entries)
    spec.config.update(_variables(config, clock, hooks))
    spec.config.update(_service_variables(config, spec.maps["lb_filter"].max_entries))
    spec.config.update({"host_firewall": config.host_firewall, "node_port": config.node_port})
    return spec.load(reuse=shared)


def shared_maps(loaded: Object, without: frozenset[str] = frozenset()) -> dict[str, Map]:
    """The maps of a load that another load may share: not its sections, nor those in `without`."""
    return {n: m for n, m in loaded.maps.items() if n[:1] != "." and n not in without}


def _sizes(config: DatapathConfig) -> dict[str, int]:
    return {
        "policies": 2 * config.max_endpoints,
        "policy_rev": config.max_endpoints,
        "policy_nodes": config.policy_nodes,
        "policy_entries": config.policy_nodes,
        "ipcache": config.ipcache,
        "ipcache_rev": config.ipcache_cells,
        "endpoints": 16 * config.max_endpoints,
        "devices": config.max_endpoints,
        "endpoint_links": config.max_endpoints,
        "flows": config.flows,
        "pending": config.pending,
        "fragments": config.fragments,
        "events": config.event_bytes,
    }


def _variables(config: DatapathConfig, clock: Clock, hooks: bool) -> dict[str, int | bool]:
    peer = config.redirect_peer
    return {
        "max_endpoints": config.max_endpoints,
        "ipcache_cells": config.ipcache_cells,
        "jiffies_per_second": clock.hz,
        "timeout_tcp": config.timeout_tcp,
        "timeout_tcp_syn": config.timeout_tcp_syn,
        "timeout_tcp_fin": config.timeout_tcp_fin,
        "timeout_any": config.timeout_any,
        "timeout_masqueraded": config.timeout_masqueraded,
        "dual_stack": config.dual_stack,
        "redirect_peer": probe(_PEER).has(_PEER) if peer is None else peer,
        "extended_protocols": config.extended_protocols,
        "hooks_enabled": hooks,
        "trace_every_packet": config.trace_every_packet,
    }


def _service_variables(config: DatapathConfig, filter_cells: int) -> dict[str, object]:
    seed = config.services.maglev().seed.flow
    ipv6 = config.service_loopback_ipv6.packed
    return {
        "filter_cells": filter_cells,
        "flow_seed_ipv4": seed.seed_ipv4,
        "flow_seed_ipv6": seed.seed_ipv6,
        "reject_unserved": config.services.no_backend_response is NoBackendResponse.REJECT,
        "loopback_ipv4": int(config.service_loopback_ipv4),
        "loopback_ipv6": [int.from_bytes(ipv6[at : at + 4], sys.byteorder) for at in (0, 4, 8, 12)],
    }
