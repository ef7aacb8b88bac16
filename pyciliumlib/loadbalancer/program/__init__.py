"""Load balancing in the kernel."""

from __future__ import annotations

from pyciliumlib.loadbalancer.program.counters import Count
from pyciliumlib.loadbalancer.program.dsr_backend import DSRBackend
from pyciliumlib.loadbalancer.program.load_balancer import LoadBalancer
from pyciliumlib.loadbalancer.program.loading import Sizes
from pyciliumlib.loadbalancer.program.socket_balancer import SocketBalancer
from pyciliumlib.loadbalancer.program.sockets import NamespaceSockets

__all__ = ["Count", "DSRBackend", "LoadBalancer", "NamespaceSockets", "Sizes", "SocketBalancer"]
