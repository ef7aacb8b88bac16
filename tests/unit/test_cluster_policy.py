"""ClusterNetworkPolicy: what is refused, whom it selects, and whose word counts."""

from __future__ import annotations

from typing import Any

import pytest

from pyciliumlib.errors import PolicyError
from pyciliumlib.identity.labels import Labels
from pyciliumlib.policy import Direction, PolicySettings, Repository, Verdict, parse
from pyciliumlib.policy.l7 import Parser
from pyciliumlib.policy.model import Level, PortMatch, Tier
from pyciliumlib.policy.table import DROP_POLICY_DENY, PolicyLookup
from pyciliumlib.policy.verdict import Reason
from pyciliumlib.types import Protocol

ALL_PODS = {"namespaces": {}}
SPACE = "io.cilium.k8s.namespace.labels."


def pod(app: str, namespace: str = "default", cluster: str = "default") -> list[str]:
    return [
        f"k8s:app={app}",
        f"k8s:io.kubernetes.pod.namespace={namespace}",
        f"k8s:{SPACE}kubernetes.io/metadata.name={namespace}",
        f"k8s:io.cilium.k8s.policy.cluster={cluster}",
    ]


def apps(app: str) -> dict[str, Any]:
    selector = {"matchLabels": {"app": app}}
    return {"pods": {"namespaceSelector": {}, "podSelector": selector}}


def rule(action: str, *peers: Any, word: str = "from", **more: Any) -> dict[str, Any]:
    return {"action": action, word: list(peers), **more}


def admin(*ingress: Any, name: str = "k", tier: str = "Admin", **more: Any) -> dict[str, Any]:
    spec = {"tier": tier, "priority": 10, "subject": ALL_PODS, "ingress": list(ingress), **more}
    return {
        "apiVersion": "policy.networking.k8s.io/v1alpha2",
        "kind": "ClusterNetworkPolicy",
        "metadata": {"name": name},
        "spec": spec,
    }


def to(*peers: Any, action: str = "Accept", **more: Any) -> dict[str, Any]:
    return admin(egress=[rule(action, *peers, word="to", **more)])


def protocols(*listed: Any) -> dict[str, Any]:
    return admin(rule("Accept", ALL_PODS, protocols=list(listed)))


