"""What documents mean in Cilium 1.17, beside what they mean now."""

from __future__ import annotations

from typing import Any

import pytest

from pyciliumlib.errors import PolicyError
from pyciliumlib.identity.cidr import cidr_labels
from pyciliumlib.policy import Direction, Party, PolicySettings, Repository, Verdict, parse

OLD, NEW = PolicySettings.of_version("1.17"), PolicySettings()
NAMESPACE = "k8s:io.kubernetes.pod.namespace=default"
CLUSTER = "k8s:io.cilium.k8s.policy.cluster"
WEB = Party(["k8s:app=web", NAMESPACE, f"{CLUSTER}=default"])
FAR = Party(["k8s:app=web", NAMESPACE, f"{CLUSTER}=far"])
DNS = Party(["k8s:k8s-app=kube-dns", NAMESPACE, f"{CLUSTER}=default"])


def policy(section: str, **entry: Any) -> dict[str, Any]:
    return {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumNetworkPolicy",
        "metadata": {"name": "p"},
        "spec": {"endpointSelector": {}, section: [entry], "log": {"value": "seen by p"}},
    }


def repository(settings: PolicySettings, document: dict[str, Any]) -> Repository:
    found = Repository(settings)
    found.apply(document)
    return found


@pytest.mark.parametrize(("settings", "verdict"), [(OLD, Verdict.ALLOW), (NEW, Verdict.DENY)])
def test_other_clusters(settings: PolicySettings, verdict: Verdict) -> None:
    """Selectors were not confined to the local cluster."""
    rules = repository(settings, policy("ingress", fromEndpoints=[{}]))
    assert rules.decide(WEB, FAR, Direction.INGRESS, "80/TCP").verdict is verdict


def test_addresses_without_length() -> None:
    rules = repository(OLD, policy("ingress", fromCIDR=["192.0.2.7"]))
    peer = Party(cidr_labels("192.0.2.7/32"))
    assert rules.decide(WEB, peer, Direction.INGRESS, "80/TCP").verdict is Verdict.ALLOW
    with pytest.raises(PolicyError, match="has no length"):
        parse(policy("ingress", fromCIDR=["192.0.2.7"]))


@pytest.mark.parametrize(("settings", "verdict"), [(OLD, Verdict.DENY), (NEW, Verdict.ALLOW)])
def test_two_stars(settings: PolicySettings, verdict: Verdict) -> None:
    """They were one: no more than a label."""
    rules = {"dns": [{"matchPattern": "**.shop.test"}]}
    ports = [{"ports": [{"port": "53", "protocol": "UDP"}], "rules": rules}]
    found = repository(settings, policy("egress", toEndpoints=[{}], toPorts=ports))
    assert found.explain(WEB, DNS, "53/UDP", dns="a.b.shop.test").verdict is verdict
    assert found.explain(WEB, DNS, "53/UDP", dns="a.shop.test").verdict is Verdict.ALLOW


def test_what_was_not_there() -> None:
    document = policy("ingress", fromEntities=["cluster-mesh"])
    with pytest.raises(PolicyError, match="no entity cluster-mesh"):
        parse(document, OLD)
    assert parse(document, NEW).policies
    tiers = {
        "apiVersion": "policy.networking.k8s.io/v1alpha2",
        "kind": "ClusterNetworkPolicy",
        "metadata": {"name": "k"},
        "spec": {"tier": "Admin", "priority": 1, "subject": {"namespaces": {}}},
    }
    with pytest.raises(PolicyError, match="has no tiers"):
        parse(tiers, OLD)
    assert parse(tiers, NEW).policies


def test_a_version_that_is_not_known() -> None:
    with pytest.raises(ValueError, match=r"1\.16"):
        PolicySettings.of_version("1.16")
    assert PolicySettings.of_version("1.17", cluster_name="a").cluster_name == "a"


def test_what_a_rule_wants_to_have_told() -> None:
    """`log.value` is told where the rule decides, and not where it does not."""
    rules = repository(NEW, policy("ingress", fromEndpoints=[{}]))
    assert "log: seen by p" in str(rules.explain(WEB, WEB, "80/TCP"))
    assert "seen by p" not in str(rules.explain(FAR, WEB, "80/TCP"))
