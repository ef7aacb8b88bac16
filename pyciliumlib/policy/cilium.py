"""Reading CiliumNetworkPolicy and CiliumClusterwideNetworkPolicy into rules."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any, Final, TypeGuard

from attrs import define, frozen

from pyciliumlib.errors import nearest
from pyciliumlib.identity.labels import SOURCE_RESERVED
from pyciliumlib.identity.selector import Requirement, Selector
from pyciliumlib.policy import fields
from pyciliumlib.policy.bandwidth import read_bandwidth
from pyciliumlib.policy.model import (
    ALL_PORTS,
    Authentication,
    BandwidthLimit,
    Clause,
    PolicyDocument,
    PolicyKey,
    Rule,
    Source,
)
from pyciliumlib.policy.peers import (
    Scope,
    parse_selector,
    read_peers,
    reserved,
)
from pyciliumlib.policy.ports import PortContext, PortGroup, read_icmps, read_ports
from pyciliumlib.policy.reference_reader import read_references
from pyciliumlib.policy.requires import read_requires
from pyciliumlib.policy.schema import Problems, Schema
from pyciliumlib.policy.settings import PolicySettings
from pyciliumlib.types import Direction

CNP: Final = "CiliumNetworkPolicy"
CCNP: Final = "CiliumClusterwideNetworkPolicy"
API_VERSIONS: Final = ("cilium.io/v2",)
LOG_MAX: Final = 32
_AUTH_MODES: Final = {str(mode): mode for mode in Authentication}


@frozen
class _Section:
    """One of the four lists of a rule."""

    name: str
    direction: Direction
    deny: bool
    word: str
    schema: Schema


_SECTIONS: Final = (
    _Section("ingress", Direction.INGRESS, False, "from", fields.INGRESS),
    _Section("ingressDeny", Direction.INGRESS, True, "from", fields.INGRESS_DENY),
    _Section("egress", Direction.EGRESS, False, "to", fields.EGRESS),
    _Section("egressDeny", Direction.EGRESS, True, "to", fields.EGRESS_DENY),
)


def read_policy(
    data: Mapping[str, Any], kind: str, settings: PolicySettings, problems: Problems
) -> PolicyDocument:
    """The document `data`, of kind `CNP` or `CCNP`; what is wrong goes to `problems`.

    A CiliumNetworkPolicy without a namespace is in `default`, as kubectl would put it.
    """
    item = fields.DOCUMENT.read(data, "", problems)
    key, labels = read_metadata(item, kind, kind == CNP, problems)
    specs: list[tuple[str, Any]] = [("spec", item["spec"])] if "spec" in item else []
    specs += [(f"specs[{index}]", spec) for index, spec in enumerate(item.get("specs", []))]
    if not specs:
        problems.add("", "neither spec nor specs is there, so the policy says nothing")
    rules = [_Reader(key, path, settings, problems).read(spec) for path, spec in specs]
    return PolicyDocument(key, tuple(rule for rule in rules if rule), labels)


def read_metadata(
    item: Mapping[str, Any], kind: str, namespaced: bool, problems: Problems
) -> tuple[PolicyKey, dict[str, str]]:
    """The key of a document, and its labels."""
    metadata = fields.METADATA.read(item.get("metadata", {}), "metadata", problems)
    name = metadata.get("name", "")
    if not name:
        problems.add("metadata", "name is missing")
    namespace = metadata.get("namespace", "")
    if namespace and not namespaced:
        problems.add("metadata.namespace", f"a {kind} belongs to no namespace; leave it out")
    labels = metadata.get("labels", {})
    if not all(isinstance(k, str) and isinstance(v, str) for k, v in labels.items()):
        problems.add("metadata.labels", "keys and values are texts; quote numbers")
        labels = {}
    return PolicyKey(kind, (namespace or "default") if namespaced else "", name), dict(labels)


def _is_limit(entry: object) -> bool:
    """Whether a rule entry is a limit of bandwidth, and says nothing about peers."""
    return _is_object(entry) and "toBandwidth" in entry and entry["toBandwidth"] is not None


@lru_cache(64)
def _set_of(*directions: Direction) -> frozenset[Direction]:
    """One object for all rules that are about these."""
    return frozenset(directions)


def _is_object(entry: object) -> TypeGuard[Mapping[str, Any]]:
    return type(entry) is dict or isinstance(entry, Mapping)  # asking the first costs a tenth


@define
class _Reader:
    """Reads one spec of a document."""

    key: PolicyKey
    path: str
    settings: PolicySettings
    problems: Problems

    def read(self, spec: object) -> Rule | None:
        item = fields.RULE.read(spec, self.path, self.problems)
        on_nodes = "nodeSelector" in item
        subject = self._subject(item, on_nodes)
        sections = [section for section in _SECTIONS if item.get(section.name)]
        if not sections:
            self.problems.add(
                self.path,
                "ingress, ingressDeny, egress and egressDeny are all empty, so the rule says "
                "nothing; `ingress: [{}]` denies all ingress",
            )
        if subject is None:
            return None
        scope = Scope(self.key.namespace, self.settings, subject.names_key("init", SOURCE_RESERVED))
        clauses: list[Clause] = []
        for section in sections:
            clauses += self._section(item[section.name], section, scope, on_nodes)
        limits = [entry for entry in item.get("egress", ()) if _is_limit(entry)]
        only_limits = len(limits) == len(item.get("egress", ()))
        enforces = _set_of(
            *[s.direction for s in sections if not (s.name == "egress" and only_limits)]
        )
        subject = scope.subject(subject, f"{self.path}.endpointSelector", self.problems)
        return Rule(
            self._source(""),
            subject.with_requirement(*reserved("host").requirements) if on_nodes else subject,
            on_nodes,
            tuple(clauses),
            enforces,
            self._default_deny(item, enforces),
            item.get("description", ""),
            tuple(self._requires(item, sections, scope)),
            self._bandwidth(item["egress"]) if limits else None,
            self._log(item),
        )

    def _source(self, path: str) -> Source:
        return Source(self.key.kind, self.key.namespace, self.key.name, f"{self.path}{path}")

    def _subject(self, item: Mapping[str, Any], on_nodes: bool) -> Selector | None:
        if on_nodes == ("endpointSelector" in item):
            self.problems.add(
                self.path,
                "exactly one of endpointSelector and nodeSelector is "
                "needed; `endpointSelector: {}` selects all",
            )
            return None
        field = "nodeSelector" if on_nodes else "endpointSelector"
        path = f"{self.path}.{field}"
        if on_nodes and self.key.kind == CNP:
            self.problems.add(path, f"nodes belong to no namespace; write a {CCNP}")
        elif on_nodes and not self.settings.host_firewall:
            self.problems.warn(
                path, "no node is governed without PolicySettings(host_firewall=True)"
            )
        return parse_selector(item[field], path, self.problems)

    def _default_deny(
        self, item: Mapping[str, Any], enforces: frozenset[Direction]
    ) -> frozenset[Direction]:
        if "enableDefaultDeny" not in item or not self.settings.non_default_deny:
            return enforces
        path = f"{self.path}.enableDefaultDeny"
        chosen = fields.DEFAULT_DENY.read(item["enableDefaultDeny"], path, self.problems)
        for direction in Direction:
            if chosen.get(str(direction)) and direction not in enforces:
                self.problems.warn(
                    f"{path}.{direction}",
                    f"true says nothing where no rule is about {direction}; "
                    f"`{direction}: [{{}}]` denies all of it",
                )
        return _set_of(*(d for d in enforces if chosen.get(str(d), True)))

    def _section(
        self, entries: list[Any], section: _Section, scope: Scope, on_nodes: bool
    ) -> Iterator[Clause]:
        context = PortContext(
            section.direction, section.deny, not self.key.namespace, on_nodes, self.settings
        )
        path = f"{self.path}.{section.name}"
        for entry, where in section.schema.read_list(entries, path, self.problems):
            if _is_limit(entry):
                continue
            peers = read_peers(entry, section.word, where, scope, self.problems)
            references = read_references(entry, section.word, where, self.problems)
            authentication = self._authentication(entry, where)
            for ports in self._groups(entry, where, bool(peers or references), context):
                yield Clause(
                    self._source(ports.path.removeprefix(self.path)),
                    section.direction,
                    section.deny,
                    peers,
                    ports.ports,
                    ports.l7,
                    references,
                    f"{section.word}Endpoints" in entry and not section.deny,
                    authentication,
                )

    def _bandwidth(self, entries: list[Any]) -> BandwidthLimit | None:
        """The lowest limit of the entries."""
        limits = [
            read_bandwidth(entry, f"{self.path}.egress[{index}]", self.problems)
            for index, entry in enumerate(entries)
            if _is_limit(entry) and isinstance(entry["toBandwidth"], Mapping)
        ]
        return min((limit for limit in limits if limit), default=None)

    def _log(self, item: Mapping[str, Any]) -> str:
        if "log" not in item:
            return ""
        path = f"{self.path}.log"
        chosen = fields.LOG.read(item["log"], path, self.problems)
        value: str = chosen.get("value", "")
        if len(value) > LOG_MAX or not value.isprintable():
            self.problems.add(f"{path}.value", f"write at most {LOG_MAX} printable characters")
        return value

    def _requires(
        self, item: Mapping[str, Any], sections: list[_Section], scope: Scope
    ) -> Iterator[tuple[Direction, Requirement]]:
        for section in sections:
            field = f"{section.word}Requires"
            for index, entry in enumerate(item[section.name]):
                if _is_object(entry) and isinstance(entry.get(field), list):
                    path = f"{self.path}.{section.name}[{index}]"
                    for requirement in read_requires(entry, field, path, scope, self.problems):
                        yield section.direction, requirement

    def _groups(
        self,
        entry: Mapping[str, Any],
        path: str,
        names_peers: bool,
        context: PortContext,
    ) -> list[PortGroup]:
        if entry.get("toPorts") and entry.get("icmps"):
            self.problems.add(path, "toPorts and icmps in one entry; write an entry for each")
        if entry.get("icmps") and not self.settings.icmp_rules:
            self.problems.add(f"{path}.icmps", "PolicySettings.icmp_rules is off")
        groups: list[PortGroup] = []
        if "toPorts" in entry:
            groups += read_ports(entry["toPorts"], f"{path}.toPorts", context, self.problems)
        if "icmps" in entry:
            groups += read_icmps(entry["icmps"], f"{path}.icmps", self.problems)
        # peers alone are meant on all ports; an entry that names neither says nothing
        return groups or [PortGroup((ALL_PORTS,) if names_peers else (), None, path)]

    def _authentication(self, entry: Mapping[str, Any], path: str) -> Authentication | None:
        if "authentication" not in entry:
            return None
        where = f"{path}.authentication"
        item = fields.AUTHENTICATION.read(entry["authentication"], where, self.problems)
        mode = item.get("mode", "disabled")
        if mode not in _AUTH_MODES:
            self.problems.add(f"{where}.mode", f"unknown mode {mode!r}{nearest(mode, _AUTH_MODES)}")
            return None
        if mode != "disabled":
            self.problems.warn(where, "there is no authenticator yet: such traffic is dropped")
        return _AUTH_MODES[mode]
