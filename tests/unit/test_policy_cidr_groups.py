"""CIDR groups: by name and by labels, with exceptions, and as they change."""

from __future__ import annotations

import ipaddress
import re
from typing import Any

import pytest

from pyciliumlib.errors import PolicyError, StateError
from pyciliumlib.identity.cidr import cidr_labels
from pyciliumlib.policy import Direction, Party, PolicyKey, Repository, Verdict

WEB = Party(
    ["k8s:app=web", "k8s:io.kubernetes.pod.namespace=default",
     "k8s:io.cilium.k8s.policy.cluster=default"]
)  # fmt: skip


def group(name: str, *cidrs: str, **labels: str) -> dict[str, Any]:
    return {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumCIDRGroup",
        "metadata": {"name": name, "labels": labels},
        "spec": {"externalCIDRs": list(cidrs)},
    }


def rule(section: str = "ingress", **entry: Any) -> dict[str, Any]:
    return {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumNetworkPolicy",
        "metadata": {"name": "p", "namespace": "default"},
        "spec": {"endpointSelector": {}, section: [{"fromCIDRSet": [entry]}]},
    }


def verdict(repository: Repository, address: str) -> Verdict:
    """What becomes of TCP from an address, whose identity is that of its own /32."""
    peer = Party(cidr_labels(f"{address}/32"))
    return repository.decide(WEB, peer, Direction.INGRESS, "80/TCP").verdict


@pytest.mark.parametrize(
    "entry",
    [
        {"cidrGroupRef": "office"},
        {"cidrGroupSelector": {"matchLabels": {"site": "hq"}}},
        {"cidrGroupSelector": {
            "matchExpressions": [{"key": "site", "operator": "In", "values": ["hq", "lab"]}]
        }},
    ],
)  # fmt: skip
def test_a_group_stands_for_its_prefixes(entry: dict[str, Any]) -> None:
    """Chosen by name or by labels; other groups and prefixes are not meant."""
    repository = Repository()
    repository.apply([
        group("office", "198.51.100.0/24", "203.0.113.0/28", site="hq"),
        group("partner", "192.0.2.0/24", site="away"),
        rule(**entry, **{"except": ["198.51.100.128/25"]}),
    ])  # fmt: skip
    allowed = {a: verdict(repository, a) for a in (
        "198.51.100.7", "203.0.113.7", "198.51.100.200", "192.0.2.7"
    )}  # fmt: skip
    assert list(allowed.values()) == [Verdict.ALLOW, Verdict.ALLOW, Verdict.DENY, Verdict.DENY]


def test_exceptions_around_and_inside_the_prefixes_of_a_group() -> None:
    """One that covers a prefix takes all of it, one inside a part; families do not meet."""
    repository = Repository()
    repository.apply([
        group("office", "10.1.0.0/16", "10.2.0.0/16", "10.3.0.0/24", "10.4.0.0/16", "fd00:1::/64"),
        rule(cidrGroupRef="office", **{
            "except": ["10.2.0.0/15", "10.1.0.0/24", "10.1.255.0/24", "10.4.0.0/16", "fd00::/8"]
        }),
    ])  # fmt: skip
    allowed = ("10.1.1.0", "10.1.254.255")
    denied = ("10.1.0.0", "10.1.255.255", "10.2.0.1", "10.3.0.1", "10.4.0.1")
    assert {verdict(repository, address) for address in allowed} == {Verdict.ALLOW}
    assert {verdict(repository, address) for address in denied} == {Verdict.DENY}
    inside = Party(cidr_labels("fd00:1::1/128"))
    assert repository.decide(WEB, inside, Direction.INGRESS, "80/TCP").verdict is Verdict.DENY


def test_rules_follow_a_group() -> None:
    """Written before the group, changed with it, empty when it is gone, and undone in one."""
    repository = Repository()
    endpoint = repository.add_endpoint(1, WEB.labels)
    repository.update_identities({1 << 24: cidr_labels("198.51.100.7/32")})
    repository.apply(rule(cidrGroupRef="office"))
    assert verdict(repository, "198.51.100.7") is Verdict.DENY
    change = repository.apply(group("office", "198.51.100.0/24"))
    assert list(change.policies) == [1]
    assert verdict(repository, "198.51.100.7") is Verdict.ALLOW
    rows = {identity for identity, _, _ in repository.policy(1).entries().rows()}
    assert 1 << 24 in rows
    assert ipaddress.ip_network("198.51.100.0/24") in repository.prefixes()
    repository.undo(change)
    assert verdict(repository, "198.51.100.7") is Verdict.DENY
    with pytest.raises(StateError, match="is not the latest"):
        repository.undo(change)
    repository.apply(group("office", "198.51.100.0/24"))
    repository.delete(PolicyKey("CiliumCIDRGroup", "", "office"))
    assert verdict(repository, "198.51.100.7") is Verdict.DENY
    assert not repository.prefixes()
    assert endpoint is not repository.policy(1)


def test_a_denied_group() -> None:
    """A deny follows its group like an allow."""
    repository = Repository()
    repository.apply([
        group("bad", "198.51.100.0/24"),
        rule(section="ingressDeny", cidrGroupRef="bad"),
    ])  # fmt: skip
    decision = repository.decide(
        WEB, Party(cidr_labels("198.51.100.7/32")), Direction.INGRESS, "80/TCP"
    )
    assert decision.reason.name == "DENY_RULE"


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (group("g", "no prefix"), r"spec\.externalCIDRs\[0\]"),
        (group("g", "10.0.0.1"), "has no length"),
        ({**group("g"), "spec": {}}, "externalCIDRs is missing"),
        (rule(cidrGroupRef="g", cidr="10.0.0.0/8"), "exactly one of cidr, cidrGroupRef"),
        (rule(cidrGroupRef=7), "expected a text"),
        (rule(cidrGroupRef="g", **{"except": ["x"]}), r"except\[0\]"),
        (rule(cidrGroupSelector={"matchLabel": {}}), "matchLabel: unknown field"),
    ],
)
def test_bad_input(document: dict[str, Any], message: str) -> None:
    """Refused with the path of the field."""
    with pytest.raises(PolicyError) as caught:
        Repository().apply(document)
    assert re.search(message, "\n".join(caught.value.problems))


def test_a_group_of_a_cloud_is_filled_in_by_name() -> None:
    """Rules name it as the provider does; its prefixes come as a CiliumCIDRGroup."""
    repository = Repository()
    named = {"aws": {"securityGroupsIds": ["sg-2", "sg-1"], "region": "eu-west-1"}}
    same = {"aws": {"region": "eu-west-1", "securityGroupsIds": ["sg-1", "sg-2"]}}
    document = rule()
    document["spec"]["ingress"] = [{"fromGroups": [named]}]
    repository.apply(document)
    ((name, known_by),) = repository.cloud_groups().items()
    assert known_by["aws"]["securityGroupsIds"] == ["sg-1", "sg-2"]
    assert verdict(repository, "192.0.2.7") is Verdict.DENY
    repository.apply(group(name, "192.0.2.0/24"))
    assert verdict(repository, "192.0.2.7") is Verdict.ALLOW
    document["spec"]["ingress"] = [{"fromGroups": [same]}]
    repository.apply(document)
    assert list(repository.cloud_groups()) == [name]
    assert verdict(repository, "192.0.2.7") is Verdict.ALLOW
