"""What `explain` says of a request that a proxy would be asked to pass."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from pyciliumlib.errors import InvalidError, PolicyError, UnitError
from pyciliumlib.policy import (
    Direction,
    HTTPRequest,
    KafkaRequest,
    Party,
    PolicySettings,
    Repository,
    Verdict,
    parse,
)
from pyciliumlib.policy.model import PortMatch
from pyciliumlib.types import PortProto, Protocol

NAMESPACE = "k8s:io.kubernetes.pod.namespace=default"
CLUSTER = "k8s:io.cilium.k8s.policy.cluster=default"
WEB, API = (Party([f"k8s:app={name}", NAMESPACE, CLUSTER], name=name) for name in ("web", "api"))
DNS = Party(["k8s:k8s-app=kube-dns", NAMESPACE, CLUSTER], name="dns")
GET = {"method": "GET", "path": "/items.*"}


def policy(name: str = "p", **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumNetworkPolicy",
        "metadata": {"name": name},
        "spec": {"endpointSelector": {"matchLabels": {"app": "api"}}, **spec},
    }


def entry(*http: dict[str, Any], app: str = "web", **l7: Any) -> dict[str, Any]:
    """An ingress entry on port 80 with these HTTP rules."""
    rules = {"http": list(http)} if http else l7
    ports: dict[str, Any] = {"ports": [{"port": "80", "protocol": "TCP"}]}
    return {
        "fromEndpoints": [{"matchLabels": {"app": app}}],
        "toPorts": [ports | ({"rules": rules} if rules else {})],
    }


def asked(documents: list[dict[str, Any]], request: Any) -> Any:
    repository = Repository()
    repository.apply(documents)
    if isinstance(request, HTTPRequest):
        return repository.explain(WEB, API, "80/TCP", http=request)
    return repository.explain(WEB, API, "80/TCP", kafka=request)


ITEMS, ADMIN = HTTPRequest("GET", "/items?all", "shop"), HTTPRequest("GET", "/admin", "shop")
ANYBODY = {"toPorts": [{"ports": [{"port": "0", "protocol": "TCP"}]}]}
CASES: dict[str, tuple[list[dict[str, Any]], Any, Verdict, str]] = {
    "a rule allows it": (
        [policy(ingress=[entry(GET)])],
        ITEMS,
        Verdict.ALLOW,
        "allow: GET /items.*, CiliumNetworkPolicy default/p spec.ingress[0].toPorts[0]",
    ),
    "none does": (
        [policy(ingress=[entry(GET)])],
        ADMIN,
        Verdict.DENY,
        "deny: 403 Access denied, no rule allows GET shop/admin",
    ),
    "the rules of all policies": (
        [policy(ingress=[entry(GET)]), policy("q", ingress=[entry({"path": "/admin"})])],
        ADMIN,
        Verdict.ALLOW,
        "allow: /admin, CiliumNetworkPolicy default/q",
    ),
    "a plain allow of the peer": (
        [policy(ingress=[entry(GET), {"fromEndpoints": [{"matchLabels": {"app": "web"}}]}])],
        ADMIN,
        Verdict.ALLOW,
        "allow: every request passes, CiliumNetworkPolicy default/p spec.ingress[1]",
    ),
    "a plain allow of anybody": (
        [policy(ingress=[entry(GET)]), policy("q", ingress=[ANYBODY])],
        ADMIN,
        Verdict.ALLOW,
        "allow: every request passes, CiliumNetworkPolicy default/q",
    ),
    "a rule that denies nothing by default": (
        [policy(ingress=[entry(GET)], enableDefaultDeny={"ingress": False})],
        ADMIN,
        Verdict.ALLOW,
        "allow: every request passes, CiliumNetworkPolicy default/p spec denies nothing",
    ),
    "another protocol": (
        [policy(ingress=[entry(kafka=[{"topic": "a"}])])],
        ADMIN,
        Verdict.DENY,
        "deny: the proxy is for kafka, not for http",
    ),
    "a topic": (
        [policy(ingress=[entry(kafka=[{"role": "produce", "topic": "a"}])])],
        KafkaRequest(0, topics=["a"]),
        Verdict.ALLOW,
        "allow: produce a, CiliumNetworkPolicy default/p",
    ),
    "topics of several rules": (
        [policy(ingress=[entry(kafka=[{"topic": "a"}]), entry(kafka=[{"topic": "b"}])])],
        KafkaRequest(0, topics=["a", "b"]),
        Verdict.ALLOW,
        "allow: several rules, one for each topic",
    ),
    "a topic of no rule": (
        [policy(ingress=[entry(kafka=[{"role": "produce", "topic": "a"}])])],
        KafkaRequest(0, topics=["c"]),
        Verdict.DENY,
        "deny: topic authorization failed, no rule allows produce c",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_answer_of_the_proxy(case: str) -> None:
    """The verdict is that of the request, and the text names the rule or the refusal."""
    documents, request, verdict, words = CASES[case]
    explanation = asked(documents, request)
    assert explanation.verdict is verdict
    (line,) = [text for topic, text in explanation.lines() if topic == "proxy"]
    assert line.startswith(words)


def test_rules_that_nearly_matched_are_told() -> None:
    explanation = asked([policy(ingress=[entry(GET, {"method": "PUT"})])], ADMIN)
    near = [text for topic, text in explanation.lines() if topic == "near"]
    assert near == [
        "CiliumNetworkPolicy default/p spec.ingress[0].toPorts[0] has GET /items.*: "
        "path /items.* does not match",
        "CiliumNetworkPolicy default/p spec.ingress[0].toPorts[0] has PUT: "
        "method PUT does not match",
    ]
    assert "403 Access denied" in explanation._repr_html_()


def test_a_request_on_a_connection_without_proxy() -> None:
    """Where nothing redirects, a request passes or not as the connection does."""
    open_, closed = policy(ingress=[entry()]), policy(ingress=[entry(app="nobody")])
    assert asked([open_], ADMIN).verdict is Verdict.ALLOW
    assert asked([closed], ADMIN).verdict is Verdict.DENY
    assert asked([open_], ADMIN).answers == ()


def test_names() -> None:
    """A DNS rule of egress: the proxy refuses what no pattern means."""
    repository = Repository()
    rules = {"dns": [{"matchPattern": "*.shop.test"}]}
    ports = [{"ports": [{"port": "53", "protocol": "UDP"}], "rules": rules}]
    to = {"toEndpoints": [{"matchLabels": {"k8s-app": "kube-dns"}}], "toPorts": ports}
    repository.apply(policy(egress=[to]))
    for name, verdict in (("a.shop.test", Verdict.ALLOW), ("a.b.test", Verdict.DENY)):
        assert repository.explain(API, DNS, "53/UDP", dns=name).verdict is verdict
    refused = repository.explain(API, DNS, "53/UDP", dns="b.test")
    assert "REFUSED, no rule allows DNS b.test" in str(refused)


def test_both_proxies_have_to_agree() -> None:
    """One at the sender's egress, one at the receiver's ingress."""
    repository = Repository()
    egress = entry({"method": "GET"}) | {"toEndpoints": [{}]}
    del egress["fromEndpoints"]
    sender = policy("out", egress=[egress], endpointSelector={"matchLabels": {"app": "web"}})
    repository.apply([sender, policy(ingress=[entry({"path": "/items"})])])
    for method, path, verdict in (
        ("GET", "/items", Verdict.ALLOW),
        ("PUT", "/items", Verdict.DENY),
        ("GET", "/admin", Verdict.DENY),
    ):
        found = repository.explain(WEB, API, "80/TCP", http=HTTPRequest(method, path))
        assert found.verdict is verdict


def test_one_kind_of_request_at_a_time() -> None:
    with pytest.raises(PolicyError, match="one kind of request"):
        Repository().explain(WEB, API, "80/TCP", http=ITEMS, dns="a.test")


@pytest.mark.parametrize("allowed", [True, False])
def test_the_local_host_may_ask_for_anything(allowed: bool) -> None:
    """Its allowance is of the kind that lets every request pass, and goes with the setting."""
    repository = Repository(PolicySettings(allow_localhost=allowed))
    peer = {"fromEntities": ["host"]}
    repository.apply([policy(ingress=[{**peer, "toPorts": entry(GET)["toPorts"]}])])
    host = Party(["reserved:host"], name="host")
    said = repository.explain(host, API, "80/TCP", http=ADMIN)
    assert (said.verdict is Verdict.ALLOW) is allowed
    assert ("every request of the local host passes" in str(said)) is allowed
    assert repository.explain(host, API, "80/TCP", http=ITEMS).verdict is Verdict.ALLOW


_HUGE = 10**5000
_WRONG_REQUESTS: dict[str, tuple[Callable[[], object], str]] = {
    "key-by-name": (lambda: KafkaRequest("produce"), "'produce' has the number 0"),  # type: ignore[arg-type]
    "key-of-no-request": (lambda: KafkaRequest("x"), "write a number"),  # type: ignore[arg-type]
    "negative-key": (lambda: KafkaRequest(-1), "-1 found; write a number"),
    "huge-key": (lambda: KafkaRequest(_HUGE), "write a number"),
    "version": (lambda: KafkaRequest(0, True), "api_version"),
    "client": (lambda: KafkaRequest(0, 0, b"x"), "client_id"),  # type: ignore[arg-type]
    "one-topic": (lambda: KafkaRequest(0, topics="orders"), "a list of texts"),
    "topics": (lambda: KafkaRequest(0, topics=None), "a list of texts"),
    "topic": (lambda: KafkaRequest(0, topics=[1]), "a topic"),
    "method": (lambda: HTTPRequest(None), "method"),  # type: ignore[arg-type]
    "path": (lambda: HTTPRequest("GET", b"/"), "path"),  # type: ignore[arg-type]
    "half-a-character": (lambda: HTTPRequest("GET", "/\ud800"), "half of a character"),
    "host": (lambda: HTTPRequest("GET", "/", _HUGE), "host"),  # type: ignore[arg-type]
    "headers": (lambda: HTTPRequest(headers="Accept"), "pairs"),  # type: ignore[arg-type]
    "header-alone": (lambda: HTTPRequest(headers=[("Accept",)]), "pairs"),  # type: ignore[list-item]
    "header-value": (lambda: HTTPRequest(headers=[("Accept", 1)]), "a header"),  # type: ignore[list-item]
}


@pytest.mark.parametrize("case", _WRONG_REQUESTS)
def test_a_request_of_other_things_than_texts_and_numbers_is_refused(case: str) -> None:
    """When it is made, with what to write; not when a rule is asked about it."""
    make, said = _WRONG_REQUESTS[case]
    with pytest.raises(InvalidError, match=said):
        make()


@pytest.mark.parametrize("kind", ["http", "dns", "kafka"])
@pytest.mark.parametrize(
    "value", ["GET /", b"x", 7, [], _HUGE], ids=lambda value: type(value).__name__
)
def test_what_is_no_request_is_refused(kind: str, value: Any) -> None:
    """A text is a DNS name, and nothing else is any request."""
    repository = Repository()
    if kind == "dns" and isinstance(value, str):
        assert repository.explain(WEB, API, "80/TCP", dns=value).verdict is Verdict.ALLOW
        return
    with pytest.raises(InvalidError, match="request"):
        repository.explain(WEB, API, "80/TCP", **{kind: value})


def test_the_parties_of_a_matrix_are_parties() -> None:
    """Labels without a name have no row; what cannot be looked through has none either."""
    for wrong in (["k8s:app=web"], 7, None, "web", [7]):
        with pytest.raises(InvalidError, match="mapping of names"):
            Repository().reachability(wrong, "80/TCP")  # type: ignore[arg-type]


@pytest.mark.parametrize("number", ["1000", None, 0, 1.5])
def test_identities_are_numbers(number: Any) -> None:
    with pytest.raises(InvalidError, match="identities are 1 to"):
        Repository().update_identities({number: ["k8s:app=web"]})


@pytest.mark.parametrize(
    "kind", [PortProto, partial(PortMatch, Protocol.TCP)], ids=["range", "match"]
)
@pytest.mark.parametrize("first", ["80", None, 1.5, [], -1])
def test_ports_are_numbers(kind: Callable[[Any, Any], object], first: Any) -> None:
    with pytest.raises(UnitError, match="ports"):
        kind(first, 90)


def test_a_limit_is_of_egress_even_where_fields_are_left_out() -> None:
    """With `prune` the entry of ingress names nobody, so nobody may come in."""
    limit = {"toBandwidth": {"rate": "10M"}}
    document = policy(ingress=[limit])
    with pytest.raises(PolicyError, match="toBandwidth"):
        parse([document])
    (rule,) = parse([document], prune=True).policies[0].rules
    assert rule.enforces == {Direction.INGRESS}
    (rule,) = parse([policy(egress=[limit])]).policies[0].rules
    assert rule.enforces == frozenset() and rule.bandwidth is not None
