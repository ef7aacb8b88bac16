"""One node's programs, endpoints and policy in the kernel."""

from __future__ import annotations

from pyciliumlib.datapath.config import DatapathConfig
from pyciliumlib.datapath.datapath import Datapath
from pyciliumlib.datapath.endpoint import Endpoint
from pyciliumlib.datapath.endpoints import Endpoints
from pyciliumlib.datapath.hook import Hook
from pyciliumlib.datapath.hooks import Hooks
from pyciliumlib.datapath.host import HostFirewall
from pyciliumlib.datapath.node import NodeLike, PodLike
from pyciliumlib.datapath.policy import NodePolicy
from pyciliumlib.datapath.services import Services
from pyciliumlib.datapath.simulate import Outcome, Simulation
from pyciliumlib.flow.metrics import Metric, Metrics
from pyciliumlib.types import Drift

__all__ = [
    "Datapath",
    "DatapathConfig",
    "Drift",
    "Endpoint",
    "Endpoints",
    "Hook",
    "Hooks",
    "HostFirewall",
    "Metric",
    "Metrics",
    "NodeLike",
    "NodePolicy",
    "Outcome",
    "PodLike",
    "Services",
    "Simulation",
]
