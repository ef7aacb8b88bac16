"""Lint: for each kind of finding, rules that have it and rules that look alike and have not."""

from __future__ import annotations

from typing import Any

import pytest

from pyciliumlib.policy import Repository
from pyciliumlib.policy.analysis import Kind


def pod(app: str, namespace: str = "default") -> list[str]:
    return [
        f"k8s:app={app}",
        f"k8s:io.kubernetes.pod.namespace={namespace}",
        "k8s:io.cilium.k8s.policy.cluster=default",
    ]


def policy(name: str = "p", app: str = "web", **spec: Any) -> dict[str, Any]:
    selector = {"matchLabels": {"app": app}} if app else {}
    return {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumNetworkPolicy",
        "metadata": {"name": name},
        "spec": {"endpointSelector": selector, **spec},
    }


def ports(*listed: str, **more: Any) -> dict[str, Any]:
    items = []
    for text in listed:
        port, _, protocol = text.partition("/")
        items.append({"port": port, "protocol": protocol})
    return {"toPorts": [{"ports": items, **more}]}


API = {"fromEndpoints": [{"matchLabels": {"app": "api"}}]}
TO_API = {"toEndpoints": [{"matchLabels": {"app": "api"}}]}
DNS = {"toEndpoints": [{"matchLabels": {"app": "api"}}], **ports("53/UDP")}
HTTP = ports("80/TCP", rules={"http": [{"method": "GET"}]})
SEEN = {"rules": {"dns": [{"matchPattern": "*.shop.test"}]}}
NAME = {"toFQDNs": [{"matchName": "a.shop.test"}]}
OTHER_NAME = {"toFQDNs": [{"matchName": "a.else.test"}]}
ADMIN = {
    "apiVersion": "policy.networking.k8s.io/v1alpha2",
    "kind": "ClusterNetworkPolicy",
    "metadata": {"name": "k"},
    "spec": {
        "tier": "Baseline",
        "priority": 1,
        "subject": {"pods": {"podSelector": {"matchLabels": {"app": "web"}}}},
        "ingress": [{"action": "Deny", "from": [{"namespaces": {}}]}],
    },
}

