"""The repository: whole changes or none, undo, and what it refuses."""

from __future__ import annotations

import gc
import threading
from typing import Any

import pytest

from pyciliumlib.errors import ExistsError, InvalidError, NotFoundError, PolicyError
from pyciliumlib.policy import Direction, PolicyKey, Repository, Verdict
from pyciliumlib.policy.derivation import Derivation, Derivations
from pyciliumlib.policy.table import DROP_NO_PROXY, DROP_POLICY, DROP_POLICY_DENY, PolicyLookup
from pyciliumlib.types import PortProto, Protocol

NAMESPACE = "k8s:io.kubernetes.pod.namespace=default"
CLUSTER = "k8s:io.cilium.k8s.policy.cluster=default"


def pod(app: str) -> list[str]:
    return [f"k8s:app={app}", NAMESPACE, CLUSTER]


def cnp(name: str, app: str, **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumNetworkPolicy",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"endpointSelector": {"matchLabels": {"app": app}}, **spec},
    }


def l7(kind: str, rule: dict[str, str]) -> dict[str, Any]:
    port = [{"port": "53", "protocol": "TCP"}]
    return {"toEndpoints": [{}], "toPorts": [{"ports": port, "rules": {kind: [rule]}}]}


@pytest.fixture
def repository() -> Repository:
    """Two endpoints, web and api, and a client."""
    found = Repository()
    found.update_identities({1000: pod("web"), 1001: pod("api"), 1002: pod("client")})
    found.add_endpoint(1, pod("web"))
    found.add_endpoint(2, pod("api"))
    return found


FROM_CLIENT = [{"fromEndpoints": [{"matchLabels": {"app": "client"}}]}]


def test_a_change_touches_the_endpoints_it_governs(repository: Repository) -> None:
    """Only their policies are new, and they are the ones in force."""
    before = repository.policies()
    change = repository.apply([cnp("p", "web", ingress=FROM_CLIENT)])
    assert {1} == set(change.policies)
    assert repository.policy(1) is change.policies[1] is not before[1]
    assert repository.policy(2) is before[2]
    assert (change.revision, repository.policy(1).revision) == (1, 1)


def test_a_wrong_document_changes_nothing(repository: Repository) -> None:
    """One wrong document of a set keeps all of them out."""
    before = repository.policies()
    documents = [cnp("good", "web", ingress=FROM_CLIENT), cnp("bad", "api")]
    with pytest.raises(PolicyError):
        repository.apply(documents)
    assert (0, {}, before) == (repository.revision, repository.documents, repository.policies())


def test_a_contradiction_changes_nothing(repository: Repository) -> None:
    """That two proxies want one connection shows only at an endpoint; still it is all or none."""
    repository.apply([cnp("http", "web", egress=[l7("http", {"path": "/"})])])
    before, documents = repository.policies(), repository.documents
    wrong = [
        cnp("a", "api", ingress=FROM_CLIENT),
        cnp("dns", "web", egress=[l7("dns", {"matchName": "a"})]),
    ]
    with pytest.raises(PolicyError, match="different proxies"):
        repository.apply(wrong)
    assert (1, documents, before) == (
        repository.revision,
        repository.documents,
        repository.policies(),
    )


def proxied(**what: Any) -> dict[str, Any]:
    """An entry about port 443 of clients, with rules, server names or a listener."""
    ports = [{"port": "443", "protocol": "TCP"}]
    return {**TO_CLIENT, "toPorts": [{"ports": ports, **what}]}


TO_CLIENT = {"toEndpoints": [{"matchLabels": {"app": "client"}}]}
DENIED = cnp("a", "web", egressDeny=[proxied()])
GET = proxied(rules={"http": [{"method": "GET"}]})
ASKED = proxied(rules={"dns": [{"matchPattern": "*"}]})
NAMED = proxied(serverNames=["a.test"])
OPENED = proxied(serverNames=["a.test"], terminatingTLS={"secret": {"name": "s"}})


def listening(name: str, priority: int = 0, kind: str = "CiliumEnvoyConfig") -> dict[str, Any]:
    config = {"kind": kind, "name": "c"}
    return proxied(listener={"envoyConfig": config, "name": name, "priority": priority})


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ([GET, ASKED], "different proxies"),
        ([NAMED, GET, ASKED], "different proxies"),
        ([NAMED, ASKED], "different proxies"),
        ([GET, listening("x", priority=1)], "different proxies"),
        ([NAMED, listening("x")], "different proxies"),
        ([listening("x"), listening("y")], "different proxies"),
        ([listening("x", 3), listening("y", 3)], "different proxies"),
        ([listening("x"), listening("x", kind="CiliumClusterwideEnvoyConfig")], "different"),
        ([listening("x"), listening("y", 126 - 26)], ""),
        ([listening("x", 1), listening("x", 2)], ""),
        ([GET, GET, NAMED], "needs terminatingTLS"),
        ([NAMED, GET], ""),
        ([GET, OPENED, NAMED], ""),
        ([GET, {"toEntities": ["all"], **{k: ASKED[k] for k in ("toPorts",)}}], ""),
    ],
)  # fmt: skip
def test_what_one_proxy_cannot_do(
    repository: Repository, entries: list[dict[str, Any]], words: str
) -> None:
    """Of one selector and port; as Cilium merges rules, so their order counts for server names."""
    documents = [cnp(f"p{n}", "web", egress=[entry]) for n, entry in enumerate(entries)]
    if not words:
        assert len(repository.apply(documents).policies)
        return
    with pytest.raises(PolicyError, match=words):
        repository.apply(documents)
    assert not repository.documents


