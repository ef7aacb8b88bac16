"""Questions about many connections at once, answered by the model alone."""

from __future__ import annotations

from pyciliumlib.policy.analysis.diff import Difference, PolicyDiff, RuleSet, diff
from pyciliumlib.policy.analysis.lint import Finding, Kind, lint
from pyciliumlib.policy.analysis.reachability import Reachability, reachability
from pyciliumlib.policy.analysis.suggest import Connection, Suggestion, connections, suggest

__all__ = [
    "Connection",
    "Difference",
    "Finding",
    "Kind",
    "PolicyDiff",
    "Reachability",
    "RuleSet",
    "Suggestion",
    "connections",
    "diff",
    "lint",
    "reachability",
    "suggest",
]
