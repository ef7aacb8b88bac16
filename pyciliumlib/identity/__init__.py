"""Who is who: labels, numeric identities, their allocation, and the ipcache."""

from __future__ import annotations

from pyciliumlib.identity.allocator import AllocatorSettings, IdentityAllocator, Observer
from pyciliumlib.identity.cidr import cidr_label, cidr_labels, cidr_selector, world_identity
from pyciliumlib.identity.filter import FilterEntry, LabelFilter
from pyciliumlib.identity.gc import IdentityCollector
from pyciliumlib.identity.ip_pair import IPIdentityPair, NamedPort
from pyciliumlib.identity.ip_sync import ClusterAddresses
from pyciliumlib.identity.ipcache import Change, IPCache, IPCacheEntry
from pyciliumlib.identity.ipcache_table import IPCachePlan, IPCacheTable, addr_hash
from pyciliumlib.identity.labels import Label, Labels, LabelsLike
from pyciliumlib.identity.metadata import Metadata, Source
from pyciliumlib.identity.numeric import (
    ClusterRange,
    Identity,
    ReservedIdentity,
    Scope,
    is_cluster,
    is_remote_node,
    is_reserved,
    is_world,
    reserved_id_for_labels,
    scope_for_labels,
    well_known_identities,
)
from pyciliumlib.identity.selector import Operator, Requirement, Selector

__all__ = [
    "AllocatorSettings",
    "Change",
    "ClusterAddresses",
    "ClusterRange",
    "FilterEntry",
    "IPCache",
    "IPCacheEntry",
    "IPCachePlan",
    "IPCacheTable",
    "IPIdentityPair",
    "Identity",
    "IdentityAllocator",
    "IdentityCollector",
    "Label",
    "LabelFilter",
    "Labels",
    "LabelsLike",
    "Metadata",
    "NamedPort",
    "Observer",
    "Operator",
    "Requirement",
    "ReservedIdentity",
    "Scope",
    "Selector",
    "Source",
    "addr_hash",
    "cidr_label",
    "cidr_labels",
    "cidr_selector",
    "is_cluster",
    "is_remote_node",
    "is_reserved",
    "is_world",
    "reserved_id_for_labels",
    "scope_for_labels",
    "well_known_identities",
    "world_identity",
]