def port(**match: Any) -> dict[str, Any]:
    return {"tcp": {"destinationPort": match}}


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no tier": (admin(tier=None), "spec: tier is missing"),
    "tier": (admin(tier="Adim"), "spec.tier: unknown tier 'Adim' (did you mean \"Admin\"?)"),
    "priority": (admin(priority=1001), "spec.priority: 1001: write 0 to 1000"),
    "no subject": (admin(subject=None), "spec: subject is missing"),
    "two subjects": (
        admin(subject={"namespaces": {}, "pods": {}}),
        "spec.subject: exactly one of namespaces, pods",
    ),
    "action": (admin(rule("Allow", ALL_PODS)), "spec.ingress[0].action: unknown action 'Allow'"),
    "no peers": (admin(rule("Deny")), "spec.ingress[0].from: nobody is named"),
    "no from": (admin({"action": "Deny"}), "spec.ingress[0]: from is missing"),
    "empty peer": (admin(rule("Deny", {})), "spec.ingress[0].from[0]: exactly one of namespaces"),
    "networks from": (
        admin(rule("Deny", {"networks": ["10.0.0.0/8"]})),
        "spec.ingress[0].from[0].networks: unknown field",
    ),
    "prefix": (to({"networks": ["10.0.0.0"]}), "networks[0]: '10.0.0.0' has no length"),
    "many rules": (
        admin(*(rule("Deny", ALL_PODS) for _ in range(26))),
        "spec.ingress: 26 entries; at most 25",
    ),
    "many peers": (admin(rule("Deny", *[ALL_PODS] * 26)), "spec.ingress[0].from: 26 entries"),
    "no protocols": (protocols(), "protocols: nothing is listed"),
    "two protocols": (protocols({"tcp": {}, "udp": {}}), "protocols[0]: exactly one of"),
    "number": (protocols(port(number=0)), "tcp.destinationPort: 0 to 0"),
    "range": (protocols(port(range={"start": 9, "end": 8})), "9 to 8: write ports from 1 to 65535"),
    "both": (protocols(port(number=1, range={"start": 1, "end": 2})), "exactly one of number"),
    "name": (protocols({"destinationNamedPort": "a_b"}), "neither a number nor the name"),
    "number as name": (protocols({"destinationNamedPort": "80"}), "'80' is a number"),
    "names of names": (
        to({"networks": ["10.0.0.0/8"]}, protocols=[{"destinationNamedPort": "http"}]),
        "only pods have names for ports",
    ),
    "denied name": (to({"domainNames": ["a.test"]}, action="Deny"), "can only be accepted"),
    "stars": (to({"domainNames": ["a.*.test"]}), "one '*' may stand before the first dot"),
    "field": (admin(subjcet={}), "spec.subjcet: unknown field"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_wrong_documents_are_refused_with_the_path(case: str) -> None:
    document, words = REFUSED[case]
    with pytest.raises(PolicyError) as caught:
        parse(document)
    assert words in str(caught.value)


def test_nodes_need_the_setting() -> None:
    """As `toNodes` does; then they are remote nodes with these labels."""
    document = to({"nodes": {"matchLabels": {"zone": "a"}}})
    with pytest.raises(PolicyError, match="node_selectors"):
        parse(document)
    (policy,) = parse(document, PolicySettings(node_selectors=True)).policies
    (selector,) = policy.rules[0].clauses[0].peers or ()
    local = "k8s:io.cilium.k8s.policy.cluster=default"
    for labels, expected in (
        (["node:zone=a", "reserved:remote-node", local], True),
        (["node:zone=b", "reserved:remote-node", local], False),
        (["k8s:zone=a", local], False),
    ):
        assert selector.matches(Labels.parse(labels)) is expected


def test_rules_are_asked_in_the_order_in_which_they_are_written() -> None:
    """A policy's priority counts before the place of the rule."""
    document = admin(rule("Deny", ALL_PODS), rule("Pass", ALL_PODS), tier="Baseline")
    (first, second) = parse(document).policies[0].rules[0].clauses
    assert (first.level, second.level) == (Level(Tier.BASELINE, 1000), Level(Tier.BASELINE, 1001))
    assert (first.deny, first.passes, second.deny, second.passes) == (True, False, False, True)


PORTS = {
    "number": (port(number=80), {PortMatch(Protocol.TCP, 80, 80)}),
    "range": ({"udp": {"destinationPort": {"range": {"start": 5, "end": 9}}}},
              {PortMatch(Protocol.UDP, 5, 9)}),
    "every port": ({"sctp": {}}, {PortMatch(Protocol.SCTP)}),
    "name": (
        {"destinationNamedPort": "Web"},
        {PortMatch(p, name="web") for p in (Protocol.TCP, Protocol.UDP, Protocol.SCTP)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", PORTS)
def test_protocols_become_ports(case: str) -> None:
    item, expected = PORTS[case]
    assert set(parse(protocols(item)).policies[0].rules[0].clauses[0].ports) == expected


def test_a_domain_name_brings_the_rule_that_lets_its_answers_be_seen() -> None:
    """And "*." stands for any number of labels."""
    documents = parse(to({"domainNames": ["api.test", "*.example.org"]}))
    asked, reached = documents.policies[0].rules[0].clauses
    assert asked.l7 is not None
    assert asked.l7.parser is Parser.DNS
    assert [str(name) for name in asked.l7.rules] == ["api.test", "**.example.org"]
    assert [str(peer) for peer in asked.peers or ()] == ["any:k8s-app=kube-dns"]
    assert [str(peer) for peer in reached.peers or ()] == [
        "exists(fqdn:api.test)",
        "exists(fqdn:**.example.org)",
    ]
    assert "no DNS proxy" in documents.warnings[0]


# ------------------------------------------------------------------ whose word counts

WEB, CLIENT, OTHER, FAR = 1, 1001, 1002, 1003
PEERS = {CLIENT: pod("client"), OTHER: pod("other"), FAR: pod("client", cluster="far")}


def cnp(**spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumNetworkPolicy",
        "metadata": {"name": "p"},
        "spec": {"endpointSelector": {"matchLabels": {"app": "web"}}, **spec},
    }


CLIENTS = [{"matchLabels": {"app": "client"}}]
ACCEPT, DENY, PASS = (rule(action, apps("client")) for action in ("Accept", "Deny", "Pass"))
DENY_ALL = rule("Deny", ALL_PODS)
HTTP = {"ports": [{"port": "80", "protocol": "TCP"}], "rules": {"http": [{"method": "GET"}]}}

#: Documents, and for client and other: what is said, and why.
WORDS: dict[str, tuple[list[dict[str, Any]], tuple[Verdict, Reason], tuple[Verdict, Reason]]] = {
    "the administrator's allow beats a deny": (
        [admin(ACCEPT), cnp(ingressDeny=[{"fromEndpoints": CLIENTS}])],
        (Verdict.ALLOW, Reason.RULE),
        (Verdict.DENY, Reason.DEFAULT_DENY),
    ),
    "and his deny an allow": (
        [admin(DENY), cnp(ingress=[{"fromEndpoints": CLIENTS}])],
        (Verdict.DENY, Reason.DENY_RULE),
        (Verdict.DENY, Reason.DEFAULT_DENY),
    ),
    "the earlier rule of a policy counts": (
        [admin(ACCEPT, DENY_ALL)],
        (Verdict.ALLOW, Reason.RULE),
        (Verdict.DENY, Reason.DENY_RULE),
    ),
    "the lower priority counts": (
        [admin(DENY_ALL), admin(ACCEPT, name="first", priority=9)],
        (Verdict.ALLOW, Reason.RULE),
        (Verdict.DENY, Reason.DENY_RULE),
    ),
    "a pass leaves it to the pods' own rules": (
        [admin(PASS, DENY_ALL), cnp(ingress=[{"fromEndpoints": CLIENTS}])],
        (Verdict.ALLOW, Reason.RULE),
        (Verdict.DENY, Reason.DENY_RULE),
    ),
    "which may deny by default": (
        [admin(PASS, DENY_ALL), cnp(ingress=[{}])],
        (Verdict.DENY, Reason.DEFAULT_DENY),
        (Verdict.DENY, Reason.DENY_RULE),
    ),
    "or send it to a proxy": (
        [admin(PASS, DENY_ALL), cnp(ingress=[{"fromEntities": ["all"], "toPorts": [HTTP]}])],
        (Verdict.REDIRECT, Reason.L7),
        (Verdict.DENY, Reason.DENY_RULE),
    ),
    "without rules of its own a pod is open": (
        [admin(PASS, DENY_ALL)],
        (Verdict.ALLOW, Reason.NO_DEFAULT_DENY),
        (Verdict.DENY, Reason.DENY_RULE),
    ),
    "a pass does not reach the next tier's rules": (
        [admin(PASS), admin(DENY_ALL, name="base", tier="Baseline")],
        (Verdict.DENY, Reason.DENY_RULE),
        (Verdict.DENY, Reason.DENY_RULE),
    ),
    "the baseline comes before default deny": (
        [admin(ACCEPT, tier="Baseline"), cnp(ingress=[{}])],
        (Verdict.ALLOW, Reason.RULE),
        (Verdict.DENY, Reason.DEFAULT_DENY),
    ),
    "and after the pods' own rules": (
        [admin(ACCEPT, tier="Baseline"), cnp(ingressDeny=[{"fromEndpoints": CLIENTS}])],
        (Verdict.DENY, Reason.DENY_RULE),
        (Verdict.DENY, Reason.DEFAULT_DENY),
    ),
    "a plain allow of the administrator needs no proxy": (
        [admin(ACCEPT), cnp(ingress=[{"fromEndpoints": CLIENTS, "toPorts": [HTTP]}])],
        (Verdict.ALLOW, Reason.RULE),
        (Verdict.DENY, Reason.DEFAULT_DENY),
    ),
}


@pytest.mark.parametrize("case", WORDS)
def test_the_word_of_the_tiers(case: str) -> None:
    """The model says so, and the lookup in the entries of the map finds the same."""
    documents, of_client, of_other = WORDS[case]
    repository = Repository()
    repository.update_identities(PEERS)
    policy = repository.add_endpoint(WEB, pod("web"))
    repository.apply(documents)
    table = PolicyLookup.of(repository.policy(WEB).entries())
    del policy
    for peer, expected in ((CLIENT, of_client), (OTHER, of_other)):
        decision = repository.decide(pod("web"), peer, Direction.INGRESS, "80/TCP")
        assert (decision.verdict, decision.reason) == expected
        assert table.lookup(Direction.INGRESS, peer, Protocol.TCP, 80).verdict is expected[0]


def test_pods_are_those_of_the_local_cluster_and_namespaces_are_everywhere() -> None:
    """As in Cilium: `pods` is confined like `fromEndpoints`, `namespaces` is not."""
    repository = Repository()
    repository.update_identities(PEERS)
    repository.add_endpoint(WEB, pod("web"))
    repository.apply(admin(rule("Deny", apps("client"))))
    verdicts = [
        repository.decide(pod("web"), peer, Direction.INGRESS, "80/TCP").verdict
        for peer in (CLIENT, FAR)
    ]
    assert verdicts == [Verdict.DENY, Verdict.ALLOW]
    repository.apply(admin(rule("Deny", ALL_PODS)))
    assert repository.decide(pod("web"), FAR, Direction.INGRESS, "80/TCP").verdict is Verdict.DENY


def test_what_was_passed_on_is_told() -> None:
    """A decision names the clauses that left it to a later tier, and explain says so."""
    repository = Repository()
    repository.update_identities(PEERS)
    repository.apply([admin(PASS, DENY_ALL), cnp(ingress=[{"fromEndpoints": CLIENTS}])])
    decision = repository.decide(pod("web"), CLIENT, Direction.INGRESS, "80/TCP")
    assert [str(clause.source) for clause in decision.passed] == [
        "ClusterNetworkPolicy k spec.ingress[0]"
    ]
    text = str(repository.explain(CLIENT, pod("web"), "80/TCP"))
    assert "passed on by ClusterNetworkPolicy k spec.ingress[0]" in text


def test_default_deny_is_said_where_a_rule_passes() -> None:
    """A class that is passed on must not fall back on what the map says of any identity."""
    repository = Repository()
    repository.update_identities(PEERS)
    repository.add_endpoint(WEB, pod("web"))
    repository.apply([admin(PASS, tier="Baseline"), cnp(ingress=[{}])])
    hit = PolicyLookup.of(repository.policy(WEB).entries()).lookup(
        Direction.INGRESS, CLIENT, Protocol.TCP, 80
    )
    assert (hit.verdict, hit.drop_reason) == (Verdict.DENY, DROP_POLICY_DENY)
    derivation = repository.derivation(hit.rule)
    assert derivation is not None
    assert [source.name for source in derivation.sources] == ["deny-any-ingress"]
