"""A small network on one machine: nodes, pods and hosts outside, as network namespaces."""

from __future__ import annotations

from pyciliumlib.lab.client import Connection, ConnectResult
from pyciliumlib.lab.host import Host
from pyciliumlib.lab.lab import Lab
from pyciliumlib.lab.node import Node, Outside, Pod
from pyciliumlib.lab.server import Request, Server, http_reply

__all__ = [
    "ConnectResult",
    "Connection",
    "Host",
    "Lab",
    "Node",
    "Outside",
    "Pod",
    "Request",
    "Server",
    "http_reply",
]
