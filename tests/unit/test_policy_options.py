"""The agent's options: what documents they refuse, and what they change of a verdict."""

from __future__ import annotations

from typing import Any

import pytest

from pyciliumlib.errors import PolicyError
from pyciliumlib.policy import Direction, Party, PolicySettings, Reason, Repository, Verdict, parse
from pyciliumlib.policy.model import PortMatch
from pyciliumlib.policy.table import PolicyLookup
from pyciliumlib.types import Protocol

NAMESPACE, CLUSTER = "k8s:io.kubernetes.pod.namespace", "k8s:io.cilium.k8s.policy.cluster"
POD = Party(["k8s:app=web", f"{NAMESPACE}=default", f"{CLUSTER}=default"], name="web")
NODE = Party(["reserved:host"], name="node")
REMOTE = Party(["reserved:remote-node", "cidr:192.168.0.0/16"], identity=0x0200_0001)


def document(kind: str = "CiliumNetworkPolicy", **spec: Any) -> dict[str, Any]:
    selector = {} if "nodeSelector" in spec else {"endpointSelector": {}}
    return {
        "apiVersion": "cilium.io/v2",
        "kind": kind,
        "metadata": {"name": "p"},
        "spec": {**selector, **spec},
    }


def ports(*listed: dict[str, Any], **more: Any) -> list[dict[str, Any]]:
    return [{"ports": list(listed), **more}]


HTTP = ports({"port": "80", "protocol": "TCP"}, rules={"http": [{}]})
REFUSED = {
    "icmp_rules": document(ingress=[{"icmps": [{"fields": [{"type": 8}]}]}]),
    "l7_proxy": document(ingress=[{"toPorts": HTTP}]),
}


@pytest.mark.parametrize(("option", "rule"), REFUSED.items(), ids=REFUSED)
def test_rules_of_what_is_off_are_refused(option: str, rule: dict[str, Any]) -> None:
    """The message names the option; with it on the document is right."""
    with pytest.raises(PolicyError, match=option):
        parse(rule, PolicySettings(**{option: False}))
    assert parse(rule).policies


def test_domain_names_need_the_proxy() -> None:
    rule = {
        "apiVersion": "policy.networking.k8s.io/v1alpha2",
        "kind": "ClusterNetworkPolicy",
        "metadata": {"name": "k"},
        "spec": {
            "tier": "Admin",
            "priority": 1,
            "subject": {"namespaces": {}},
            "egress": [{"action": "Accept", "to": [{"domainNames": ["a.test"]}]}],
        },
    }
    with pytest.raises(PolicyError, match="l7_proxy"):
        parse(rule, PolicySettings(l7_proxy=False))


@pytest.mark.parametrize("port", [{}, {"port": "0"}])
def test_protocols_without_ports(port: dict[str, Any]) -> None:
    """They are known with the option alone, then in the model and in the map."""
    rule = document(egress=[{"toPorts": ports({"protocol": "vrrp", **port})}])
    with pytest.raises(PolicyError, match="extended_protocols"):
        parse(rule)
    repository = Repository(PolicySettings(extended_protocols=True))
    repository.apply(rule)
    policy = repository.add_endpoint(1, POD.labels)
    table = PolicyLookup.of(policy.entries())
    for protocol, verdict in ((Protocol.VRRP, Verdict.ALLOW), (Protocol.GRE, Verdict.DENY)):
        explained = repository.explain(POD, REMOTE, str(protocol))
        hit = table.lookup(Direction.EGRESS, 2, protocol, 0)
        assert (explained.verdict, hit.verdict) == (verdict, verdict)
    assert "VRRP" in str(repository.explain(POD, REMOTE, "VRRP"))


@pytest.mark.parametrize("extended", [False, True])
def test_a_protocol_without_ports_has_none(extended: bool) -> None:
    rule = document(egress=[{"toPorts": ports({"protocol": "GRE", "port": "80"})}])
    with pytest.raises(PolicyError, match="GRE has no ports"):
        parse(rule, PolicySettings(extended_protocols=extended))


def test_with_extended_protocols_a_port_may_be_missing() -> None:
    """It is every port of the protocol, as in Cilium."""
    rule = document(ingress=[{"toPorts": ports({"protocol": "UDP"})}])
    with pytest.raises(PolicyError, match="port is missing"):
        parse(rule)
    found = parse(rule, PolicySettings(extended_protocols=True))
    assert found.policies[0].rules[0].clauses[0].ports == (PortMatch(Protocol.UDP),)


def test_a_difference_of_extended_protocols_is_found() -> None:
    repository = Repository(PolicySettings(extended_protocols=True))
    repository.apply(document(egress=[{"toPorts": ports({"protocol": "GRE"})}]))
    change = repository.diff(document(egress=[{"toPorts": ports({"protocol": "ESP"})}]), [POD])
    assert [str(d.ports) for d in change] == ["GRE", "ESP"]


def test_default_deny_that_cannot_be_switched_off() -> None:
    """Without the option every rule denies by default, whatever it says."""
    rule = document(ingress=[{"fromEntities": ["host"]}], enableDefaultDeny={"ingress": False})
    for on, reason in ((True, Reason.NO_DEFAULT_DENY), (False, Reason.DEFAULT_DENY)):
        repository = Repository(PolicySettings(non_default_deny=on))
        repository.apply(rule)
        assert repository.decide(POD, POD, Direction.INGRESS, "80/TCP").reason is reason


@pytest.mark.parametrize(("match", "verdict"), [(False, Verdict.DENY), (True, Verdict.ALLOW)])
def test_prefixes_and_nodes(match: bool, verdict: Verdict) -> None:
    """A prefix means a node in it only with the option."""
    repository = Repository(PolicySettings(cidr_match_nodes=match))
    repository.update_identities({REMOTE.identity or 0: REMOTE.labels})
    repository.apply(document(egress=[{"toCIDR": ["192.168.0.0/16"]}]))
    table = PolicyLookup.of(repository.add_endpoint(1, POD.labels).entries())
    found = repository.decide(POD, REMOTE, Direction.EGRESS, "80/TCP").verdict
    hit = table.lookup(Direction.EGRESS, REMOTE.identity or 0, Protocol.TCP, 80)
    assert (found, hit.verdict) == (verdict, verdict)


@pytest.mark.parametrize(("on", "verdict"), [(False, Verdict.ALLOW), (True, Verdict.DENY)])
def test_nodes_are_governed_with_the_host_firewall_alone(on: bool, verdict: Verdict) -> None:
    """Without it a policy for nodes is read, and governs nobody; nor does `always`."""
    settings = PolicySettings(host_firewall=on)
    repository = Repository(settings)
    rule = document("CiliumClusterwideNetworkPolicy", nodeSelector={}, ingress=[{}])
    assert repository.apply(rule).documents.policies[0].rules[0].on_nodes
    policy = repository.add_endpoint(1, NODE.labels)
    hit = PolicyLookup.of(policy.entries()).lookup(Direction.INGRESS, 2, Protocol.TCP, 22)
    found = repository.decide(NODE, POD, Direction.INGRESS, "22/TCP").verdict
    assert (found, hit.verdict) == (verdict, verdict)
    assert repository.decide(POD, POD, Direction.INGRESS, "22/TCP").verdict is Verdict.ALLOW
    strict = Repository(PolicySettings(host_firewall=on, enforcement="always"))
    assert strict.decide(NODE, POD, Direction.INGRESS, "22/TCP").verdict is verdict
