"""Clauses that name other objects as peers: CIDR groups, and services.

Such a clause keeps its references; whoever holds the documents fills in the peers that the objects
stand for now, and again when one of them changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from attrs import evolve

from pyciliumlib.policy import cidr_groups, services
from pyciliumlib.policy.model import Clause, GroupReference, PolicyDocument, PolicyKey, Rule
from pyciliumlib.policy.settings import PolicySettings

#: The kinds of objects that clauses refer to.
KINDS: Final = frozenset(
    {cidr_groups.CIDR_GROUP, services.SERVICE, services.SLICE, services.ENDPOINTS}
)


def refers(document: PolicyDocument) -> bool:
    """Whether a clause of the document refers to other objects."""
    return any(clause.references for rule in document.rules for clause in rule.clauses)


def fill(
    rule: Rule, documents: Mapping[PolicyKey, PolicyDocument], settings: PolicySettings
) -> Rule:
    """The rule with the peers that its references mean; an object that is not there has none."""
    if not any(clause.references for clause in rule.clauses):
        return rule
    clauses = (_fill_clause(clause, documents, settings) for clause in rule.clauses)
    return evolve(rule, clauses=tuple(clauses))


def _fill_clause(
    clause: Clause, documents: Mapping[PolicyKey, PolicyDocument], settings: PolicySettings
) -> Clause:
    if not clause.references:
        return clause
    selectors = dict.fromkeys(clause.peers or ())
    for reference in clause.references:
        found = (
            cidr_groups.select(reference, documents, settings)
            if isinstance(reference, GroupReference)
            else services.select(reference, documents, settings)
        )
        selectors.update(dict.fromkeys(found))
    return evolve(clause, peers=tuple(selectors))
