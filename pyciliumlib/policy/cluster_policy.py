"""Reading ClusterNetworkPolicy of Kubernetes: rules of the administrator, in a tier of their own.

Its rules never turn default deny on. Within a policy they are asked in the order in which they are
written. https://network-policy-api.sigs.k8s.io/api-overview/, version v1alpha2.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from attrs import frozen

from pyciliumlib.errors import nearest
from pyciliumlib.identity.labels import SOURCE_ANY, SOURCE_NODE, Label
from pyciliumlib.identity.selector import Requirement, Selector
from pyciliumlib.policy import fields
from pyciliumlib.policy.cilium import read_metadata
from pyciliumlib.policy.kubernetes import of_namespaces, of_pods
from pyciliumlib.policy.l7 import L7, DNSRule, Parser
from pyciliumlib.policy.l7.reader import read_fqdns
from pyciliumlib.policy.model import (
    ALL_PORTS,
    Clause,
    Level,
    PolicyDocument,
    PolicyKey,
    PortMatch,
    Rule,
    Source,
    Tier,
)
from pyciliumlib.policy.peers import (
    REMOTE_NODE,
    Scope,
    parse_prefix,
    parse_selector,
    select_name,
    select_prefix,
)
from pyciliumlib.policy.ports import TRANSPORT, parse_port
from pyciliumlib.policy.schema import LIST, NUMBER, OBJECT, TEXT, Problems, Schema, texts
from pyciliumlib.policy.settings import PolicySettings
from pyciliumlib.types import Direction, Protocol
from pyciliumlib.types.ports import PORT_MAX

KCNP: Final = "ClusterNetworkPolicy"
API_VERSIONS: Final = ("policy.networking.k8s.io/v1alpha2",)
PRIORITY_MAX: Final = 1000
#: Of the rules of a direction, the peers of a rule, and its protocols.
ITEMS_MAX: Final = 25
_HUNDREDTHS: Final = 100

_TIERS: Final = {"Admin": Tier.ADMIN, "Baseline": Tier.BASELINE}
_ACTIONS: Final = ("Accept", "Deny", "Pass")
_SPEC: Final = Schema(
    "ClusterNetworkPolicy",
    {"tier": TEXT, "priority": NUMBER, "subject": OBJECT, "ingress": LIST, "egress": LIST},
    required=("tier", "priority", "subject"),
)
_PODS: Final = Schema("pods", {"namespaceSelector": OBJECT, "podSelector": OBJECT})
_SUBJECT: Final = Schema(
    "subject", {"namespaces": OBJECT, "pods": OBJECT}, one_of=("namespaces", "pods")
)
_INGRESS_PEERS: Final = ("namespaces", "pods")
_INGRESS_PEER: Final = Schema(
    "ingress peer", {"namespaces": OBJECT, "pods": OBJECT}, one_of=_INGRESS_PEERS
)
_EGRESS_PEER: Final = Schema(
    "egress peer",
    {"namespaces": OBJECT, "pods": OBJECT, "nodes": OBJECT, "networks": LIST, "domainNames": LIST},
    one_of=(*_INGRESS_PEERS, "nodes", "networks", "domainNames"),
)
_RULE_FIELDS: Final = {"name": TEXT, "action": TEXT, "protocols": LIST}
_INGRESS: Final = Schema("ingress rule", {**_RULE_FIELDS, "from": LIST}, ("action", "from"))
_EGRESS: Final = Schema("egress rule", {**_RULE_FIELDS, "to": LIST}, ("action", "to"))
_PROTOCOLS: Final = {protocol.name.lower(): protocol for protocol in TRANSPORT}
_PROTOCOL: Final = Schema(
    "protocol",
    {**dict.fromkeys(_PROTOCOLS, OBJECT), "destinationNamedPort": TEXT},
    one_of=(*_PROTOCOLS, "destinationNamedPort"),
)
_OF_PROTOCOL: Final = Schema("protocol's match", {"destinationPort": OBJECT})
_PORT: Final = Schema(
    "destinationPort", {"number": NUMBER, "range": OBJECT}, one_of=("number", "range")
)
_RANGE: Final = Schema("range", {"start": NUMBER, "end": NUMBER}, ("start", "end"))

#: Whom the subject asks for names, so that the proxy sees the answers; and its ports' names.
_KUBE_DNS: Final = Selector.of(Label(SOURCE_ANY, "k8s-app", "kube-dns"))
_DNS_PORTS: Final = tuple(
    PortMatch(protocol, name=name) for name in ("dns", "dns-tcp") for protocol in TRANSPORT
)


@frozen
class _Section:
    """The rules of one direction."""

    name: str
    direction: Direction
    schema: Schema
    peers: str
    peer: Schema


_SECTIONS: Final = (
    _Section("ingress", Direction.INGRESS, _INGRESS, "from", _INGRESS_PEER),
    _Section("egress", Direction.EGRESS, _EGRESS, "to", _EGRESS_PEER),
)


def read_policy(
    data: Mapping[str, Any], kind: str, settings: PolicySettings, problems: Problems
) -> PolicyDocument:
    """The ClusterNetworkPolicy `data`; what is wrong goes to `problems`."""
    item = fields.DOCUMENT.read(data, "", problems)
    key, labels = read_metadata(item, kind, False, problems)
    if not settings.is_current:
        problems.add("", "Cilium 1.17 has no tiers; leave PolicySettings.version at current")
    if "spec" not in item:
        problems.add("", "spec is missing")
    rule = _Reader(key, settings, problems).read(item.get("spec", {}))
    return PolicyDocument(key, (rule,) if rule else (), labels)


@frozen
class _Reader:
    key: PolicyKey
    settings: PolicySettings
    problems: Problems

    def read(self, spec: Mapping[str, Any]) -> Rule | None:
        item = _SPEC.read(spec, "spec", self.problems)
        tier = self._tier(item.get("tier", ""))
        priority = item.get("priority", 0)
        if not 0 <= priority <= PRIORITY_MAX:
            self.problems.add("spec.priority", f"{priority}: write 0 to {PRIORITY_MAX}")
        subject = _SUBJECT.read(item.get("subject", {}), "spec.subject", self.problems)
        selector = self._pods(subject, "spec.subject")
        clauses = tuple(
            clause
            for section in _SECTIONS
            for clause in self._section(item, section, Level(tier, priority * _HUNDREDTHS))
        )
        if selector is None:
            return None
        enforces = frozenset(s.direction for s in _SECTIONS if item.get(s.name))
        source = self._source("spec")
        return Rule(source, selector, False, clauses, enforces, frozenset())

    def _source(self, path: str) -> Source:
        return Source(self.key.kind, self.key.namespace, self.key.name, path)

    def _tier(self, name: str) -> Tier:
        if name and name not in _TIERS:
            self.problems.add(
                "spec.tier",
                f"unknown tier {name!r}{nearest(name, _TIERS)}; write Admin or Baseline",
            )
        return _TIERS.get(name, Tier.ADMIN)

    def _section(
        self, item: Mapping[str, Any], section: _Section, level: Level
    ) -> Iterator[Clause]:
        rules = self._at_most(item.get(section.name, []), f"spec.{section.name}")
        listed = section.schema.read_list(rules, f"spec.{section.name}", self.problems)
        for index, (entry, path) in enumerate(listed):
            at = level._replace(priority=level.priority + index)
            yield from self._entry(entry, path, section, at)

    def _at_most(self, values: list[Any], path: str) -> list[Any]:
        if len(values) > ITEMS_MAX:
            self.problems.add(path, f"{len(values)} entries; at most {ITEMS_MAX}")
        return values

    def _entry(
        self, entry: Mapping[str, Any], path: str, section: _Section, level: Level
    ) -> Iterator[Clause]:
        action = entry.get("action", "")
        if action and action not in _ACTIONS:
            self.problems.add(
                f"{path}.action",
                f"unknown action {action!r}{nearest(action, _ACTIONS)}; known are "
                f"{', '.join(_ACTIONS)}",
            )
        ports = self._ports(entry.get("protocols"), f"{path}.protocols")
        by_name = any(match.name for match in ports)
        peers: list[Selector] = []
        names: list[DNSRule] = []
        where = f"{path}.{section.peers}"
        listed = self._at_most(entry.get(section.peers, []), where)
        if section.peers in entry and not listed:
            self.problems.add(where, "nobody is named; write at least one peer")
        for peer, at in section.peer.read_list(listed, where, self.problems):
            peers.extend(self._peer(peer, at))
            names.extend(self._domain_names(peer, at, action))
            if by_name and not set(peer) & set(_INGRESS_PEERS):
                self.problems.add(at, "only pods have names for ports; write numbers")
        peers.extend(map(select_name, names))
        selectors = tuple(dict.fromkeys(peers))
        source = self._source(path)
        if names:
            asked = L7(Parser.DNS, rules=tuple(names))
            yield Clause(
                source, section.direction, False, (_KUBE_DNS,), _DNS_PORTS, asked, level=level
            )
        yield Clause(
            source,
            section.direction,
            action == "Deny",
            selectors,
            ports,
            level=level,
            passes=action == "Pass",
        )

    def _peer(self, peer: Mapping[str, Any], path: str) -> Iterator[Selector]:
        pods = self._pods(peer, path)
        if pods is not None:
            scope = Scope("", self.settings)
            yield scope.settle(pods) if "pods" in peer else pods
        if "nodes" in peer:
            yield from self._nodes(peer["nodes"], f"{path}.nodes")
        networks = self._at_most(peer.get("networks", []), f"{path}.networks")
        for text, where in texts(networks, f"{path}.networks", self.problems):
            network = parse_prefix(text, where, self.problems)
            if network is not None:
                yield select_prefix(network, (), self.settings)

    def _pods(self, item: Mapping[str, Any], path: str) -> Selector | None:
        """The pods that `namespaces` or `pods` select; None if neither is there."""
        if "namespaces" in item:
            spaces = parse_selector(item["namespaces"], f"{path}.namespaces", self.problems)
            return of_namespaces(spaces or Selector())
        if "pods" not in item:
            return None
        both = _PODS.read(item["pods"], f"{path}.pods", self.problems)
        spaces, pods = (
            parse_selector(both.get(name, {}), f"{path}.pods.{name}", self.problems) or Selector()
            for name in ("namespaceSelector", "podSelector")
        )
        return of_pods(pods).with_requirement(*of_namespaces(spaces).requirements)

    def _nodes(self, data: object, path: str) -> Iterator[Selector]:
        if not self.settings.node_selectors:
            self.problems.add(
                path, "nodes are selected only with PolicySettings(node_selectors=True)"
            )
        selector = parse_selector(data, path, self.problems) or Selector()
        nodes = Selector(
            Requirement(SOURCE_NODE, r.key, r.operator, r.values) for r in selector.requirements
        )
        yield Scope("", self.settings).settle(nodes.with_requirement(REMOTE_NODE))

    def _domain_names(self, peer: Mapping[str, Any], path: str, action: str) -> Iterator[DNSRule]:
        """The names of `domainNames`; here "*." stands for one label or more."""
        path = f"{path}.domainNames"
        names = texts(self._at_most(peer.get("domainNames", []), path), path, self.problems)
        if names and action in ("Deny", "Pass"):
            self.problems.add(path, f"names can only be accepted, not with action {action}")
        if names and not self.settings.l7_proxy:
            self.problems.add(path, "names need a proxy, and PolicySettings.l7_proxy is off")
        if names:
            self.problems.warn(
                path, "no name is learned while no DNS proxy is there: it selects nobody yet"
            )
        for name, where in names:
            if name.startswith("*."):
                rule: dict[str, str] = {"matchPattern": f"**.{name[2:]}"}
            else:
                rule = {"matchName": name}
            if "*" in name.removeprefix("*."):
                self.problems.add(where, f"{name!r}: one '*' may stand before the first dot")
            else:
                yield from read_fqdns([rule], where, self.problems)

    def _ports(self, values: list[Any] | None, path: str) -> tuple[PortMatch, ...]:
        if values is None:
            return (ALL_PORTS,)
        if not values:
            self.problems.add(path, "nothing is listed; leave it out to mean every port")
        found: list[PortMatch] = []
        listed = _PROTOCOL.read_list(self._at_most(values, path), path, self.problems)
        for item, where in listed:
            name = item.get("destinationNamedPort", "")
            if name.isdigit():
                self.problems.add(f"{where}.destinationNamedPort", f"{name!r} is a number")
            elif name:
                found.extend(parse_port(name, 0, TRANSPORT, where, self.problems))
            for word in item.keys() & _PROTOCOLS.keys():
                found.extend(self._port(_PROTOCOLS[word], item[word], f"{where}.{word}"))
        return tuple(dict.fromkeys(found))

    def _port(self, protocol: Protocol, data: object, path: str) -> Iterator[PortMatch]:
        port = _OF_PROTOCOL.read(data, path, self.problems).get("destinationPort")
        if port is None:
            yield PortMatch(protocol)
            return
        path = f"{path}.destinationPort"
        item = _PORT.read(port, path, self.problems)
        ends = _RANGE.read(item["range"], f"{path}.range", self.problems) if "range" in item else {}
        first = ends.get("start", 0) or item.get("number", 0)
        last = ends.get("end", 0) or first
        if 1 <= first <= last <= PORT_MAX:
            yield PortMatch(protocol, first, last)
        else:
            self.problems.add(
                path, f"{first} to {last}: write ports from 1 to {PORT_MAX}, in order"
            )
