"""The endpoint programs and their maps, loaded with a configuration."""

from __future__ import annotations

from typing import Final

from pyciliumlib.conntrack import Clock
from pyciliumlib.datapath.config import DatapathConfig
from pyciliumlib.kernel import Map, Object, ObjectSpec
from pyciliumlib.kernel.probe import probe
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
        "hook_args",
    }
)


def endpoint_spec(config: DatapathConfig, clock: Clock, *, hooks: bool = False) -> ObjectSpec:
    """`endpoint.bpf.c` with its maps as large and its programs as configured, to be loaded."""
    spec = ObjectSpec.open(object_path("endpoint"))
    for name, entries in _sizes(config).items():
        spec.resize(name, entries)
    spec.config.update(_variables(config, clock, hooks))
    return spec


def shared_maps(loaded: Object, without: frozenset[str] = frozenset()) -> dict[str, Map]:
    """The maps of a load that another load may share: not its sections, nor those in `without`."""
    return {n: m for n, m in loaded.maps.items() if n[:1] != "." and n not in without}


def _sizes(config: DatapathConfig) -> dict[str, int]:
    return {
        "policies": 2 * config.max_endpoints,
        "policy_rev": config.max_endpoints,
        "policy_template": config.policy,
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
        "dual_stack": config.dual_stack,
        "redirect_peer": probe(_PEER).has(_PEER) if peer is None else peer,
        "extended_protocols": config.extended_protocols,
        "hooks_enabled": hooks,
        "trace_every_packet": config.trace_every_packet,
    }
