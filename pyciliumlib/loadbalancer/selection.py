"""Which backends may take a client's connection, and how one of them is chosen.

Pure functions, used by the model (`balancer`) and by the table that programs read.
"""

from __future__ import annotations

from collections.abc import Iterable

from pyciliumlib.loadbalancer.annotations import only_on_nodes
from pyciliumlib.loadbalancer.backend import Backend, BackendState
from pyciliumlib.loadbalancer.config import LoadBalancerConfig
from pyciliumlib.loadbalancer.documents import LocalNode
from pyciliumlib.loadbalancer.kinds import (
    Algorithm,
    Direction,
    FrontendType,
    MeshAffinity,
    SourceRangesPolicy,
    TrafficPolicy,
)
from pyciliumlib.loadbalancer.service import Frontend, Service
from pyciliumlib.types import Address


def is_installed(service: Service, node: LocalNode) -> bool:
    """Whether the service is one of this node's (`service.cilium.io/node`, `node-selector`)."""
    return only_on_nodes(service.exposure, node.labels)


def candidates(
    service: Service, frontend: Frontend, direction: Direction, node: LocalNode
) -> tuple[Backend, ...]:
    """The backends that may take a new connection, in the service's order.

    Active ones; where there are none, those that terminate and still serve.
    """
    found = [b for b in service.backends if b.address.version == frontend.address.version]
    if _policy(service, frontend, direction) is TrafficPolicy.LOCAL:
        found = [backend for backend in found if backend.node == node.name]
    found = _of_clusters(service, found)
    return _in_state(found, BackendState.ACTIVE) or _in_state(found, BackendState.TERMINATING)


def takers(
    service: Service, frontend: Frontend, direction: Direction, node: LocalNode
) -> tuple[Backend, ...]:
    """The same, or those on this node that a local redirect puts into their place."""
    return redirected(service, frontend, direction) or candidates(
        service, frontend, direction, node
    )


def redirected(
    service: Service, frontend: Frontend, direction: Direction, client: Address | None = None
) -> tuple[Backend, ...]:
    """The backends on this node that a local redirect gives the client; none if it gives none."""
    redirect = service.redirect
    inside = direction is not Direction.NORTH_SOUTH and not frontend.type.external
    if redirect is None or not inside:
        return ()
    if redirect.skip_from_backends and client in {b.address for b in redirect.backends}:
        return ()
    found = [b for b in redirect.backends if b.address.version == frontend.address.version]
    return _in_state(found, BackendState.ACTIVE)


def has_two_scopes(service: Service, frontend: Frontend) -> bool:
    """Whether clients in the cluster have other backends there than those outside of it."""
    if redirected(service, frontend, Direction.EAST_WEST):
        return True
    outside = _policy(service, frontend, Direction.NORTH_SOUTH)
    return outside is not _policy(service, frontend, Direction.EAST_WEST)


def keeps(backend: Backend, *, opening: bool) -> bool:
    """Whether a connection that has this backend keeps it; `opening` is that of a SYN."""
    return backend.state is BackendState.ACTIVE or not opening


def algorithm(
    service: Service, frontend: Frontend, direction: Direction, config: LoadBalancerConfig
) -> Algorithm:
    """How a backend is chosen: the balancer's Maglev is for clients from outside alone."""
    if direction is Direction.SOCKET:
        return Algorithm.RANDOM
    if service.algorithm is not None or config.algorithm is Algorithm.RANDOM:
        return config.algorithm_of(service)
    outside = frontend.type.external or config.external_cluster_ip
    maglev = outside and direction is Direction.NORTH_SOUTH
    return Algorithm.MAGLEV if maglev else Algorithm.RANDOM


def checks_source(service: Service, frontend: Frontend, config: LoadBalancerConfig) -> bool:
    """Whether clients from outside must be in (or out of) the service's source ranges."""
    if not service.source_ranges:
        return False
    everywhere = config.source_ranges_all_types
    return everywhere or frontend.type is FrontendType.LOAD_BALANCER


def admits(service: Service, client: Address) -> bool:
    """Whether the source ranges let the client in."""
    inside = any(client in network for network in service.source_ranges)
    return inside is (service.source_ranges_policy is SourceRangesPolicy.ALLOW)


def hidden_cluster_ip(frontend: Frontend, direction: Direction, config: LoadBalancerConfig) -> bool:
    """Whether the frontend is the cluster's own, and the client is outside of it."""
    outside = direction is Direction.NORTH_SOUTH and not frontend.type.external
    return outside and not config.external_cluster_ip


def _policy(service: Service, frontend: Frontend, direction: Direction) -> TrafficPolicy:
    if direction is not Direction.NORTH_SOUTH:
        return service.internal_policy
    return service.external_policy if frontend.type.external else TrafficPolicy.CLUSTER


def _of_clusters(service: Service, backends: list[Backend]) -> list[Backend]:
    """Backends of other clusters only where the service is global, by its affinity."""
    local = [backend for backend in backends if not backend.cluster_id]
    if not service.mesh.is_global:
        return local
    remote = [backend for backend in backends if backend.cluster_id]
    preferred = {MeshAffinity.LOCAL: local, MeshAffinity.REMOTE: remote}.get(service.mesh.affinity)
    return preferred if preferred and _healthy(preferred) else backends


def _healthy(backends: list[Backend]) -> bool:
    return bool(_in_state(backends, BackendState.ACTIVE))


def _in_state(backends: Iterable[Backend], state: BackendState) -> tuple[Backend, ...]:
    return tuple(b for b in backends if b.state is state and b.weight)