@pytest.mark.parametrize("later", [ASKED, {**GET, "authentication": {"mode": "required"}}])
def test_after_a_deny_there_is_nothing_to_contradict(
    repository: Repository, later: dict[str, Any]
) -> None:
    """What comes after it, in the order of names, is denied anyway."""
    first = {**GET, "authentication": {"mode": "disabled"}}
    with pytest.raises(PolicyError):
        repository.apply([cnp("b", "web", egress=[first]), cnp("c", "web", egress=[later])])
    repository.apply([DENIED, cnp("b", "web", egress=[first]), cnp("c", "web", egress=[later])])


def test_a_prefix_is_a_key_of_any_source_too() -> None:
    """A denial that names a cidr label without its source holds in the table as in the model."""
    repository = Repository()
    outside, web = 0x0100_0001, pod("web")
    repository.add_endpoint(1, web)
    denied = {"matchLabels": {"10.0.0.0/8": "", "reserved:world-ipv4": ""}}
    document = cnp(
        "p", "web", ingress=[{"fromEntities": ["all"]}], ingressDeny=[{"fromEndpoints": [denied]}]
    )
    for again in range(2):  # the selector first, then the identity first
        repository.update_identities({outside: ["cidr:10.0.0.0/8", "reserved:world-ipv4"]})
        repository.apply([document])
        lookup = PolicyLookup.of(repository.policy(1).entries())
        hit = lookup.lookup(Direction.INGRESS, outside, Protocol.TCP, 80)
        decision = repository.decide(web, outside, Direction.INGRESS, "80/TCP")
        assert hit.verdict is decision.verdict is Verdict.DENY, again
        repository.update_identities(removed=[outside])


def test_undo_brings_back_namespaces(repository: Repository) -> None:
    """Their labels are part of what a change did: a new one goes, a former one returns."""

    def space(name: str, **labels: str) -> dict[str, Any]:
        return {
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": {"name": name, "labels": labels},
        }

    repository.apply([space("old", env="test")])
    before = repository.namespaces
    change = repository.apply([space("old", env="prod"), space("new")])
    assert set(repository.namespaces) == {"old", "new"}
    repository.undo(change)
    assert before == repository.namespaces


def test_undo_brings_back_what_was(repository: Repository) -> None:
    """Replaced documents return and new ones go."""
    repository.apply([cnp("p", "web", ingress=[{}])])
    before = repository.documents
    change = repository.apply([cnp("p", "web", egress=[{}]), cnp("q", "api", ingress=[{}])])
    undone = repository.undo(change)
    assert before == repository.documents
    assert {1, 2} == set(undone.policies)


def test_delete(repository: Repository) -> None:
    """A deleted document governs nobody; one that is not there is an error that changes nothing."""
    repository.apply([cnp("p", "web", ingress=[{}])])
    key = PolicyKey("CiliumNetworkPolicy", "default", "p")
    with pytest.raises(NotFoundError, match="no CiliumNetworkPolicy default/nothing"):
        repository.delete(key, PolicyKey("CiliumNetworkPolicy", "default", "nothing"))
    assert key in repository.documents
    assert {1} == set(repository.delete(key).policies)
    assert frozenset() == repository.policy(1).enforced


def test_selectors_that_nobody_uses_leave_the_cache(repository: Repository) -> None:
    """Replaced policies give their selectors back, or the cache would grow for ever."""
    idle = len(repository._cache)
    for number in range(5):
        app = {"matchLabels": {"app": f"a{number}"}}
        repository.apply([cnp("p", "web", ingress=[{"fromEndpoints": [app]}])])
    repository.delete(PolicyKey("CiliumNetworkPolicy", "default", "p"))
    assert idle == len(repository._cache)
    repository.remove_endpoint(1)
    repository.remove_endpoint(2)
    assert len(repository._cache) == 0


