"""Numeric identities: ranges, scopes, and the reserved and well-known tables.

An identity is 32 bits. The top 8 are its scope; 24 go on the wire, of which the upper ones say
which cluster of a mesh numbered it.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Final

from attrs import field, frozen

from pyciliumlib.errors import InvalidError
from pyciliumlib.identity.labels import (
    SOURCE_CIDR,
    SOURCE_CIDR_GROUP,
    SOURCE_FQDN,
    SOURCE_K8S,
    SOURCE_RESERVED,
    Label,
    Labels,
)

IDENTITY_MAX: Final = 0xFFFF_FFFF
WELL_KNOWN_MIN: Final = 100
USER_RESERVED_MIN: Final = 128
#: The first number that is allocated; lower ones are reserved, well-known or the user's.
ALLOCATED_MIN: Final = 256
WIRE_BITS: Final = 24
SCOPE_MASK: Final = 0xFF00_0000
#: A label of this key, with the name of a user-reserved identity as value, asks for that number.
FIXED_IDENTITY_KEY: Final = "io.cilium.fixed-identity"


class Scope(enum.IntEnum):
    """Who knows a number: every node, or only the one that allocated it."""

    GLOBAL = 0
    LOCAL = 0x0100_0000
    REMOTE_NODE = 0x0200_0000

    @classmethod
    def of(cls, number: int) -> Scope:
        """The scope of a number; InvalidError for one outside the three."""
        try:
            return cls(number & SCOPE_MASK)
        except ValueError:
            raise InvalidError(f"identity {number:#x}: no scope of this number is known") from None

    @property
    def numbers(self) -> range:
        """The numbers that are allocated in a node's scope (`ClusterRange` has the global ones)."""
        return range(self + 1, self + (1 << WIRE_BITS))


class ReservedIdentity(enum.IntEnum):
    """The numbers that mean the same everywhere."""

    UNKNOWN = 0
    HOST = 1
    WORLD = 2
    UNMANAGED = 3
    HEALTH = 4
    INIT = 5
    REMOTE_NODE = 6
    KUBE_APISERVER = 7
    INGRESS = 8
    WORLD_IPV4 = 9
    WORLD_IPV6 = 10
    AGGREGATE_CLUSTER = 11
    AGGREGATE_CLUSTER_MESH = 12
    AGGREGATE_WORLD = 13
    AGGREGATE_REMOTE_NODE = 14

    @property
    def label(self) -> Label:
        """The reserved label that names it."""
        return Label(SOURCE_RESERVED, self.name.lower().replace("_", "-"))

    @property
    def labels(self) -> Labels:
        """All labels it carries: a kube-apiserver is also a remote node."""
        if self is ReservedIdentity.KUBE_APISERVER:
            return Labels((self.label, ReservedIdentity.REMOTE_NODE.label))
        return Labels((self.label,))

    @property
    def given_to_traffic(self) -> bool:
        """Whether a packet can have it; the others are keys of policy maps alone."""
        return ReservedIdentity.UNKNOWN < self < ReservedIdentity.AGGREGATE_CLUSTER


_RESERVED_BY_NAME: Final = {identity.label.key: identity for identity in ReservedIdentity}


@frozen(order=True)
class Identity:
    """A number and the labels that it stands for."""

    id: int
    labels: Labels = field(order=False)

    @property
    def scope(self) -> Scope:
        """Whether other nodes know this number."""
        return Scope.of(self.id)

    def __str__(self) -> str:
        return f"{self.id} ({self.labels})"


def is_reserved(number: int) -> bool:
    """Whether the number is one of `ReservedIdentity` (0 is not: it means unknown)."""
    return 0 < number <= max(ReservedIdentity)


def is_world(number: int) -> bool:
    """Whether the number is world or one family of it."""
    return number in (
        ReservedIdentity.WORLD,
        ReservedIdentity.WORLD_IPV4,
        ReservedIdentity.WORLD_IPV6,
    )


def is_cluster(number: int) -> bool:
    """Whether the number belongs to the cluster: neither the world nor a prefix of it."""
    return not is_world(number) and number & SCOPE_MASK != Scope.LOCAL


def is_remote_node(number: int) -> bool:
    """Whether the number is another node's."""
    return (
        number in (ReservedIdentity.REMOTE_NODE, ReservedIdentity.KUBE_APISERVER)
        or number & SCOPE_MASK == Scope.REMOTE_NODE
    )


_CLUSTER_BITS: Final = {255: 8, 511: 9}


