"""What documents mean: empty values, implied namespaces, entities, ports, enforcement."""

from __future__ import annotations

from typing import Any

import pytest

from pyciliumlib.identity import ReservedIdentity
from pyciliumlib.policy import Direction, Party, PolicySettings, Reason, Repository, Verdict, parse
from pyciliumlib.policy.model import PortMatch
from pyciliumlib.policy.table import PolicyLookup
from pyciliumlib.types import Protocol

NAMESPACE = "k8s:io.kubernetes.pod.namespace"
CLUSTER = "k8s:io.cilium.k8s.policy.cluster=default"


def pod(app: str, namespace: str = "default") -> list[str]:
    return [f"k8s:app={app}", f"{NAMESPACE}={namespace}", CLUSTER]


SUBJECT = pod("web")
PEERS = {
    1000: pod("client"),
    1001: pod("client", "other"),
    1: ["reserved:host"],
    9: ["reserved:world-ipv4"],
}
NAMES = {1000: "client", 1001: "other", 1: "host", 9: "world"}


def document(kind: str = "CiliumNetworkPolicy", **spec: Any) -> dict[str, Any]:
    metadata = {"name": "p", "namespace": "default"} if kind != CCNP else {"name": "p"}
    version = "networking.k8s.io/v1" if kind == "NetworkPolicy" else "cilium.io/v2"
    selector = "podSelector" if kind == "NetworkPolicy" else "endpointSelector"
    return {"apiVersion": version, "kind": kind, "metadata": metadata,
            "spec": {selector: {}, **spec}}  # fmt: skip


CCNP = "CiliumClusterwideNetworkPolicy"
TO_80 = [{"ports": [{"port": "80", "protocol": "TCP"}]}]
SOME = [{"podSelector": {"matchLabels": {"app": "client"}}}]

#: Document, and who may reach port 80 of the subject.
EMPTY_VALUES = {
    "no ingress": (document(egress=[{}]), "client other host world"),
    "ingress: [{}]": (document(ingress=[{}]), "host"),
    "fromEndpoints: []": (document(ingress=[{"fromEndpoints": []}]), "host"),
    "fromEndpoints: [] with a port": (
        document(ingress=[{"fromEndpoints": [], "toPorts": TO_80}]),
        "host",
    ),
    "fromCIDR: []": (document(ingress=[{"fromCIDR": []}]), "host"),
    "fromGroups: [] with a port": (
        document(ingress=[{"fromGroups": [], "toPorts": TO_80}]),
        "client other host world",
    ),
    "fromEndpoints: null": (document(ingress=[{"fromEndpoints": None}]), "host"),
    "a port alone": (document(ingress=[{"toPorts": TO_80}]), "client other host world"),
    "toPorts: []": (document(ingress=[{"toPorts": []}]), "host"),
    "ports: [] with a peer": (
        document(ingress=[{"fromEntities": ["all"], "toPorts": [{"ports": []}]}]),
        "host",
    ),
    "fromEndpoints: [{}]": (document(ingress=[{"fromEndpoints": [{}]}]), "client host"),
    "fromEndpoints: [{}] clusterwide": (
        document(CCNP, ingress=[{"fromEndpoints": [{}]}]),
        "client other host",
    ),
    "all": (document(ingress=[{"fromEntities": ["all"]}]), "client other host world"),
    "0.0.0.0/0": (document(ingress=[{"fromCIDR": ["0.0.0.0/0"]}]), "host world"),
    "ingressDeny: [{}]": (document(ingressDeny=[{}]), "host"),
    "NetworkPolicy ingress: [{}]": (
        document("NetworkPolicy", ingress=[{}]),
        "client other host world",
    ),
    "NetworkPolicy ingress: []": (document("NetworkPolicy", ingress=[]), "host"),
    "NetworkPolicy policyTypes alone": (document("NetworkPolicy", policyTypes=["Ingress"]), "host"),
    "NetworkPolicy of egress with rules of ingress": (
        document("NetworkPolicy", policyTypes=["Egress"], ingress=[{"from": SOME}]),
        "client host",
    ),
    "NetworkPolicy of egress": (
        document("NetworkPolicy", policyTypes=["Egress"], egress=[]),
        "client other host world",
    ),
    "NetworkPolicy from: []": (
        document("NetworkPolicy", ingress=[{"from": []}]),
        "client other host world",
    ),
    "NetworkPolicy podSelector": (
        document("NetworkPolicy", ingress=[{"from": SOME}]),
        "client host",
    ),
}


def _verdicts(repository: Repository) -> tuple[set[str], set[str]]:
    """Who may reach 80/TCP, by the model and by the map."""
    table = PolicyLookup.of(repository.policy(1).entries())
    model = {
        name
        for number, name in NAMES.items()
        if repository.decide(SUBJECT, number, Direction.INGRESS, "80/TCP").verdict is Verdict.ALLOW
    }
    found = {
        name
        for number, name in NAMES.items()
        if table.lookup(Direction.INGRESS, number, Protocol.TCP, 80).verdict is Verdict.ALLOW
    }
    return model, found