#: Kind, documents that have it (and where), documents that have not.
CASES: dict[str, tuple[Kind, list[Any], str, list[Any]]] = {
    "subject": (
        Kind.SELECTS_NO_SUBJECT,
        [policy(app="nobody", ingress=[API])],
        "spec",
        [policy(ingress=[API])],
    ),
    "peer": (
        Kind.SELECTS_NO_PEER,
        [policy(ingress=[{"fromEndpoints": [{"matchLabels": {"app": "apo"}}]}])],
        "spec.ingress[0]",
        [policy(ingress=[API, {"fromEntities": ["health"]}, {"fromCIDR": ["192.0.2.0/24"]}])],
    ),
    "peer of another namespace": (
        Kind.SELECTS_NO_PEER,
        [policy(ingress=[{"fromEndpoints": [{"matchLabels": {"app": "far"}}]}])],
        "spec.ingress[0]",
        [policy(ingress=[{"fromEndpoints": [
            {"matchLabels": {"app": "far", "k8s:io.kubernetes.pod.namespace": "other"}}]}])],
    ),
    "denied": (
        Kind.DENIED_ANYWAY,
        [policy(ingress=[{**API, **ports("80/TCP")}], ingressDeny=[API])],
        "spec.ingress[0].toPorts[0]",
        [policy(ingress=[API], ingressDeny=[{**API, **ports("80/TCP")}])],
    ),
    "denied for every pod": (
        Kind.DENIED_ANYWAY,
        [policy(ingress=[API]), policy("q", app="", ingressDeny=[{"fromEntities": ["all"]}])],
        "spec.ingress[0]",
        [policy(ingress=[API]), policy("q", app="api", ingressDeny=[{"fromEntities": ["all"]}])],
    ),
    "denied later": (
        Kind.DENIED_ANYWAY,
        [policy(ingress=[API], ingressDeny=[API])],
        "spec.ingress[0]",
        [policy(ingress=[API]), ADMIN],
    ),
    "allowed twice": (
        Kind.ALLOWED_ANYWAY,
        [policy(ingress=[API, {**API, **ports("80/TCP")}])],
        "spec.ingress[1].toPorts[0]",
        [policy(ingress=[{**API, **ports("80/TCP")}, {**API, **ports("81/TCP")}])],
    ),
    "the same twice": (
        Kind.ALLOWED_ANYWAY,
        [policy(ingress=[API, API])],
        "spec.ingress[1]",
        [policy(ingress=[API, {}])],
    ),
    "L7 beside a plain allow": (
        Kind.L7_WITHOUT_EFFECT,
        [policy(ingress=[{**API, **HTTP}, API])],
        "spec.ingress[0].toPorts[0]",
        [policy(ingress=[{**API, **HTTP}, {**API, **ports("81/TCP")}])],
    ),
    "L7 for anybody": (
        Kind.L7_FOR_ANYBODY,
        [policy(ingress=[HTTP])],
        "spec.ingress[0].toPorts[0]",
        [policy(ingress=[{**API, **HTTP}])],
    ),
    "names": (
        Kind.NAMES_NOT_LEARNED,
        [policy(egress=[OTHER_NAME, {**TO_API, **ports("53/UDP", **SEEN)}])],
        "spec.egress[0]",
        [policy(egress=[NAME, {**TO_API, **ports("53/UDP", **SEEN)}])],
    ),
    "names without any rule": (
        Kind.NAMES_NOT_LEARNED,
        [policy(egress=[NAME, DNS])],
        "spec.egress[0]",
        [policy(egress=[NAME, {**TO_API, **ports("53/UDP", rules={
            "dns": [{"matchPattern": "*"}]})}])],
    ),
    "no DNS": (
        Kind.NO_DNS,
        [policy(egress=[{**TO_API, **ports("80/TCP")}])],
        "spec",
        [policy(egress=[{**TO_API, **ports("80/TCP")}]), policy("dns", app="", egress=[DNS])],
    ),
    "the world": (
        Kind.OPEN_TO_THE_WORLD,
        [policy(ingress=[{"fromEntities": ["all"]}])],
        "spec.ingress[0]",
        [policy(ingress=[{"fromEntities": ["all"], **ports("80/TCP")}])],
    ),
    "port name": (
        Kind.NO_SUCH_PORT_NAME,
        [policy(ingress=[{**API, **ports("htpp/TCP")}])],
        "spec.ingress[0].toPorts[0]",
        [policy(ingress=[{**API, **ports("http/TCP")}])],
    ),
}  # fmt: skip


def findings(documents: list[Any]) -> list[tuple[Kind, str]]:
    repository = Repository()
    repository.update_identities(
        {1001: pod("web"), 1002: pod("api"), 1003: pod("far", "other")},
        named_ports={1001: {"http": (80, 6)}},  # type: ignore[dict-item]
    )
    repository.apply(documents)
    return [(finding.kind, finding.source.path) for finding in repository.lint()]


@pytest.mark.parametrize("case", CASES)
def test_what_is_found_and_what_is_not(case: str) -> None:
    kind, having, where, lacking = CASES[case]
    assert (kind, where) in findings(having)
    assert kind not in [found for found, _ in findings(lacking)]


def test_rules_without_fault_have_no_findings() -> None:
    """A usual pair of policies: default deny, and what is allowed."""
    assert findings([
        policy("deny", app="", ingress=[{}], egress=[{}]),
        policy("dns", app="", egress=[DNS]),
        policy(ingress=[{**API, **ports("80/TCP")}], egress=[{**TO_API, **ports("80/TCP")}]),
    ]) == []  # fmt: skip


def test_a_finding_says_what_would_mend_it() -> None:
    repository = Repository()
    repository.apply(policy(app="nobody", ingress=[{}]))
    (finding,) = repository.lint()
    assert str(finding) == (
        "CiliumNetworkPolicy default/p spec: no known identity is selected by "
        "any:app=nobody,k8s:io.kubernetes.pod.namespace=default; check the labels and the "
        "namespace [selects-no-subject]"
    )
