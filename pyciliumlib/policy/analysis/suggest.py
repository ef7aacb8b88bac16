"""The least policy that allows what was seen: documents made of recorded connections."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

import yaml
from attrs import frozen

from pyciliumlib.errors import PolicyError
from pyciliumlib.flow import Flow
from pyciliumlib.identity.labels import (
    SOURCE_CIDR,
    SOURCE_K8S,
    SOURCE_RESERVED,
    Label,
    prefix_of_key,
)
from pyciliumlib.policy.cilium import CNP
from pyciliumlib.policy.model import Party
from pyciliumlib.policy.peers import CLUSTER_KEY, NAMESPACE_KEY
from pyciliumlib.types import Direction, Network, Protocol, parse_network

#: Labels that say which copy a pod is, or that Cilium adds: no policy should name them.
_PASSING: Final = frozenset(
    {
        "pod-template-hash",
        "controller-revision-hash",
        "pod-template-generation",
        "statefulset.kubernetes.io/pod-name",
        "apps.kubernetes.io/pod-index",
        "batch.kubernetes.io/controller-uid",
        "batch.kubernetes.io/job-completion-index",
        "controller-uid",
        "job-name",
    }
)
_CILIUMS: Final = ("io.cilium.", "io.kubernetes.pod.")
_ICMP_FAMILIES: Final = {Protocol.ICMP: "IPv4", Protocol.ICMPv6: "IPv6"}
#: An API server is a node as well, so it comes first.
_ENTITIES: Final = (
    "kube-apiserver", "host", "remote-node", "health", "ingress", "init", "unmanaged",
    "world-ipv4", "world-ipv6", "world",
)  # fmt: skip


@frozen
class Connection:
    """A connection that was seen: who opened it, to whom, on which port (or ICMP type).

    `address` is that of an end in the world, if it is to be allowed alone and not all of the world.
    """

    source: Party
    destination: Party
    protocol: Protocol
    port: int
    address: Network | None = None

    def __str__(self) -> str:
        return f"{self.source} -> {self.destination} {self.port}/{self.protocol}"


def connections(
    flows: Iterable[Flow],
    party_of: Callable[[int], Party],
    *,
    dropped: bool = False,
    by_address: bool = False,
) -> Iterator[Connection]:
    """The connections that flows tell of, each once.

    `party_of` knows an identity. Those that were dropped count with `dropped`; with `by_address`
    an end in the world is its own address, and not all of the world.
    """
    seen = set()
    for flow in flows:
        if flow.is_reply or flow.is_related or (flow.dropped and not dropped):
            continue
        try:
            protocol = Protocol(flow.protocol)
        except ValueError:
            continue  # no rule can name it
        port = flow.icmp_type if protocol in _ICMP_FAMILIES else flow.dport
        source, destination = party_of(flow.src_identity), party_of(flow.dst_identity)
        outside = next(
            (ip for ip, party in ((flow.src, source), (flow.dst, destination)) if _is_world(party)),
            None,
        )
        address = parse_network(str(outside)) if outside is not None and by_address else None
        connection = Connection(source, destination, protocol, port, address)
        if connection not in seen:
            seen.add(connection)
            yield connection


def _is_world(party: Party) -> bool:
    return any(
        party.labels.has(Label(SOURCE_RESERVED, name))
        for name in ("world", "world-ipv4", "world-ipv6")
    )


@frozen
class Suggestion:
    """CiliumNetworkPolicies, as objects; `str` is their YAML."""

    documents: tuple[dict[str, Any], ...]

    def __str__(self) -> str:
        return yaml.safe_dump_all(self.documents, sort_keys=False).rstrip("\n")


def suggest(connections: Iterable[Connection]) -> Suggestion:
    """The policies under which these connections pass and no others between the same pods do.

    One for each kind of pod that was seen at an end, with an entry for each peer. A pod is known by
    the labels that its copies share. Raises PolicyError for a protocol that no rule can name.
    """
    subjects: dict[_Subject, dict[Direction, dict[_Peer, set[_Port]]]] = {}
    seen = list(connections)
    kinds = _Kinds(end for c in seen for end in (c.source, c.destination))
    for connection in seen:
        port = _port(connection.protocol, connection.port)
        for subject, peer, direction in (
            (connection.source, connection.destination, Direction.EGRESS),
            (connection.destination, connection.source, Direction.INGRESS),
        ):
            key = _subject(subject)
            if key is not None:
                sections = subjects.setdefault(key, {d: {} for d in Direction})
                item = kinds.peer(peer, subject, connection.address)
                sections[direction].setdefault(item, set()).add(port)
    names = _Names()
    documents = (
        _document(key, kinds.selector(key), subjects[key], names) for key in sorted(subjects)
    )
    return Suggestion(tuple(documents))


#: A kind of pod: its namespace, and the labels that tell it.
_Subject = tuple[str, tuple[tuple[str, str], ...]]
#: The field without `from` or `to`, and its item as YAML text, so that it can be compared.
_Peer = tuple[str, str]
_Port = tuple[str, str, int]


def _port(protocol: Protocol, port: int) -> _Port:
    if protocol in _ICMP_FAMILIES:
        return "icmps", _ICMP_FAMILIES[protocol], port
    if protocol in (Protocol.TCP, Protocol.UDP, Protocol.SCTP):
        return "toPorts", protocol.name, port
    raise PolicyError(f"no rule can name the protocol {protocol} alone")


def _value(party: Party, key: str) -> str:
    found = party.labels.find(SOURCE_K8S, key)
    return found.value if found else ""


def _telling(party: Party) -> dict[str, str]:
    """The labels by which a pod is to be selected."""
    return {
        label.key: label.value
        for label in party.labels
        if label.source == SOURCE_K8S
        and label.key not in _PASSING
        and not label.key.startswith(_CILIUMS)
    }


def _subject(party: Party) -> _Subject | None:
    namespace = _value(party, NAMESPACE_KEY)
    return (namespace, tuple(sorted(_telling(party).items()))) if namespace else None


class _Kinds:
    """The kinds of pods that were seen, so that a selector of one leaves out the others."""

    def __init__(self, parties: Iterable[Party]) -> None:
        self._kinds = {kind for party in parties if (kind := _subject(party)) is not None}

    def selector(self, kind: _Subject) -> dict[str, Any]:
        """A selector of this kind alone, within its namespace."""
        namespace, labels = kind
        own = dict(labels)
        absent = {
            min(key for key, _ in others if key not in own)
            for space, others in self._kinds
            if space == namespace and set(labels) < set(others)
        }
        found: dict[str, Any] = {"matchLabels": own} if own else {}
        if absent:
            found["matchExpressions"] = [
                {"key": key, "operator": "DoesNotExist"} for key in sorted(absent)
            ]
        return found

    def peer(self, party: Party, subject: Party, address: Network | None) -> _Peer:
        """How a rule about `subject` names a peer."""
        kind = _subject(party)
        if kind is not None:
            selector = self.selector(kind)
            beyond = {
                f"k8s:{key}": value
                for key in (NAMESPACE_KEY, CLUSTER_KEY)
                if (value := _value(party, key)) != _value(subject, key)
            }
            if beyond:
                selector["matchLabels"] = {**selector.get("matchLabels", {}), **beyond}
            return "Endpoints", yaml.safe_dump(selector)
        prefix = address or _prefix(party)
        if prefix is not None:
            return "CIDR", str(prefix)
        for entity in _ENTITIES:
            if party.labels.has(Label(SOURCE_RESERVED, entity)):
                return "Entities", entity
        raise PolicyError(f"{party}: neither a pod, a prefix nor an entity, so no rule can name it")


def _prefix(party: Party) -> Network | None:
    keys = [label.key for label in party.labels if label.source == SOURCE_CIDR]
    return prefix_of_key(keys[0]) if keys else None


class _Names:
    """Names for documents: by the pods' telling label, and each only once."""

    def __init__(self) -> None:
        self._taken: set[tuple[str, str]] = set()

    def of(self, subject: _Subject) -> str:
        namespace, labels = subject
        values = dict(labels)
        stem = next(
            (values[key] for key in ("app", "app.kubernetes.io/name", "k8s-app", "name")
             if values.get(key)),
            next((value for value in values.values() if value), "pods"),
        )  # fmt: skip
        stem = "".join(c if c.isalnum() or c == "-" else "-" for c in stem.lower()).strip("-")
        name, number = stem or "pods", 2
        while (namespace, name) in self._taken:
            name, number = f"{stem}-{number}", number + 1
        self._taken.add((namespace, name))
        return name