def _repository(documents: Any, settings: PolicySettings | None = None) -> Repository:
    repository = Repository(settings)
    repository.update_identities(PEERS)
    repository.add_endpoint(1, SUBJECT)
    repository.apply(documents)
    return repository


@pytest.mark.parametrize(("policy", "expected"), EMPTY_VALUES.values(), ids=EMPTY_VALUES)
def test_empty_values(policy: dict[str, Any], expected: str) -> None:
    """What empty, absent and null lists allow, in the model and in the map."""
    wanted = set(expected.split())
    assert (wanted, wanted) == _verdicts(_repository(policy))


SELECTORS = [
    (document(), {}, f"{CLUSTER},{NAMESPACE}=default"),
    (document(), {"matchLabels": {"app": "a"}}, f"any:app=a,{CLUSTER},{NAMESPACE}=default"),
    (document(), {"matchLabels": {NAMESPACE: "x"}}, f"{CLUSTER},{NAMESPACE}=x"),
    (
        document(),
        {"matchLabels": {"io.cilium.k8s.namespace.labels.team": "t"}},
        f"any:io.cilium.k8s.namespace.labels.team=t,{CLUSTER}",
    ),
    (
        document(),
        {"matchLabels": {"io.cilium.k8s.policy.cluster": "c"}},
        f"any:io.cilium.k8s.policy.cluster=c,{NAMESPACE}=default",
    ),
    (document(), {"matchLabels": {"reserved:host": ""}}, "reserved:host"),
    (document(CCNP), {}, f"{CLUSTER},exists({NAMESPACE})"),
    (
        document(CCNP),  # "not of team t" is true of the world too
        {"matchExpressions": [
            {"key": "io.cilium.k8s.namespace.labels.team", "operator": "NotIn", "values": ["t"]}
        ]},
        f"any:io.cilium.k8s.namespace.labels.team notin (t),{CLUSTER},exists({NAMESPACE})",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("policy", "selector", "expected"), SELECTORS)
def test_what_a_policy_implies_for_its_peers(
    policy: dict[str, Any], selector: dict[str, Any], expected: str
) -> None:
    """Namespace and cluster are added unless the selector speaks of them."""
    policy["spec"]["ingress"] = [{"fromEndpoints": [selector]}]
    peers = parse(policy).policies[0].rules[0].clauses[0].peers
    assert peers is not None
    assert expected.split(",") == sorted(str(peers[0]).split(","), key=expected.split(",").index)


def _ports(item: dict[str, Any]) -> tuple[PortMatch, ...]:
    policy = document(ingress=[{"toPorts": [{"ports": [item]}]}])
    return parse(policy).policies[0].rules[0].clauses[0].ports


TCP, UDP, SCTP = Protocol.TCP, Protocol.UDP, Protocol.SCTP


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        ({"port": "80", "protocol": "TCP"}, (PortMatch(TCP, 80, 80),)),
        ({"port": "80", "protocol": "tcp"}, (PortMatch(TCP, 80, 80),)),
        ({"port": "80"}, tuple(PortMatch(p, 80, 80) for p in (TCP, UDP, SCTP))),
        ({"port": "80", "endPort": 90, "protocol": "UDP"}, (PortMatch(UDP, 80, 90),)),
        ({"port": "80", "endPort": 80, "protocol": "UDP"}, (PortMatch(UDP, 80, 80),)),
        ({"port": "90", "endPort": 80, "protocol": "UDP"}, (PortMatch(UDP, 90, 90),)),
        ({"port": "0", "protocol": "TCP"}, (PortMatch(TCP),)),
        ({"port": "0", "endPort": 90, "protocol": "TCP"}, (PortMatch(TCP, 0, 90),)),
        ({"port": "0", "endPort": 65535, "protocol": "TCP"}, (PortMatch(TCP),)),
        ({"port": "HTTP", "protocol": "TCP", "endPort": 9}, (PortMatch(TCP, name="http"),)),
    ],
)
def test_ports(item: dict[str, Any], expected: tuple[PortMatch, ...]) -> None:
    """Numbers, ranges, names, and what ANY and 0 stand for."""
    assert expected == _ports(item)


