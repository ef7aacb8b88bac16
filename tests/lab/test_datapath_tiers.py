"""The administrator's tiers on real traffic: what the model says is what the wire does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from pyciliumlib.flow import DropReason
from pyciliumlib.lab import Lab
from tests.lab import scenes
from tests.lab.scenes import DENY, OPEN, POLICY, VERSIONS, Scene, apps, ports

NO_PROXY = int(DropReason.NO_PROXY)
ALL_PODS: dict[str, Any] = {"namespaces": {}}
WORLD = {"networks": ["0.0.0.0/0", "::/0"]}


def pods(app: str) -> dict[str, Any]:
    return {"pods": {"namespaceSelector": {}, "podSelector": {"matchLabels": {"app": app}}}}


def administrator(name: str, tier: str, priority: int = 0, **sections: Any) -> dict[str, Any]:
    """A ClusterNetworkPolicy about the pod api; rules are (action, peer, port or nothing)."""
    spec: dict[str, Any] = {"tier": tier, "priority": priority, "subject": pods("api")}
    for section, rules in sections.items():
        word = "from" if section == "ingress" else "to"
        spec[section] = [
            {"action": action, word: [peer]}
            | ({"protocols": [{"tcp": {"destinationPort": {"number": port}}}]} if port else {})
            for action, peer, port in rules
        ]
    return {
        "apiVersion": "policy.networking.k8s.io/v1alpha2",
        "kind": "ClusterNetworkPolicy",
        "metadata": {"name": name},
        "spec": spec,
    }


WEB_AND_NOBODY_ELSE = administrator(
    "guard", "Admin", ingress=[("Pass", pods("web"), 0), ("Deny", ALL_PODS, 0)]
)
WEB_MAY = scenes.policy("api", {"app": "api"}, ingress=[{**apps("from", "web"), **ports("80/TCP")}])
HTTP = {"ports": [{"port": "80", "protocol": "TCP"}], "rules": {"http": [{"method": "GET"}]}}
BY_PROXY = scenes.policy(
    "api", {"app": "api"}, ingress=[{"fromEntities": ["all"], "toPorts": [HTTP]}]
)

#: Documents, and what becomes of connections between these ends.
CASES: dict[str, tuple[list[dict[str, Any]], dict[tuple[str, str, str], int]]] = {
    "an allow over a deny": (
        [
            administrator("k", "Admin", ingress=[("Accept", pods("web"), 80)]),
            scenes.policy("api", {"app": "api"}, ingressDeny=[apps("from", "web", "db")]),
        ],
        {("web", "api", "80/TCP"): OPEN, ("web", "api", "81/TCP"): DENY,
         ("db", "api", "80/TCP"): DENY},
    ),
    "a pass to the pods' own rules": (
        [WEB_AND_NOBODY_ELSE, WEB_MAY],
        {("web", "api", "80/TCP"): OPEN, ("web", "api", "81/TCP"): DENY,
         ("db", "api", "80/TCP"): DENY, ("world", "api", "80/TCP"): DENY,
         ("node", "api", "81/TCP"): OPEN},
    ),
    "a pass where there are none": (
        [WEB_AND_NOBODY_ELSE],
        {("web", "api", "81/TCP"): OPEN, ("db", "api", "80/TCP"): DENY,
         ("world", "api", "80/TCP"): OPEN},
    ),
    "a pass to a proxy": (
        [WEB_AND_NOBODY_ELSE, BY_PROXY],
        {("web", "api", "80/TCP"): NO_PROXY, ("web", "api", "81/TCP"): DENY,
         ("db", "api", "80/TCP"): DENY, ("world", "api", "80/TCP"): NO_PROXY},
    ),
    "a baseline before default deny": (
        [
            administrator("k", "Baseline", ingress=[("Accept", pods("db"), 0)]),
            WEB_MAY,
        ],
        {("db", "api", "81/TCP"): OPEN, ("web", "api", "80/TCP"): OPEN,
         ("web", "api", "81/TCP"): POLICY},
    ),
    "the lower priority of two policies": (
        [
            administrator("late", "Admin", 9, ingress=[("Accept", ALL_PODS, 0)]),
            administrator("early", "Admin", 8, ingress=[("Deny", ALL_PODS, 81)]),
        ],
        {("web", "api", "80/TCP"): OPEN, ("web", "api", "81/TCP"): DENY},
    ),
    "egress to networks": (
        [administrator("k", "Admin", egress=[("Pass", WORLD, 80), ("Deny", WORLD, 0)])],
        {("api", "world", "80/TCP"): OPEN, ("api", "world", "81/TCP"): DENY,
         ("api", "web", "81/TCP"): OPEN, ("api", "world", "53/UDP"): DENY},
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def shared() -> Iterator[Scene]:
    with Lab() as lab, scenes.scene(lab) as made:
        yield made


@VERSIONS
@pytest.mark.parametrize("case", CASES)
def test_the_tiers_on_the_wire(shared: Scene, case: str, version: int) -> None:
    documents, expected = CASES[case]
    dp = shared.dp
    dp.policy.apply(documents)
    try:
        seen = {cell: shared.verdict(*cell, version) for cell in expected}
        said = {}
        for src, dst, port in expected:
            ends = (scenes.at(shared.host(name), version) for name in (src, dst))
            said[src, dst, port] = str(dp.policy.explain(*ends, port).verdict)
        assert seen == expected
        outcome = {OPEN: "allow", NO_PROXY: "redirect", DENY: "deny", POLICY: "deny"}
        assert said == {cell: outcome[number] for cell, number in expected.items()}
        assert not dp.drift()
    finally:
        shared.no_policy()
