"""The peers of a rule entry, made into complete selectors.

Selectors of pods get what a policy implies: its namespace, and the local cluster. Entities and
prefixes become selectors over the labels that identities carry.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import Any, Final

from attrs import frozen

from pyciliumlib.errors import UnitError, nearest
from pyciliumlib.identity.cidr import cidr_label, world_identity
from pyciliumlib.identity.labels import (
    SOURCE_ANY,
    SOURCE_CIDR,
    SOURCE_FQDN,
    SOURCE_K8S,
    SOURCE_RESERVED,
    Label,
    Network,
    covers,
)
from pyciliumlib.identity.selector import Operator, Requirement, Selector
from pyciliumlib.policy import fields
from pyciliumlib.policy.l7 import DNSRule
from pyciliumlib.policy.l7.reader import read_fqdns
from pyciliumlib.policy.schema import Problems, read_once, texts
from pyciliumlib.policy.settings import PolicySettings
from pyciliumlib.types import parse_network

NAMESPACE_KEY: Final = "io.kubernetes.pod.namespace"
NAMESPACE_LABEL_PREFIX: Final = "io.cilium.k8s.namespace.labels."
CLUSTER_KEY: Final = "io.cilium.k8s.policy.cluster"

_RESERVED_ENTITIES: Final = (
    "host",
    "remote-node",
    "init",
    "ingress",
    "health",
    "unmanaged",
    "kube-apiserver",
    "none",
    "world-ipv4",
    "world-ipv6",
)
_WORLD: Final = ("world", "world-ipv4", "world-ipv6")
_CLUSTER: Final = _RESERVED_ENTITIES[:7]
ENTITIES: Final = ("all", "world", "cluster", "cluster-mesh", *_RESERVED_ENTITIES)

IN_CLUSTER: Final = Requirement(SOURCE_K8S, CLUSTER_KEY, Operator.EXISTS)
IN_NAMESPACE: Final = Requirement(SOURCE_K8S, NAMESPACE_KEY, Operator.EXISTS)
#: Addresses of nodes may lie in a prefix, yet a prefix does not select nodes by itself.
_NOT_NODES: Final = (
    Requirement(SOURCE_RESERVED, "remote-node", Operator.DOES_NOT_EXIST),
    Requirement(SOURCE_RESERVED, "host", Operator.DOES_NOT_EXIST),
)
REMOTE_NODE: Final = Requirement(SOURCE_RESERVED, "remote-node", Operator.EXISTS)


def reserved(name: str) -> Selector:
    """The selector of one reserved label."""
    return Selector.of(Label(SOURCE_RESERVED, name))


@lru_cache(1 << 8)
def expand_entity(name: str, settings: PolicySettings) -> tuple[Selector, ...]:
    """The selectors that an entity stands for; `name` is one of `ENTITIES`."""
    if name == "all":
        return (Selector(),)
    if name == "world":
        return tuple(map(reserved, _WORLD))
    if name == "cluster":
        local = Selector.of(Label(SOURCE_K8S, CLUSTER_KEY, settings.cluster_name))
        return (*map(reserved, _CLUSTER), local)
    if name == "cluster-mesh":
        return (*map(reserved, _CLUSTER), Selector((IN_CLUSTER,)))
    return (reserved(name),)


@lru_cache(1 << 12)
def select_prefix(
    network: Network, excepts: tuple[Network, ...], settings: PolicySettings
) -> Selector:
    """The selector of all addresses in `network` less those in `excepts`.

    A prefix of length 0 is the world of its family, and yet another selector than the entity: the
    two may be sent to different proxies.
    """
    outside = (
        Requirement(SOURCE_CIDR, cidr_label(inner).key, Operator.DOES_NOT_EXIST)
        for inner in excepts
    )
    if network.prefixlen:
        inside = Requirement(SOURCE_CIDR, cidr_label(network).key, Operator.EXISTS)
        return Selector((inside, *outside, *(() if settings.cidr_match_nodes else _NOT_NODES)))
    world = world_identity(network.version, settings.enable_ipv4, settings.enable_ipv6)
    inside = Requirement(SOURCE_RESERVED, world.label.key, Operator.EXISTS)
    return Selector((inside, *outside))


def select_name(rule: DNSRule) -> Selector:
    """The selector of the addresses that a name, or a pattern of names, was found to have."""
    return Selector((Requirement(SOURCE_FQDN, str(rule), Operator.EXISTS),))


@frozen(cache_hash=True)
class Scope:
    """What a policy implies for its selectors: its namespace (empty: clusterwide)."""

    namespace: str
    settings: PolicySettings
    selects_init: bool = False

    def subject(self, selector: Selector, path: str, problems: Problems) -> Selector:
        """The endpoints that the rules govern: those of the policy's own namespace."""
        if not self.namespace:
            return selector
        own = _in_namespace(self.namespace)
        if selector.names_key(NAMESPACE_KEY) and own not in selector.requirements:
            problems.warn(
                path,
                f"a policy governs its own namespace {self.namespace!r} only; "
                "the selector's namespace is overridden",
            )
        return _with_own_namespace(selector, own)

    def peer(self, selector: Selector) -> Selector:
        """The pods that a selector of peers means."""
        if any(r.source == SOURCE_RESERVED for r in selector.requirements):
            return selector
        extra = self._clusters(selector)
        if not selector.names_key(NAMESPACE_KEY, SOURCE_K8S, SOURCE_ANY):
            if not self.namespace:
                # by labels of its namespace a selector may still mean who has none
                extra = extra if self.selects_init else (IN_NAMESPACE, *extra)
            elif not any(map(_names_namespace, selector.requirements)):
                extra = (_in_namespace(self.namespace), *extra)
        return selector.with_requirement(*extra)

    def settle(self, selector: Selector) -> Selector:
        """`selector` confined to the local cluster, unless it names one or settings say else."""
        return selector.with_requirement(*self._clusters(selector))

    def _clusters(self, selector: Selector) -> tuple[Requirement, ...]:
        if not self.settings.default_local_cluster or selector.names_key(
            CLUSTER_KEY, SOURCE_K8S, SOURCE_ANY
        ):
            return ()
        return (_in_cluster(self.settings.cluster_name),)


