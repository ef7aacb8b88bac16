"""The flow table: keys, entries, expiry; and source NAT as a model."""

from __future__ import annotations

from pyciliumlib.conntrack.model import Clock, FlowEntry, FlowKey
from pyciliumlib.conntrack.nat import Ends, Nat
from pyciliumlib.conntrack.table import Conntrack

__all__ = ["Clock", "Conntrack", "Ends", "FlowEntry", "FlowKey", "Nat"]
