"""CiliumCIDRGroup objects: sets of prefixes by name, and the clauses that refer to them.

A clause that refers to groups keeps its references; whoever holds the documents fills in the
prefixes that the groups have now, and again when a group changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from attrs import evolve

from pyciliumlib.identity.labels import SOURCE_K8S, Labels, covers
from pyciliumlib.policy import fields
from pyciliumlib.policy.cilium import read_metadata
from pyciliumlib.policy.model import Clause, GroupReference, PolicyDocument, PolicyKey, Rule
from pyciliumlib.policy.peers import parse_prefix, select_prefix
from pyciliumlib.policy.schema import Problems, texts
from pyciliumlib.policy.settings import PolicySettings
from pyciliumlib.types import Network

CIDR_GROUP: Final = "CiliumCIDRGroup"
API_VERSIONS: Final = ("cilium.io/v2", "cilium.io/v2alpha1")


def read_group(
    data: Mapping[str, Any], kind: str, settings: PolicySettings, problems: Problems
) -> PolicyDocument:
    """The group `data`: a document without rules, whose `members` are the prefixes."""
    del settings
    item = fields.DOCUMENT.read(data, "", problems)
    key, labels = read_metadata(item, kind, False, problems)
    spec = fields.CIDR_GROUP.read(item.get("spec", {}), "spec", problems)
    members = [
        parse_prefix(text, where, problems)
        for text, where in texts(spec.get("externalCIDRs", []), "spec.externalCIDRs", problems)
    ]
    return PolicyDocument(key, (), labels, tuple(dict.fromkeys(m for m in members if m)))


def refers(document: PolicyDocument) -> bool:
    """Whether a clause of the document refers to groups."""
    return any(clause.groups for rule in document.rules for clause in rule.clauses)


def fill(rule: Rule, groups: Mapping[PolicyKey, PolicyDocument], settings: PolicySettings) -> Rule:
    """The rule with the prefixes that its groups have; a group that is not there has none."""
    if not any(clause.groups for clause in rule.clauses):
        return rule
    return evolve(
        rule, clauses=tuple(_fill_clause(clause, groups, settings) for clause in rule.clauses)
    )


def _fill_clause(
    clause: Clause, groups: Mapping[PolicyKey, PolicyDocument], settings: PolicySettings
) -> Clause:
    selectors = dict.fromkeys(clause.peers or ())
    for reference in clause.groups:
        for prefix in _members(reference, groups):
            inside = tuple(hole for hole in reference.excepts if covers(prefix, hole))
            if not any(covers(hole, prefix) for hole in reference.excepts):
                selectors[select_prefix(prefix, inside, settings)] = None
    return evolve(clause, peers=tuple(selectors)) if clause.groups else clause


def _members(
    reference: GroupReference, groups: Mapping[PolicyKey, PolicyDocument]
) -> tuple[Network, ...]:
    if reference.selector is None:
        group = groups.get(PolicyKey(CIDR_GROUP, "", reference.name))
        return group.members if group else ()
    selector = reference.selector
    return tuple(
        prefix
        for _, group in sorted(groups.items())
        if selector.matches(Labels.parse(group.labels, source=SOURCE_K8S))
        for prefix in group.members
    )