@lru_cache(1 << 14)
def _with_own_namespace(selector: Selector, own: Requirement) -> Selector:
    kept = (r for r in selector.requirements if r.key != NAMESPACE_KEY)
    return Selector((own, *kept))


@lru_cache(1 << 12)
def _in_namespace(name: str) -> Requirement:
    return Requirement(SOURCE_K8S, NAMESPACE_KEY, Operator.IN, (name,))


@lru_cache(16)
def _in_cluster(name: str) -> Requirement:
    return Requirement(SOURCE_K8S, CLUSTER_KEY, Operator.IN, (name,))


def _names_namespace(requirement: Requirement) -> bool:
    """Whether it is about a label that pods have from their namespace."""
    return requirement.source in (
        SOURCE_K8S,
        SOURCE_ANY,
    ) and requirement.key.startswith(NAMESPACE_LABEL_PREFIX)


#: The field names of a peer kind, without their `from` or `to`.
PEER_KINDS: Final = (
    "Endpoints", "Entities", "CIDR", "CIDRSet", "Nodes", "FQDNs", "Services", "Groups",
)  # fmt: skip
_FIELDS: Final = {word: {word + kind: kind for kind in PEER_KINDS} for word in ("from", "to")}
#: An empty list of these is as good as none; of the others it means nobody.
_EMPTY_SAYS_NOTHING: Final = ("FQDNs", "Services", "Groups")


def read_peers(
    entry: Mapping[str, Any], word: str, path: str, scope: Scope, problems: Problems
) -> tuple[Selector, ...] | None:
    """The peers of a rule entry; None where it names no kind of peer, so that any peer is meant.

    CIDR groups and services are references, which come beside.
    `word` is `from` or `to`. An entry may name one kind of peer only.
    """
    kinds = _FIELDS[word]
    named = [
        field
        for field, peers in entry.items()
        if field in kinds and (peers or kinds[field] not in _EMPTY_SAYS_NOTHING)
    ]
    if not named:
        return None
    if len(named) > 1:
        filled = [field for field in kinds if field in named and entry[field]]
        if len(filled) > 1:
            problems.add(path, f"{' and '.join(filled)} in one entry; write an entry for each")
    found: list[Selector] = []
    for field in named:
        read = _READ.get(kinds[field])
        if read is not None:
            found.extend(read(entry[field], f"{path}.{field}", scope, problems))
    return tuple(dict.fromkeys(found) if len(found) > 1 else found)


