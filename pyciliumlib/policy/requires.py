"""`fromRequires` and `toRequires`: conditions that hold for the peers of every rule of a subject.

Cilium had them until 1.18. They allow nobody by themselves: they narrow the pods that the rules of
the same subject select by `fromEndpoints` and `toEndpoints`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from attrs import evolve

from pyciliumlib.identity.selector import Requirement
from pyciliumlib.policy.model import Clause, Rule
from pyciliumlib.policy.peers import Scope, parse_selector
from pyciliumlib.policy.schema import Problems
from pyciliumlib.types import Direction


def read_requires(
    entry: Mapping[str, Any], field: str, path: str, scope: Scope, problems: Problems
) -> tuple[Requirement, ...]:
    """The conditions of one rule entry."""
    found: list[Requirement] = []
    for index, value in enumerate(entry.get(field, ())):
        where = f"{path}.{field}[{index}]"
        if problems.prune:
            problems.add(where, "current Cilium has no such conditions")
            continue
        selector = parse_selector(value, where, problems)
        if selector is not None:
            found.extend(scope.peer(selector).requirements)
    return tuple(found)


def confine(rules: Sequence[Rule]) -> Sequence[Rule]:
    """The rules of one subject, with what any of them requires of peers."""
    required: dict[Direction, dict[Requirement, None]] = {direction: {} for direction in Direction}
    for rule in rules:
        for direction, requirement in rule.requires:
            required[direction][requirement] = None
    if not any(required.values()):
        return rules

    def narrow(clause: Clause) -> Clause:
        conditions = required[clause.direction]
        if not (clause.confined and conditions and clause.peers):
            return clause
        return evolve(clause, peers=tuple(p.with_requirement(*conditions) for p in clause.peers))

    return [evolve(rule, clauses=tuple(map(narrow, rule.clauses))) for rule in rules]
