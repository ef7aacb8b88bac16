"""Reading NetworkPolicy and Namespace objects of Kubernetes.

A NetworkPolicy has other defaults than Cilium's own: no peer means any peer, no `from` allows all.
https://kubernetes.io/docs/concepts/services-networking/network-policies/
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from attrs import frozen

from pyciliumlib.errors import nearest
from pyciliumlib.identity.labels import SOURCE_K8S
from pyciliumlib.identity.selector import Operator, Requirement, Selector
from pyciliumlib.policy import fields
from pyciliumlib.policy.cilium import read_metadata
from pyciliumlib.policy.model import (
    ALL_PORTS,
    Clause,
    NamespaceDocument,
    PolicyDocument,
    PolicyKey,
    PortMatch,
    Rule,
    Source,
)
from pyciliumlib.policy.peers import (
    IN_NAMESPACE,
    NAMESPACE_KEY,
    NAMESPACE_LABEL_PREFIX,
    Scope,
    parse_prefix,
    parse_selector,
    read_excepts,
    select_prefix,
)
from pyciliumlib.policy.ports import parse_port
from pyciliumlib.policy.schema import ANY, LIST, NUMBER, OBJECT, TEXT, Problems, Schema, texts
from pyciliumlib.policy.settings import PolicySettings
from pyciliumlib.types import Direction, Protocol

KNP: Final = "NetworkPolicy"
API_VERSIONS: Final = ("networking.k8s.io/v1",)

_SPEC: Final = Schema(
    "NetworkPolicy",
    {"podSelector": OBJECT, "policyTypes": LIST, "ingress": LIST, "egress": LIST},
)
_INGRESS: Final = Schema("ingress rule", {"from": LIST, "ports": LIST})
_EGRESS: Final = Schema("egress rule", {"to": LIST, "ports": LIST})
_PEER: Final = Schema(
    "peer", {"podSelector": OBJECT, "namespaceSelector": OBJECT, "ipBlock": OBJECT}
)
_IP_BLOCK: Final = Schema("ipBlock", {"cidr": TEXT, "except": LIST}, required=("cidr",))
_PORT: Final = Schema("port", {"port": ANY, "endPort": NUMBER, "protocol": TEXT})
_NAMESPACE: Final = Schema(
    "Namespace",
    {"apiVersion": TEXT, "kind": TEXT, "metadata": OBJECT, "spec": ANY, "status": ANY},
)
_PROTOCOLS: Final = {p.name: p for p in (Protocol.TCP, Protocol.UDP, Protocol.SCTP)}


def read_namespace(
    data: Mapping[str, Any], kind: str, settings: PolicySettings, problems: Problems
) -> NamespaceDocument:
    """A Namespace, for its labels."""
    del settings
    item = _NAMESPACE.read(data, "", problems)
    key, labels = read_metadata(item, kind, False, problems)
    return NamespaceDocument(key.name, labels)


def read_policy(
    data: Mapping[str, Any], kind: str, settings: PolicySettings, problems: Problems
) -> PolicyDocument:
    """A NetworkPolicy; without a namespace it is in `default`."""
    item = fields.DOCUMENT.read(data, "", problems)
    key, labels = read_metadata(item, kind, True, problems)
    if "spec" not in item:
        problems.add("", "spec is missing")
    rule = _Reader(key, settings, problems).read(item.get("spec", {"podSelector": {}}))
    return PolicyDocument(key, (rule,) if rule else (), labels)


@frozen
class _Reader:
    key: PolicyKey
    settings: PolicySettings
    problems: Problems

    def read(self, spec: object) -> Rule | None:
        item = _SPEC.read(spec, "spec", self.problems)
        pods = parse_selector(item.get("podSelector", {}), "spec.podSelector", self.problems)
        clauses = (
            *self._clauses(item, "ingress", "from", _INGRESS, Direction.INGRESS),
            *self._clauses(item, "egress", "to", _EGRESS, Direction.EGRESS),
        )
        enforces = self._enforces(item)
        if pods is None:
            return None
        return Rule(
            self._source("spec"),
            of_pods(pods).with_requirement(self._own_namespace()),
            False,
            clauses,
            enforces,
            enforces,
        )

    def _source(self, path: str) -> Source:
        return Source(self.key.kind, self.key.namespace, self.key.name, path)

    def _own_namespace(self) -> Requirement:
        return Requirement(SOURCE_K8S, NAMESPACE_KEY, Operator.IN, (self.key.namespace,))

    def _enforces(self, item: Mapping[str, Any]) -> frozenset[Direction]:
        """Those of `policyTypes`; without them ingress. A direction with rules is one in any case.

        Kubernetes passes over rules of a direction that `policyTypes` leaves out, Cilium does not.
        """
        sections = {"Ingress": Direction.INGRESS, "Egress": Direction.EGRESS}
        types = item.get("policyTypes")
        found = set() if types else {Direction.INGRESS}
        for name, where in texts(types or [], "spec.policyTypes", self.problems):
            if name in sections:
                found.add(sections[name])
            else:
                self.problems.add(
                    where,
                    f"unknown type {name!r}{nearest(name, sections)}; known are Ingress and Egress",
                )
        for name, direction in sections.items():
            if not item.get(str(direction)) or direction in found:
                continue
            if types:
                self.problems.warn(
                    f"spec.{direction}",
                    f"policyTypes leaves {name} out, yet Cilium enforces these rules; name it",
                )
            found.add(direction)
        return frozenset(found)

    def _clauses(
        self,
        item: Mapping[str, Any],
        section: str,
        word: str,
        schema: Schema,
        direction: Direction,
    ) -> Iterator[Clause]:
        entries = item.get(section, [])
        for entry, path in schema.read_list(entries, f"spec.{section}", self.problems):
            ports = self._ports(entry.get("ports", []), f"{path}.ports")
            if not entry.get(word):
                yield Clause(self._source(path), direction, False, None, ports)
            for peer, where in _PEER.read_list(
                entry.get(word, []), f"{path}.{word}", self.problems
            ):
                peers = self._peer(peer, where)
                yield Clause(self._source(where), direction, False, peers, ports)

    def _peer(self, peer: Mapping[str, Any], path: str) -> tuple[Selector, ...]:
        if "ipBlock" in peer:
            if len(peer) > 1:
                self.problems.add(path, "ipBlock stands alone; write an entry for each peer")
            return self._ip_block(peer["ipBlock"], f"{path}.ipBlock")
        if not peer:
            self.problems.add(path, "podSelector, namespaceSelector or ipBlock is missing")
            return ()
        pods = parse_selector(peer.get("podSelector", {}), f"{path}.podSelector", self.problems)
        found = of_pods(pods or Selector())
        if "namespaceSelector" in peer:
            where = f"{path}.namespaceSelector"
            spaces = parse_selector(peer["namespaceSelector"], where, self.problems) or Selector()
            found = found.with_requirement(*of_namespaces(spaces).requirements)
        else:
            found = found.with_requirement(self._own_namespace())
        return (Scope(self.key.namespace, self.settings).settle(found),)

    def _ip_block(self, data: object, path: str) -> tuple[Selector, ...]:
        item = _IP_BLOCK.read(data, path, self.problems)
        if "cidr" not in item:
            return ()
        network = parse_prefix(item["cidr"], f"{path}.cidr", self.problems)
        excepts = read_excepts(item.get("except", []), f"{path}.except", network, self.problems)
        return (select_prefix(network, excepts, self.settings),) if network else ()

    def _ports(self, values: list[Any], path: str) -> tuple[PortMatch, ...]:
        if not values:
            return (ALL_PORTS,)
        found: list[PortMatch] = []
        for item, where in _PORT.read_list(values, path, self.problems):
            name = item.get("protocol", "TCP")
            if name not in _PROTOCOLS:
                self.problems.add(
                    f"{where}.protocol",
                    f"unknown protocol {name!r}"
                    f"{nearest(name, _PROTOCOLS)}; known are TCP, UDP and SCTP",
                )
                continue
            found.extend(self._port(item, (_PROTOCOLS[name],), where))
        return tuple(dict.fromkeys(found))

    def _port(
        self, item: Mapping[str, Any], protocols: tuple[Protocol, ...], path: str
    ) -> list[PortMatch]:
        """The API server refuses all that is refused here; taken as Cilium does, it would widen."""
        port, end = item.get("port"), item.get("endPort", 0)
        if isinstance(port, bool) or not isinstance(port, (int, str, type(None))):
            self.problems.add(f"{path}.port", f"expected a number or a name, found {port!r}")
        elif port in (0, "0"):
            self.problems.add(f"{path}.port", f"ports begin at 1, found {port!r}; leave it out")
        elif end and not isinstance(port, int):
            self.problems.add(f"{path}.endPort", "a range begins with a port's number")
        elif isinstance(port, int) and 0 < end < port:
            self.problems.add(f"{path}.endPort", f"the range ends at {end}, before {port}")
        else:
            text = "0" if port is None else str(port)
            return parse_port(text, end, protocols, path, self.problems)
        return []


def of_pods(selector: Selector) -> Selector:
    """A selector of pods whose keys are those of Kubernetes, whatever they look like."""
    return Selector(
        Requirement(SOURCE_K8S, r.key, r.operator, r.values) for r in selector.requirements
    )


def of_namespaces(selector: Selector) -> Selector:
    """The pods in the namespaces that a selector of namespaces means; an empty one means all."""
    return Selector(
        [
            Requirement(SOURCE_K8S, NAMESPACE_LABEL_PREFIX + r.key, r.operator, r.values)
            for r in selector.requirements
        ]
        or [IN_NAMESPACE]
    )
