"""Cilium's datapath as Python objects.

Every name that most users need is here and is loaded from its room on first use; the rest is
in the rooms themselves: `pyciliumlib.kernel`, `pyciliumlib.net`, `pyciliumlib.testing` and so on.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

# Once for readers and type checkers, once as data: tests/unit/test_public_surface.py compares.
if TYPE_CHECKING:
    from pyciliumlib.conntrack import Clock as Clock
    from pyciliumlib.conntrack import Conntrack as Conntrack
    from pyciliumlib.conntrack import Ends as Ends
    from pyciliumlib.conntrack import FlowEntry as FlowEntry
    from pyciliumlib.conntrack import FlowKey as FlowKey
    from pyciliumlib.conntrack import Nat as Nat
    from pyciliumlib.datapath import Datapath as Datapath
    from pyciliumlib.datapath import DatapathConfig as DatapathConfig
    from pyciliumlib.datapath import Drift as Drift
    from pyciliumlib.datapath import Endpoint as Endpoint
    from pyciliumlib.datapath import Hook as Hook
    from pyciliumlib.datapath import Metric as Metric
    from pyciliumlib.datapath import Outcome as Outcome
    from pyciliumlib.datapath import Simulation as Simulation
    from pyciliumlib.errors import CheckError as CheckError
    from pyciliumlib.errors import ClosedError as ClosedError
    from pyciliumlib.errors import DeviceError as DeviceError
    from pyciliumlib.errors import ExhaustedError as ExhaustedError
    from pyciliumlib.errors import ExistsError as ExistsError
    from pyciliumlib.errors import FeatureError as FeatureError
    from pyciliumlib.errors import InvalidError as InvalidError
    from pyciliumlib.errors import KernelError as KernelError
    from pyciliumlib.errors import LabelError as LabelError
    from pyciliumlib.errors import LabError as LabError
    from pyciliumlib.errors import LayoutError as LayoutError
    from pyciliumlib.errors import LockedError as LockedError
    from pyciliumlib.errors import MapFullError as MapFullError
    from pyciliumlib.errors import MismatchError as MismatchError
    from pyciliumlib.errors import NotFoundError as NotFoundError
    from pyciliumlib.errors import ObjectError as ObjectError
    from pyciliumlib.errors import PolicyError as PolicyError
    from pyciliumlib.errors import PrivilegeError as PrivilegeError
    from pyciliumlib.errors import PyCiliumError as PyCiliumError
    from pyciliumlib.errors import ServiceError as ServiceError
    from pyciliumlib.errors import StateError as StateError
    from pyciliumlib.errors import UnitError as UnitError
    from pyciliumlib.errors import UnsupportedError as UnsupportedError
    from pyciliumlib.errors import VerifierError as VerifierError
    from pyciliumlib.flow import DropReason as DropReason
    from pyciliumlib.flow import Flow as Flow
    from pyciliumlib.flow import FlowType as FlowType
    from pyciliumlib.flow import TracePoint as TracePoint
    from pyciliumlib.identity import AllocatorSettings as AllocatorSettings
    from pyciliumlib.identity import Identity as Identity
    from pyciliumlib.identity import IdentityAllocator as IdentityAllocator
    from pyciliumlib.identity import IPCache as IPCache
    from pyciliumlib.identity import IPCacheTable as IPCacheTable
    from pyciliumlib.identity import Label as Label
    from pyciliumlib.identity import LabelFilter as LabelFilter
    from pyciliumlib.identity import Labels as Labels
    from pyciliumlib.identity import ReservedIdentity as ReservedIdentity
    from pyciliumlib.identity import Scope as Scope
    from pyciliumlib.identity import Selector as Selector
    from pyciliumlib.identity import cidr_labels as cidr_labels
    from pyciliumlib.kernel import After as After
    from pyciliumlib.kernel import Before as Before
    from pyciliumlib.kernel import Features as Features
    from pyciliumlib.kernel import Head as Head
    from pyciliumlib.kernel import Link as Link
    from pyciliumlib.kernel import Map as Map
    from pyciliumlib.kernel import MapSpec as MapSpec
    from pyciliumlib.kernel import MapType as MapType
    from pyciliumlib.kernel import Object as Object
    from pyciliumlib.kernel import ObjectSpec as ObjectSpec
    from pyciliumlib.kernel import Program as Program
    from pyciliumlib.kernel import ProgramSpec as ProgramSpec
    from pyciliumlib.kernel import Record as Record
    from pyciliumlib.kernel import RingBuffer as RingBuffer
    from pyciliumlib.kernel import RunResult as RunResult
    from pyciliumlib.kernel import Tail as Tail
    from pyciliumlib.kernel import TcFilter as TcFilter
    from pyciliumlib.kernel import attach_cgroup as attach_cgroup
    from pyciliumlib.kernel import attach_tc as attach_tc
    from pyciliumlib.kernel import attach_xdp as attach_xdp
    from pyciliumlib.kernel import ensure_bpffs as ensure_bpffs
    from pyciliumlib.kernel import probe as probe
    from pyciliumlib.lab import ConnectResult as ConnectResult
    from pyciliumlib.lab import Lab as Lab
    from pyciliumlib.lab import Node as Node
    from pyciliumlib.lab import Outside as Outside
    from pyciliumlib.lab import Pod as Pod
    from pyciliumlib.lab import Server as Server
    from pyciliumlib.lab import http_reply as http_reply
    from pyciliumlib.loadbalancer import Backend as Backend
    from pyciliumlib.loadbalancer import BackendState as BackendState
    from pyciliumlib.loadbalancer import Balancer as Balancer
    from pyciliumlib.loadbalancer import FlowTuple as FlowTuple
    from pyciliumlib.loadbalancer import Frontend as Frontend
    from pyciliumlib.loadbalancer import LoadBalancerConfig as LoadBalancerConfig
    from pyciliumlib.loadbalancer import LocalNode as LocalNode
    from pyciliumlib.loadbalancer import Maglev as Maglev
    from pyciliumlib.loadbalancer import MaglevTable as MaglevTable
    from pyciliumlib.loadbalancer import Service as Service
    from pyciliumlib.loadbalancer import read_services as read_services
    from pyciliumlib.loadbalancer.health import HealthChecks as HealthChecks
    from pyciliumlib.loadbalancer.health import HealthEvent as HealthEvent
    from pyciliumlib.loadbalancer.health import HealthNodePorts as HealthNodePorts
    from pyciliumlib.loadbalancer.health import HealthSettings as HealthSettings
    from pyciliumlib.loadbalancer.health import HTTPCheck as HTTPCheck
    from pyciliumlib.loadbalancer.health import TCPCheck as TCPCheck
    from pyciliumlib.loadbalancer.program import DSRBackend as DSRBackend
    from pyciliumlib.loadbalancer.program import LoadBalancer as LoadBalancer
    from pyciliumlib.loadbalancer.program import NamespaceSockets as NamespaceSockets
    from pyciliumlib.loadbalancer.program import SocketBalancer as SocketBalancer
    from pyciliumlib.policy import Explanation as Explanation
    from pyciliumlib.policy import Party as Party
    from pyciliumlib.policy import PolicySettings as PolicySettings
    from pyciliumlib.policy import Repository as Repository
    from pyciliumlib.policy import Verdict as Verdict
    from pyciliumlib.policy.program import PolicyMap as PolicyMap
    from pyciliumlib.resources import include_dir as include_dir
    from pyciliumlib.resources import object_path as object_path
    from pyciliumlib.store import MemoryStore as MemoryStore
    from pyciliumlib.store import SQLiteStore as SQLiteStore
    from pyciliumlib.store import Store as Store
    from pyciliumlib.types import Direction as Direction
    from pyciliumlib.types import MapLike as MapLike
    from pyciliumlib.types import PortProto as PortProto
    from pyciliumlib.types import Protocol as Protocol

    __version__: str

_EXPORTS = {
    "conntrack": (
        "Clock",
        "Conntrack",
        "Ends",
        "FlowEntry",
        "FlowKey",
        "Nat",
    ),
    "datapath": (
        "Datapath",
        "DatapathConfig",
        "Drift",
        "Endpoint",
        "Hook",
        "Metric",
        "Outcome",
        "Simulation",
    ),
    "errors": (
        "CheckError",
        "ClosedError",
        "DeviceError",
        "ExhaustedError",
        "ExistsError",
        "FeatureError",
        "InvalidError",
        "KernelError",
        "LabError",
        "LabelError",
        "LayoutError",
        "LockedError",
        "MapFullError",
        "MismatchError",
        "NotFoundError",
        "ObjectError",
        "PolicyError",
        "PrivilegeError",
        "PyCiliumError",
        "ServiceError",
        "StateError",
        "UnitError",
        "UnsupportedError",
        "VerifierError",
    ),
    "flow": (
        "DropReason",
        "Flow",
        "FlowType",
        "TracePoint",
    ),
    "identity": (
        "AllocatorSettings",
        "IPCache",
        "IPCacheTable",
        "Identity",
        "IdentityAllocator",
        "Label",
        "LabelFilter",
        "Labels",
        "ReservedIdentity",
        "Scope",
        "Selector",
        "cidr_labels",
    ),
    "kernel": (
        "After",
        "Before",
        "Features",
        "Head",
        "Link",
        "Map",
        "MapSpec",
        "MapType",
        "Object",
        "ObjectSpec",
        "Program",
        "ProgramSpec",
        "Record",
        "RingBuffer",
        "RunResult",
        "Tail",
        "TcFilter",
        "attach_cgroup",
        "attach_tc",
        "attach_xdp",
        "ensure_bpffs",
        "probe",
    ),
    "lab": (
        "ConnectResult",
        "Lab",
        "Node",
        "Outside",
        "Pod",
        "Server",
        "http_reply",
    ),
    "loadbalancer": (
        "Backend",
        "BackendState",
        "Balancer",
        "FlowTuple",
        "Frontend",
        "LoadBalancerConfig",
        "LocalNode",
        "Maglev",
        "MaglevTable",
        "Service",
        "read_services",
    ),
    "loadbalancer.health": (
        "HTTPCheck",
        "HealthChecks",
        "HealthEvent",
        "HealthNodePorts",
        "HealthSettings",
        "TCPCheck",
    ),
    "loadbalancer.program": (
        "DSRBackend",
        "LoadBalancer",
        "SocketBalancer",
        "NamespaceSockets",
    ),
    "policy": (
        "Explanation",
        "Party",
        "PolicySettings",
        "Repository",
        "Verdict",
    ),
    "policy.program": ("PolicyMap",),
    "resources": (
        "include_dir",
        "object_path",
    ),
    "store": (
        "MemoryStore",
        "SQLiteStore",
        "Store",
    ),
    "types": (
        "Direction",
        "MapLike",
        "PortProto",
        "Protocol",
    ),
}
_ROOM_OF = {name: room for room, names in _EXPORTS.items() for name in names}

__all__ = sorted([*_ROOM_OF, "__version__"])


def __getattr__(name: str) -> Any:
    """Load a public name when it is first asked for (PEP 562)."""
    if name == "__version__":
        from importlib.metadata import version

        value: Any = version("pyciliumlib")
    elif name in _ROOM_OF:
        value = getattr(importlib.import_module(f"pyciliumlib.{_ROOM_OF[name]}"), name)
    else:
        from pyciliumlib.errors import nearest

        raise AttributeError(f"pyciliumlib has no {name!r}{nearest(name, __all__)}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
