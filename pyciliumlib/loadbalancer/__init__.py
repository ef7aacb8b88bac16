"""Load balancing: which backend serves a connection."""

from __future__ import annotations

from pyciliumlib.loadbalancer.backend import Backend
from pyciliumlib.loadbalancer.flow_hash import FlowHash, FlowTuple
from pyciliumlib.loadbalancer.maglev import Maglev, MaglevSeed
from pyciliumlib.loadbalancer.maglev_table import Disruption, MaglevTable

__all__ = ["Backend", "Disruption", "FlowHash", "FlowTuple", "Maglev", "MaglevSeed", "MaglevTable"]