def parse_selector(data: object, path: str, problems: Problems) -> Selector | None:
    """A label selector, or None after a problem."""
    return read_once(_read_selector, data, path, problems, None)


def _read_selector(data: object, path: str, problems: Problems, _: None) -> Selector | None:
    with problems.catching():
        if isinstance(data, Mapping):
            return Selector.parse(data, path)
        problems.add(path, f"expected matchLabels or matchExpressions, found {data!r}")
    return None


def _endpoints(
    values: list[Any], path: str, scope: Scope, problems: Problems
) -> Iterator[Selector]:
    for index, value in enumerate(values):
        selector = parse_selector(value, f"{path}[{index}]", problems)
        if selector is not None:
            yield _peer(scope, selector)


@lru_cache(1 << 14)
def _peer(scope: Scope, selector: Selector) -> Selector:
    return scope.peer(selector)


def _nodes(values: list[Any], path: str, scope: Scope, problems: Problems) -> Iterator[Selector]:
    if values and not scope.settings.node_selectors:
        problems.add(path, "nodes are selected only with PolicySettings(node_selectors=True)")
    for index, value in enumerate(values):
        selector = parse_selector(value, f"{path}[{index}]", problems)
        if selector is not None:
            yield scope.settle(selector.with_requirement(REMOTE_NODE))


def _entities(values: list[Any], path: str, scope: Scope, problems: Problems) -> Iterator[Selector]:
    for name, where in texts(values, path, problems):
        if name == "cluster-mesh" and not scope.settings.is_current:
            problems.add(where, "Cilium 1.17 has no entity cluster-mesh")
        elif name in ENTITIES:
            yield from expand_entity(name, scope.settings)
        else:
            problems.add(
                where,
                f"unknown entity {name!r}{nearest(name, ENTITIES)}; known are "
                f"{', '.join(sorted(ENTITIES))}",
            )


def parse_prefix(text: str, path: str, problems: Problems, *, bare: bool = False) -> Network | None:
    """A prefix with its length, or None after a problem; with `bare` an address will do."""
    try:
        network = parse_network(text)
    except UnitError as error:
        problems.add(path, str(error))
        return None
    address, slash, length = text.partition("/")
    if not slash and not bare:
        problems.add(path, f"{text!r} has no length; write {network}")
        return None
    if "%" in address or (slash and length != str(network.prefixlen)):
        problems.add(path, f"{text!r}: an address without a zone and its length, as in {network}")
        return None
    return network


def _cidrs(values: list[Any], path: str, scope: Scope, problems: Problems) -> Iterator[Selector]:
    for text, where in texts(values, path, problems):
        network = parse_prefix(text, where, problems, bare=not scope.settings.is_current)
        if network is not None:
            yield select_prefix(network, (), scope.settings)


def _cidr_sets(
    values: list[Any], path: str, scope: Scope, problems: Problems
) -> Iterator[Selector]:
    for item, where in fields.CIDR_RULE.read_list(values, path, problems):
        if "cidr" not in item:
            continue
        network = parse_prefix(item["cidr"], f"{where}.cidr", problems)
        excepts = read_excepts(item.get("except", []), f"{where}.except", network, problems)
        if network is not None:
            yield select_prefix(network, excepts, scope.settings)


def read_excepts(
    values: list[Any], path: str, network: Network | None, problems: Problems
) -> tuple[Network, ...]:
    """The prefixes that are left out of `network`; each must lie inside it."""
    found = []
    for text, where in texts(values, path, problems):
        inner = parse_prefix(text, where, problems)
        if inner is None or network is None:
            continue
        if covers(network, inner):
            found.append(inner)
        else:
            problems.add(where, f"{inner} is not inside {network}, so it excepts nothing")
    return tuple(found)


def _fqdns(values: list[Any], path: str, scope: Scope, problems: Problems) -> Iterator[Selector]:
    del scope
    if values:
        problems.warn(path, "no name is learned while no DNS proxy is there: it selects nobody yet")
    for rule in read_fqdns(values, path, problems):
        if rule != DNSRule():
            yield select_name(rule)


_READ: Final[dict[str, Callable[[list[Any], str, Scope, Problems], Iterator[Selector]]]] = {
    "Endpoints": _endpoints,
    "Entities": _entities,
    "CIDR": _cidrs,
    "CIDRSet": _cidr_sets,
    "Nodes": _nodes,
    "FQDNs": _fqdns,
}
