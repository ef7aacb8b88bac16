"""The flow table: keys, entries, expiry."""

from __future__ import annotations

from pyciliumlib.conntrack.model import Clock, FlowEntry, FlowKey
from pyciliumlib.conntrack.table import Conntrack

__all__ = ["Clock", "Conntrack", "FlowEntry", "FlowKey"]
