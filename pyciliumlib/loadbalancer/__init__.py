"""Load balancing: which backend serves a connection."""

from __future__ import annotations

from pyciliumlib.loadbalancer.backend import Backend, BackendState
from pyciliumlib.loadbalancer.balancer import Balancer, Client, Placement, Why
from pyciliumlib.loadbalancer.config import LoadBalancerConfig
from pyciliumlib.loadbalancer.documents import LocalNode, ServiceDocuments, read_services
from pyciliumlib.loadbalancer.flow_hash import FlowHash, FlowTuple
from pyciliumlib.loadbalancer.kinds import (
    Acceleration,
    Algorithm,
    BalancerMode,
    Direction,
    DSRDispatch,
    ForwardingMode,
    FrontendType,
    MeshAffinity,
    NoBackendResponse,
    ProxyDelegation,
    SourceRangesPolicy,
    TrafficPolicy,
)
from pyciliumlib.loadbalancer.maglev import Maglev, MaglevSeed
from pyciliumlib.loadbalancer.maglev_table import Disruption, MaglevTable, Share
from pyciliumlib.loadbalancer.service import (
    Frontend,
    LocalRedirect,
    Mesh,
    NodeExposure,
    Service,
    ServiceKey,
)
from pyciliumlib.loadbalancer.sockets import SocketConnection

__all__ = [
    "Acceleration",
    "Algorithm",
    "Backend",
    "BackendState",
    "Balancer",
    "BalancerMode",
    "Client",
    "DSRDispatch",
    "Direction",
    "Disruption",
    "FlowHash",
    "FlowTuple",
    "ForwardingMode",
    "Frontend",
    "FrontendType",
    "LoadBalancerConfig",
    "LocalNode",
    "LocalRedirect",
    "Maglev",
    "MaglevSeed",
    "MaglevTable",
    "Mesh",
    "MeshAffinity",
    "NoBackendResponse",
    "NodeExposure",
    "Placement",
    "ProxyDelegation",
    "Service",
    "ServiceDocuments",
    "ServiceKey",
    "Share",
    "SocketConnection",
    "SourceRangesPolicy",
    "TrafficPolicy",
    "Why",
    "read_services",
]