@pytest.mark.parametrize(
    ("chosen", "verdict", "reason"),
    [
        ({}, Verdict.DENY, Reason.DEFAULT_DENY),
        ({"ingress": True}, Verdict.DENY, Reason.DEFAULT_DENY),
        ({"ingress": False}, Verdict.ALLOW, Reason.NO_DEFAULT_DENY),
    ],
)
def test_enable_default_deny(chosen: dict[str, bool], verdict: Verdict, reason: Reason) -> None:
    """Without default deny a rule only adds, and denies what it denies."""
    repository = _repository(document(ingress=[{}], enableDefaultDeny=chosen))
    decision = repository.decide(SUBJECT, 1000, Direction.INGRESS, "80/TCP")
    assert (verdict, reason) == (decision.verdict, decision.reason)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (PolicySettings(enforcement="always"), set()),
        (PolicySettings(enforcement="never"), set(NAMES.values())),
        (PolicySettings(), set(NAMES.values())),
    ],
)
def test_enforcement_without_any_rule(settings: PolicySettings, expected: set[str]) -> None:
    """Open by default; always denies; never passes all."""
    assert (expected, expected) == _verdicts(_repository([], settings))


def test_never_means_never() -> None:
    """A deny is not enforced either."""
    denies = document(ingressDeny=[{"fromEntities": ["all"]}])
    everybody = set(NAMES.values())
    settings = PolicySettings(enforcement="never")
    assert (everybody, everybody) == _verdicts(_repository(denies, settings))


def test_the_local_host_needs_no_rule_unless_the_settings_say_so() -> None:
    """allow_localhost lets the host in; a deny still keeps it out."""
    closed = PolicySettings(allow_localhost=False)
    assert (set(), set()) == _verdicts(_repository(document(ingress=[{}]), closed))
    denies = document(ingressDeny=[{"fromEntities": ["host"]}])
    assert (set(), set()) == _verdicts(_repository(denies))


def test_the_protocol_of_a_named_port_may_be_a_text() -> None:
    """It used to be taken as it was, and then matched nothing."""
    assert Party(SUBJECT, {"http": (80, "tcp")}) == Party(SUBJECT, {"http": (80, TCP)})


def test_names_of_ports_are_those_of_whoever_listens() -> None:
    """At ingress the subject's own names count, at egress those of each peer."""
    named = {"http": (8080, TCP)}
    port = [{"ports": [{"port": "http", "protocol": "TCP"}]}]
    repository = Repository()
    repository.update_identities({1000: pod("client"), 1001: pod("client", "other")},
                                 named_ports={1000: {"http": (80, TCP)}})  # fmt: skip
    repository.apply(document(ingress=[{"toPorts": port}], egress=[{"toPorts": port}]))
    table = PolicyLookup.of(repository.add_endpoint(1, SUBJECT, named).entries())
    subject = Party(SUBJECT, named)
    for direction, number, target, expected in (
        (Direction.INGRESS, 1001, 8080, Verdict.ALLOW),
        (Direction.INGRESS, 1001, 80, Verdict.DENY),
        (Direction.EGRESS, 1000, 80, Verdict.ALLOW),
        (Direction.EGRESS, 1000, 8080, Verdict.DENY),
        (Direction.EGRESS, 1001, 80, Verdict.DENY),
    ):
        decided = repository.decide(subject, number, direction, f"{target}/TCP").verdict
        found = table.lookup(direction, number, TCP, target).verdict
        assert (expected, expected) == (decided, found), (direction, number, target)


REQUIRED = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: required, namespace: default}
spec:
  endpointSelector: {matchLabels: {app: web}}
  ingress: [{fromRequires: [{matchLabels: {env: prod}}]}]
"""
ALLOWED = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: allowed, namespace: default}
spec:
  endpointSelector: {matchLabels: {app: web}}
  ingress:
  - fromEndpoints: [{matchLabels: {app: client}}]
    toPorts: [{ports: [{port: "80"}]}]
  - fromEntities: [host]
"""


def test_what_one_document_requires_holds_for_the_pods_of_another() -> None:
    """`fromRequires` narrows `fromEndpoints` of the same subject, not other peers, and allows
    nobody by itself; when it goes the rules are what they were."""

    repository = Repository()
    repository.update_identities({1001: [*pod("client"), "k8s:env=prod"], 1002: pod("client")})
    repository.add_endpoint(1, SUBJECT)

    def seen() -> list[tuple[str, str]]:
        lookup = PolicyLookup.of(repository.policy(1).entries())
        peers = (1001, 1002, int(ReservedIdentity.HOST))
        model = [repository.decide(SUBJECT, n, Direction.INGRESS, "80/TCP") for n in peers]
        table = [lookup.lookup(Direction.INGRESS, n, Protocol.TCP, 80) for n in peers]
        return [
            (str(said.verdict), str(hit.verdict)) for said, hit in zip(model, table, strict=True)
        ]

    allow, deny = ("allow", "allow"), ("deny", "deny")
    repository.apply(ALLOWED)
    assert seen() == [allow, allow, allow]
    change = repository.apply(REQUIRED)
    assert seen() == [allow, deny, allow]
    repository.undo(change)
    assert seen() == [allow, allow, allow]
