"""Health of backends: checks that quarantine and restore, and the health check node ports."""

from __future__ import annotations

from pyciliumlib.loadbalancer.health.checker import Checked, HealthChecks
from pyciliumlib.loadbalancer.health.checks import Check, Dialer, HTTPCheck, MakeSocket, TCPCheck
from pyciliumlib.loadbalancer.health.model import Health, HealthEvent, HealthSettings
from pyciliumlib.loadbalancer.health.node_ports import HealthNodePorts, LocalEndpoints

__all__ = [
    "Check",
    "Checked",
    "Dialer",
    "HTTPCheck",
    "Health",
    "HealthChecks",
    "HealthEvent",
    "HealthNodePorts",
    "HealthSettings",
    "LocalEndpoints",
    "MakeSocket",
    "TCPCheck",
]
