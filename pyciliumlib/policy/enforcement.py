"""Whom a rule governs, and what holds where no clause speaks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from pyciliumlib.identity.labels import SOURCE_RESERVED, Label
from pyciliumlib.policy.model import Party, Rule
from pyciliumlib.policy.settings import Enforcement, PolicySettings
from pyciliumlib.types import Direction

INIT: Final = Label(SOURCE_RESERVED, "init")


def governs(rule: Rule, subject: Party) -> bool:
    """Whether `rule` is about `subject`; rules for nodes and for endpoints never mix."""
    return rule.on_nodes == subject.is_host and rule.subject.matches(subject.labels)


def is_enforced(
    rules: Sequence[Rule], settings: PolicySettings, subject: Party, direction: Direction
) -> bool:
    """Whether a direction of `subject`, which all of `rules` govern, is held to policy."""
    if settings.enforcement is Enforcement.NEVER:
        return False
    if subject.is_host and not settings.host_firewall:
        return False
    return (
        settings.enforcement is Enforcement.ALWAYS
        or subject.labels.has(INIT)
        or any(direction in rule.enforces for rule in rules)
    )


def denies_by_default(
    rules: Sequence[Rule], settings: PolicySettings, subject: Party, direction: Direction
) -> bool:
    """Whether what no rule allows is denied, in a direction that is enforced."""
    return (
        settings.enforcement is Enforcement.ALWAYS
        or subject.labels.has(INIT)
        or any(direction in rule.default_deny for rule in rules)
    )


def is_audited(settings: PolicySettings, subject: Party) -> bool:
    """Whether what policy denies `subject` passes all the same, and is told of."""
    return settings.audit or subject.audit


def admits_localhost(
    rules: Sequence[Rule], settings: PolicySettings, subject: Party, direction: Direction
) -> bool:
    """Whether the local host may reach `subject`, which all of `rules` govern, without a rule.

    As in Cilium, the allowance comes with the first rule about ingress: a pod that is being set
    up, and is enforced without any, admits nobody.
    """
    return (
        direction is Direction.INGRESS
        and settings.allow_localhost
        and not subject.is_host
        and any(direction in rule.enforces for rule in rules)
    )