def test_prefixes_are_those_that_rules_name(repository: Repository) -> None:
    """Exceptions too, each while a rule names it; the whole of a family is the world."""
    sets = [{"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}, {"cidr": "0.0.0.0/0"}]
    repository.apply([cnp("p", "web", egress=[{"toCIDRSet": sets}])])
    repository.apply([cnp("q", "web", egress=[{"toCIDR": ["10.0.0.0/8", "fd00::/8"]}])])
    assert {"10.0.0.0/8", "10.1.0.0/16", "fd00::/8"} == set(map(str, repository.prefixes()))
    repository.delete(PolicyKey("CiliumNetworkPolicy", "default", "p"))
    assert {"10.0.0.0/8", "fd00::/8"} == set(map(str, repository.prefixes()))


def test_each_verdict_has_its_drop_reason_and_its_rule(repository: Repository) -> None:
    """The entry that decides names the rule; a redirect without a proxy is a drop of its own."""
    port = {"port": "80", "protocol": "TCP"}
    repository.apply(
        [
            cnp("deny", "web", ingressDeny=[{"fromEntities": ["world"]}]),
            cnp("http", "web", ingress=[{"toPorts": [{"ports": [port], "rules": {"http": [{}]}}]}]),
        ]
    )
    table = PolicyLookup.of(repository.policy(1).entries())
    for identity, number, reason, source in (
        (2, 80, DROP_POLICY_DENY, "CiliumNetworkPolicy default/deny spec.ingressDeny[0]"),
        (1002, 80, DROP_NO_PROXY, "CiliumNetworkPolicy default/http spec.ingress[0].toPorts[0]"),
        (1002, 81, DROP_POLICY, "None"),
    ):
        hit = table.lookup(Direction.INGRESS, identity, Protocol.TCP, number)
        assert (reason, source) == (hit.drop_reason, str(repository.derivation(hit.rule)))


def test_cookies_are_the_same_after_a_restart_and_go_with_their_policy() -> None:
    """They come from the content, so that pinned entries are known again; no list grows."""
    cookies = []
    for _ in range(2):
        repository = Repository()
        repository.apply([cnp("p", "web", ingress=FROM_CLIENT)])
        entries = repository.add_endpoint(1, pod("web")).entries()
        cookies.append(sorted(entries.values["rule"].tolist()))
        repository.delete(PolicyKey("CiliumNetworkPolicy", "default", "p"))
        repository.remove_endpoint(1)
        del entries
        gc.collect()
        assert all(repository.derivation(cookie) is None for cookie in cookies[-1])
    assert cookies[0] == cookies[1]


def test_wrong_calls_are_refused(repository: Repository) -> None:
    """Each public way in says what is wrong with what it was given."""
    with pytest.raises(ExistsError, match="endpoint 1 is there already"):
        repository.add_endpoint(1, pod("web"))
    with pytest.raises(NotFoundError, match="no endpoint 9"):
        repository.remove_endpoint(9)
    with pytest.raises(NotFoundError, match="no endpoint 9"):
        repository.policy(9)
    with pytest.raises(NotFoundError, match="identity 77 is not known"):
        repository.explain(77, 1000, "80/TCP")
    for number in (0, -1, 1 << 32):
        with pytest.raises(InvalidError, match=f"identity {number}"):
            repository.update_identities({number: pod("x")})
    with pytest.raises(InvalidError, match="has named ports but is not in"):
        repository.update_identities({}, named_ports={5: {"http": (80, Protocol.TCP)}})


def test_an_identity_whose_labels_change_goes_and_comes(repository: Repository) -> None:
    """Old entries are in `deletes`, new ones in `adds`, and the entries follow."""
    change = repository.apply([cnp("p", "web", ingress=FROM_CLIENT)])
    policy = change.policies[1]
    delta = repository.update_identities({1002: pod("other"), 1003: pod("client")})
    adds, deletes = policy.changes(delta)
    assert (adds.keys["identity"].tolist(), deletes.keys["identity"].tolist()) == ([1003], [1002])
    assert {0, 1, 1003} == set(policy.entries().keys["identity"].tolist())
    assert repository.decide(pod("web"), 1002, Direction.INGRESS, "80/TCP").verdict is Verdict.DENY
    again = repository.update_identities({1003: pod("client")}, removed=[4242])
    assert (again.added, again.removed) == ([], [])


def test_entries_are_read_while_identities_come_and_go(repository: Repository) -> None:
    """Readers in other threads see whole states: each identity with all of its entries."""
    two = [{"ports": [{"port": port, "protocol": "TCP"} for port in ("80", "443")]}]
    repository.apply([cnp("p", "web", ingress=[{**FROM_CLIENT[0], "toPorts": two}])])
    policy = repository.policy(1)
    errors: list[BaseException] = []
    done = threading.Event()

    def read() -> None:
        try:
            while not done.is_set():
                identities = policy.entries().keys["identity"].tolist()
                assert all(identities.count(number) == 2 for number in identities if number > 2000)
        except BaseException as error:
            errors.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    for step in range(150):
        numbers = range(3000 + step, 3020 + step)
        repository.update_identities(dict.fromkeys(numbers, pod("client")))
        repository.update_identities({}, removed=numbers)
    done.set()
    reader.join(timeout=30)
    assert errors == []


@pytest.mark.parametrize("named", [False, True], ids=["numbers", "names"])
@pytest.mark.parametrize("count", [1, 64, 65, 200])
def test_as_many_selectors_as_there_are_peers(count: int, named: bool) -> None:
    """More selectors than bits of a word: each identity has the ports of those that select it."""
    repository = Repository()
    labels = {2000 + i: [*pod("client"), f"k8s:n{i}=", f"k8s:n{i // 3}="] for i in range(count)}
    names = {2000: {"metrics": (9000, Protocol.TCP)}} if named else {}
    repository.update_identities(labels, named_ports=names)
    entries = [
        {
            "toEndpoints": [{"matchExpressions": [{"key": f"n{i}", "operator": "Exists"}]}],
            "toPorts": [{"ports": [{"port": str(1000 + i), "protocol": "TCP"}]}],
        }
        for i in range(count)
    ]
    if named:
        entries.append({"toPorts": [{"ports": [{"port": "metrics", "protocol": "TCP"}]}]})
    repository.add_endpoint(1, pod("web"))
    repository.apply([cnp("p", "web", egress=entries)])
    found = {
        (identity, slot.port)
        for identity, slot, _ in repository.policy(1).entries().rows()
        if slot.direction is Direction.EGRESS
    }
    expected = {(2000 + i, 1000 + n) for i in range(count) for n in (i, i // 3)}
    assert expected | ({(2000, 9000)} if named else set()) == found


@pytest.mark.parametrize("passing", [False, True], ids=["ranked", "settled"])
def test_what_peers_and_slots_have_in_common_is_worked_out_once(
    passing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forty ranges for twenty peers: blocks are made of a range, and an entry of a share, once."""
    made = {"blocks": 0, "intern": 0}
    blocks, intern = PortProto.blocks, Derivations.intern

    def count_blocks(ports: PortProto) -> Any:
        made["blocks"] += 1
        return blocks(ports)

    def count_intern(derivations: Derivations, *content: Any) -> Derivation:
        made["intern"] += 1
        return intern(derivations, *content)

    monkeypatch.setattr(PortProto, "blocks", count_blocks)
    monkeypatch.setattr(Derivations, "intern", count_intern)
    ranges = [
        {"port": str(3 + 97 * n), "endPort": 80 + 97 * n, "protocol": "SCTP"} for n in range(40)
    ]
    documents: list[Any] = [
        cnp(f"p{n}", "web", ingress=[
            {"fromEndpoints": [{"matchLabels": {"app": f"c{n}"}}], "toPorts": [{"ports": ranges}]}
        ])
        for n in range(20)
    ]  # fmt: skip
    if passing:
        peer = {"pods": {"namespaceSelector": {}, "podSelector": {"matchLabels": {"app": "c0"}}}}
        spec = {"tier": "Admin", "priority": 1, "subject": {"namespaces": {}},
                "ingress": [{"action": "Pass", "from": [peer]}]}  # fmt: skip
        documents.append({
            "apiVersion": "policy.networking.k8s.io/v1alpha2",
            "kind": "ClusterNetworkPolicy",
            "metadata": {"name": "pass"},
            "spec": spec,
        })  # fmt: skip
    repository = Repository()
    repository.update_identities({2000 + n: pod(f"c{n}") for n in range(20)})
    repository.add_endpoint(1, pod("web"))
    repository.apply(documents)
    entries = repository.policy(1).entries()
    assert len(entries) > 20 * 40 * 4
    assert made["blocks"] <= 40 + 2
    assert made["intern"] <= 20 * 40 + 20


def test_what_was_said_of_classes_that_are_gone_is_forgotten() -> None:
    """Of identities that come and go, each in selections of its own, a policy keeps a bounded part.

    So the rules behind an entry that none has any more are not known for ever either.
    """
    entries = [
        {"fromEndpoints": [{"matchExpressions": [{"key": f"n{i}", "operator": "Exists"}]}]}
        for i in range(12)
    ]
    repository = Repository()
    repository.add_endpoint(1, pod("web"))
    policy = repository.apply([cnp("p", "web", ingress=entries)]).policies[1]
    cookies = set()
    for bits in range(1, 1 << 8):
        labels = [f"k8s:n{i}=" for i in range(12) if bits >> i & 1]
        repository.update_identities({2000: [*pod("client"), *labels]}, removed=[2000])
        cookies |= {said.rule for _, _, said in policy.entries().rows()}
    gc.collect()
    known = sum(repository.derivation(cookie) is not None for cookie in cookies)
    assert len(cookies) > 250
    assert known < 150
