"""`toServices`: services by name and by labels, the pods or addresses behind them, and changes."""

from __future__ import annotations

from typing import Any

import pytest

from pyciliumlib.errors import PolicyError
from pyciliumlib.identity.cidr import cidr_labels
from pyciliumlib.policy import Direction, Party, PolicyKey, Repository, Verdict, parse
from pyciliumlib.policy.table import PolicyLookup
from pyciliumlib.types import Protocol

CLUSTER = "k8s:io.cilium.k8s.policy.cluster"


def pod(app: str, namespace: str = "default", cluster: str = "default") -> Party:
    return Party(
        [f"k8s:app={app}", f"k8s:io.kubernetes.pod.namespace={namespace}", f"{CLUSTER}={cluster}"]
    )


WEB, API = pod("web"), pod("api")


def service(name: str, namespace: str = "default", **selector: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": namespace, "labels": {"tier": "back"}},
        "spec": {"ports": [{"port": 80}], "clusterIP": "10.96.0.1", "selector": selector},
        "status": {"loadBalancer": {}},
    }


def part(name: str, of: str, *endpoints: Any) -> dict[str, Any]:
    """An EndpointSlice: addresses as texts, or whole endpoints."""
    listed = [e if isinstance(e, dict) else {"addresses": [e]} for e in endpoints]
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": name, "labels": {"kubernetes.io/service-name": of}},
        "addressType": "IPv4",
        "endpoints": listed,
        "ports": [{"port": 80}],
    }


def policy(*references: Any, section: str = "egress", **entry: Any) -> dict[str, Any]:
    return {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumNetworkPolicy",
        "metadata": {"name": "p"},
        "spec": {
            "endpointSelector": {"matchLabels": {"app": "web"}},
            section: [{"toServices": list(references), **entry}],
        },
    }


def named(name: str, namespace: str = "") -> dict[str, Any]:
    return {"k8sService": {"serviceName": name} | ({"namespace": namespace} if namespace else {})}


BY_LABELS = {"k8sServiceSelector": {"selector": {"matchLabels": {"tier": "back"}}}}


def verdict(repository: Repository, peer: Party, port: str = "80/TCP") -> Verdict:
    return repository.decide(WEB, peer, Direction.EGRESS, port).verdict


def address(text: str) -> Party:
    return Party(cidr_labels(f"{text}/32"))


MEANT: dict[str, tuple[dict[str, Any], Party, bool]] = {
    "its pods": (named("s"), API, True),
    "in its namespace": (named("s", "default"), API, True),
    "not another namespace's service": (named("s", "other"), API, False),
    "not another name": (named("t"), API, False),
    "not other pods": (named("s"), pod("db"), False),
    "not pods elsewhere": (named("s"), pod("api", "other"), False),
    "not another cluster's": (named("s"), pod("api", cluster="far"), False),
    "by labels": (BY_LABELS, API, True),
}


@pytest.mark.parametrize("case", MEANT)
def test_a_service_with_a_selector_means_its_pods(case: str) -> None:
    reference, peer, allowed = MEANT[case]
    repository = Repository()
    repository.apply([policy(reference), service("s", app="api")])
    assert verdict(repository, peer) is (Verdict.ALLOW if allowed else Verdict.DENY)


def test_a_service_without_one_means_its_addresses() -> None:
    """Of all its slices, less the addresses of pods, which are known by labels."""
    of_pod = {"addresses": ["10.0.0.9"], "targetRef": {"kind": "Pod", "name": "x"}}
    repository = Repository()
    repository.apply([
        policy(named("s")),
        service("s"),
        part("s-1", "s", "192.0.2.1", of_pod),
        part("s-2", "s", "192.0.2.2"),
        part("t-1", "t", "192.0.2.3"),
    ])  # fmt: skip
    seen = {text: verdict(repository, address(text)) for text in
            ("192.0.2.1", "192.0.2.2", "192.0.2.3", "10.0.0.9")}  # fmt: skip
    assert list(seen.values()) == [Verdict.ALLOW, Verdict.ALLOW, Verdict.DENY, Verdict.DENY]
    assert {str(prefix) for prefix in repository.prefixes()} >= {"192.0.2.1/32", "192.0.2.2/32"}


def test_endpoints_objects_are_read_too() -> None:
    """They have the service's name, and are what hand-made services come with."""
    endpoints = {
        "apiVersion": "v1",
        "kind": "Endpoints",
        "metadata": {"name": "s"},
        "subsets": [{"addresses": [{"ip": "192.0.2.1"}], "ports": [{"port": 80}]}],
    }
    repository = Repository()
    repository.apply([policy(named("s")), service("s"), endpoints])
    assert verdict(repository, address("192.0.2.1")) is Verdict.ALLOW


def test_rules_follow_the_service() -> None:
    """As it comes, changes its selector, and goes; model and entries alike."""
    repository = Repository()
    repository.update_identities({1001: API.labels, 1002: pod("db").labels})
    repository.add_endpoint(1, WEB.labels)

    def seen() -> list[Verdict]:
        table = PolicyLookup.of(repository.policy(1).entries())
        looked = [table.lookup(Direction.EGRESS, n, Protocol.TCP, 80).verdict for n in (1001, 1002)]
        said = [verdict(repository, repository.identity(n)) for n in (1001, 1002)]
        assert looked == said
        return said

    repository.apply(policy(named("s")))
    assert seen() == [Verdict.DENY, Verdict.DENY]
    repository.apply(service("s", app="api"))
    assert seen() == [Verdict.ALLOW, Verdict.DENY]
    change = repository.apply(service("s", app="db"))
    assert seen() == [Verdict.DENY, Verdict.ALLOW]
    repository.undo(change)
    assert seen() == [Verdict.ALLOW, Verdict.DENY]
    repository.delete(PolicyKey("Service", "default", "s"))
    assert seen() == [Verdict.DENY, Verdict.DENY]


def test_ports_and_denials() -> None:
    """Ports count beside services; a deny of a service denies its pods."""
    ports = [{"ports": [{"port": "80", "protocol": "TCP"}]}]
    repository = Repository()
    repository.apply([policy(named("s"), toPorts=ports), service("s", app="api")])
    assert [verdict(repository, API, p) for p in ("80/TCP", "81/TCP")] == [
        Verdict.ALLOW,
        Verdict.DENY,
    ]
    repository.apply(policy(named("s"), section="egressDeny", toPorts=ports))
    assert repository.decide(WEB, API, Direction.EGRESS, "80/TCP").reason.name == "DENY_RULE"


REFUSED = {
    "with other peers": (policy(named("s"), toEndpoints=[{}]), "toEndpoints and toServices"),
    "nothing named": (policy({}), "exactly one of k8sService, k8sServiceSelector"),
    "no name": (policy({"k8sService": {}}), "serviceName is missing"),
    "no selector": (policy({"k8sServiceSelector": {}}), "selector is missing"),
    "service's selector": (service("s") | {"spec": {"selector": {"a": 1}}}, "object of texts"),
    "a slice of nothing": (part("s", "") | {"metadata": {"name": "s"}}, "service-name is missing"),
    "a prefix": (part("s-1", "s", "192.0.2.0/24"), "is no single address"),
    "no address": (part("s-1", "s", "example.com"), "endpoints[0].addresses"),
    "ingress": (
        policy(named("s"), section="ingress"),
        "spec.ingress[0].toServices: unknown field",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(case: str) -> None:
    document, words = REFUSED[case]
    with pytest.raises(PolicyError) as caught:
        parse(document)
    assert words in str(caught.value)
