"""What the datapath observed: events, flows, drop reasons."""

from __future__ import annotations

from pyciliumlib.flow.flow import Flow, FlowService, FlowType, Namer, ServiceNamer, Verdict, decode
from pyciliumlib.flow.reasons import DropReason, TracePoint, reason_text
from pyciliumlib.types import Direction

__all__ = [
    "Direction",
    "DropReason",
    "Flow",
    "FlowService",
    "FlowType",
    "Namer",
    "ServiceNamer",
    "TracePoint",
    "Verdict",
    "decode",
    "reason_text",
]
