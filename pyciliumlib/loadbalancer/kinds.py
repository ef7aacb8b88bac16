"""The words of services: each enum's values are spelled as Kubernetes and Cilium spell them."""

from __future__ import annotations

import enum
from typing import NoReturn

from pyciliumlib.errors import InvalidError, nearest


class Word(str, enum.Enum):
    """A text out of a short list; InvalidError with the list for any other."""

    @classmethod
    def _missing_(cls, value: object) -> NoReturn:
        known = [member.value for member in cls]
        raise InvalidError(
            f"{value!r}{nearest(str(value), known)}: write one of {', '.join(known)}"
        )

    def __str__(self) -> str:
        return str(self.value)


class FrontendType(Word):
    """Why a frontend is there; it decides who may use it and which traffic policy counts."""

    CLUSTER_IP = "ClusterIP"
    NODE_PORT = "NodePort"
    LOAD_BALANCER = "LoadBalancer"
    EXTERNAL_IPS = "externalIPs"
    HOST_PORT = "HostPort"
    LOCAL_REDIRECT = "LocalRedirect"

    @property
    def external(self) -> bool:
        """Whether it is meant for those outside of the cluster."""
        return self not in (FrontendType.CLUSTER_IP, FrontendType.LOCAL_REDIRECT)


class TrafficPolicy(Word):
    """Which backends take a connection: all of them, or those on this node."""

    CLUSTER = "Cluster"
    LOCAL = "Local"


class TrafficDistribution(Word):
    """Which backends a node prefers: those that hints give to its zone, or to the node itself."""

    PREFER_CLOSE = "PreferClose"
    PREFER_SAME_ZONE = "PreferSameZone"
    PREFER_SAME_NODE = "PreferSameNode"


class Algorithm(Word):
    """How a new connection finds its backend."""

    RANDOM = "random"
    MAGLEV = "maglev"


class ForwardingMode(Word):
    """How packets reach a backend elsewhere: with their source translated, or as they are."""

    SNAT = "snat"
    DSR = "dsr"


class BalancerMode(Word):
    """The forwarding of services that do not say; hybrid is DSR for TCP and SNAT for the rest."""

    SNAT = "snat"
    DSR = "dsr"
    HYBRID = "hybrid"


class DSRDispatch(Word):
    """What carries the service's address to the backend: an IP option, IP in IP, or Geneve."""

    OPT = "opt"
    IPIP = "ipip"
    GENEVE = "geneve"


class Acceleration(Word):
    """Where XDP is used: nowhere, in every driver, where a driver can, or in the stack."""

    DISABLED = "disabled"
    NATIVE = "native"
    BEST_EFFORT = "best-effort"
    GENERIC = "generic"


class NoBackendResponse(Word):
    """What a client of a service without backends gets."""

    REJECT = "reject"
    DROP = "drop"


class SourceRangesPolicy(Word):
    """Whether source ranges are those who may use the service, or those who may not."""

    ALLOW = "allow"
    DENY = "deny"


class MeshAffinity(Word):
    """Which clusters' backends a global service prefers."""

    LOCAL = "local"
    REMOTE = "remote"
    NONE = "none"


class ProxyDelegation(Word):
    """Whether a packet for a backend at the node's own address goes to the stack untouched."""

    NONE = "none"
    IF_LOCAL = "delegate-if-local"


class Direction(Word):
    """Where a client is: outside of the cluster (north-south) or in it (east-west).

    The third is a client in it whose socket is connected to the backend, before there is a packet:
    then chance alone chooses, and the client is its network namespace.
    """

    NORTH_SOUTH = "north-south"
    EAST_WEST = "east-west"
    SOCKET = "socket"