@frozen
class ClusterRange:
    """The global numbers of one cluster of a mesh.

    `cluster_id` is 0 to `max_clusters`; `max_clusters` is 255 (8 bits) or 511 (9 bits).

    >>> ClusterRange(0).numbers, ClusterRange(1).numbers
    (range(256, 65536), range(65536, 131072))
    """

    cluster_id: int = 0
    max_clusters: int = 255

    def __attrs_post_init__(self) -> None:
        if self.max_clusters not in _CLUSTER_BITS:
            raise InvalidError(f"at most {self.max_clusters} clusters: only 255 and 511 are legal")
        if not 0 <= self.cluster_id <= self.max_clusters:
            raise InvalidError(f"cluster id {self.cluster_id}: write 0 to {self.max_clusters}")

    @property
    def shift(self) -> int:
        """The bits below the cluster's id."""
        return WIRE_BITS - _CLUSTER_BITS[self.max_clusters]

    @property
    def numbers(self) -> range:
        """The numbers that this cluster may allocate."""
        start = self.cluster_id << self.shift
        return range(start or ALLOCATED_MIN, start + (1 << self.shift))

    def cluster_of(self, number: int) -> int:
        """The id of the cluster that numbered a global identity; 0 for a local scope."""
        if Scope.of(number) is not Scope.GLOBAL:
            return 0
        return number >> self.shift


_K8S_APP: Final = {"k8s-app": "kube-dns"}
_EKS_DNS: Final = {**_K8S_APP, "eks.amazonaws.com/component": "kube-dns"}
_EKS_COREDNS: Final = {**_K8S_APP, "eks.amazonaws.com/component": "coredns"}
_OPERATOR: Final = {
    "name": "cilium-operator",
    "io.cilium/app": "operator",
    "app.kubernetes.io/part-of": "cilium",
    "app.kubernetes.io/name": "cilium-operator",
}
# number, service account, labels of the pod; all in namespace kube-system
_WELL_KNOWN: Final = (
    (102, "kube-dns", _K8S_APP),
    (103, "kube-dns", _EKS_DNS),
    (104, "coredns", _K8S_APP),
    (105, "cilium-operator", _OPERATOR),
    (106, "coredns", _EKS_COREDNS),
)
# the same pods on clusters whose namespaces carry their name as a label
_WITH_NAMESPACE_LABEL: Final = 8
_NAMESPACE_NAME_KEY: Final = "io.cilium.k8s.namespace.labels.kubernetes.io/metadata.name"


def well_known_identities(cluster: str = "default") -> dict[Labels, int]:
    """The system pods whose number is known before any store is; labels must be equal."""
    table = {}
    for number, account, pod in _WELL_KNOWN:
        keys = {
            **pod,
            "io.cilium.k8s.policy.cluster": cluster,
            "io.cilium.k8s.policy.serviceaccount": account,
            "io.kubernetes.pod.namespace": "kube-system",
        }
        table[Labels.parse(keys, SOURCE_K8S)] = number
        named = {**keys, _NAMESPACE_NAME_KEY: "kube-system"}
        table[Labels.parse(named, SOURCE_K8S)] = number + _WITH_NAMESPACE_LABEL
    return table


def reserved_id_for_labels(
    labels: Labels,
    fixed: Mapping[str, int] | None = None,
    well_known: Mapping[Labels, int] | None = None,
    nodes_have_labels: bool = False,
) -> int | None:
    """The number that a set of labels has without being allocated one, or None.

    `fixed` are the user-reserved names and their numbers (128 to 255), `well_known` the table of
    `well_known_identities`, `nodes_have_labels` whether each remote node has its own identity.
    A reserved label within a larger set reserves nothing, so a workload cannot smuggle one in;
    only host and remote nodes carry more labels.
    """
    if well_known and (number := well_known.get(labels)) is not None:
        return number
    if (asked := labels.get(FIXED_IDENTITY_KEY)) is not None:
        return (fixed or {}).get(asked.value)
    reserved = {label.key for label in labels.from_source(SOURCE_RESERVED)}
    if "host" in reserved:
        return ReservedIdentity.HOST
    if "remote-node" in reserved:
        if nodes_have_labels:
            return None
        if "kube-apiserver" in reserved:
            return ReservedIdentity.KUBE_APISERVER
        return ReservedIdentity.REMOTE_NODE
    if len(labels) != 1 or not reserved:
        return None
    return _RESERVED_BY_NAME.get(reserved.pop()) or None


_LOCAL_SOURCES: Final = frozenset({SOURCE_CIDR, SOURCE_CIDR_GROUP, SOURCE_FQDN, SOURCE_RESERVED})


def scope_for_labels(labels: Labels) -> Scope:
    """The scope that a set of labels without a reserved number is allocated in."""
    reserved = {label.key for label in labels.from_source(SOURCE_RESERVED)}
    if "remote-node" in reserved:
        return Scope.REMOTE_NODE
    if "ingress" in reserved:
        return Scope.LOCAL
    if len(labels) and all(label.source in _LOCAL_SOURCES for label in labels):
        return Scope.LOCAL
    return Scope.GLOBAL