def _document(
    subject: _Subject,
    selector: Mapping[str, Any],
    sections: Mapping[Direction, Mapping[_Peer, set[_Port]]],
    names: _Names,
) -> dict[str, Any]:
    spec: dict[str, Any] = {"endpointSelector": dict(selector)}
    for direction, peers in sections.items():
        spec[str(direction)] = list(_entries(direction, peers)) or [{}]
    return {
        "apiVersion": "cilium.io/v2",
        "kind": CNP,
        "metadata": {"name": names.of(subject), "namespace": subject[0]},
        "spec": spec,
    }


def _entries(direction: Direction, peers: Mapping[_Peer, set[_Port]]) -> Iterable[dict[str, Any]]:
    """An entry for the peers of one kind that share their ports; ICMP needs its own."""
    word = "from" if direction is Direction.INGRESS else "to"
    alike: dict[tuple[str, str, tuple[_Port, ...]], list[str]] = {}
    for (kind, item), ports in peers.items():
        for field in ("toPorts", "icmps"):
            chosen = tuple(sorted(port for port in ports if port[0] == field))
            if chosen:
                alike.setdefault((kind, field, chosen), []).append(item)
    for (kind, field, ports_alike), items in sorted(alike.items()):
        entry: dict[str, Any] = {f"{word}{kind}": [yaml.safe_load(i) for i in sorted(items)]}
        if field == "toPorts":
            listed = [{"port": str(port), "protocol": name} for _, name, port in ports_alike]
            entry[field] = [{"ports": listed}]
        else:
            entry[field] = [
                {"fields": [{"family": name, "type": kind_} for _, name, kind_ in ports_alike]}
            ]
        yield entry
