"""The explanation of a verdict, as value, as text and as HTML."""

from __future__ import annotations

from typing import Any

import pytest

from pyciliumlib.errors import PolicyError, UnitError
from pyciliumlib.policy import Party, Reason, Repository, Verdict

SPACE = ["k8s:io.kubernetes.pod.namespace=shop", "k8s:io.cilium.k8s.policy.cluster=default"]


def party(app: str) -> Party:
    return Party([f"k8s:app={app}", *SPACE], name=app)


def cnp(name: str, app: str | None, **spec: Any) -> dict[str, Any]:
    selector = {"matchLabels": {"app": app}} if app else {}
    return {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumNetworkPolicy",
        "metadata": {"name": name, "namespace": "shop"},
        "spec": {"endpointSelector": selector, **spec},
    }


def select(app: str) -> dict[str, Any]:
    return {"matchLabels": {"app": app}}


def to(port: str, **more: Any) -> list[dict[str, Any]]:
    return [{"ports": [{"port": port, "protocol": "TCP"}], **more}]


@pytest.fixture
def repository() -> Repository:
    """Default deny for all; web may call api, and api takes GET from web on 8080."""
    found = Repository()
    found.apply(
        [
            cnp("closed", None, ingress=[{}], egress=[{}]),
            cnp("web", "web", egress=[{"toEndpoints": [select("api")], "toPorts": to("8080")}]),
            cnp(
                "api",
                "api",
                ingress=[
                    {
                        "fromEndpoints": [select("web")],
                        "toPorts": to("8080", rules={"http": [{"method": "GET"}]}),
                    }
                ],
                ingressDeny=[{"fromEntities": ["world"]}],
            ),
        ]
    )
    return found


def test_both_directions_are_decided(repository: Repository) -> None:
    """The verdict is the stricter of the two, and each names its rule."""
    found = repository.explain(party("web"), party("api"), "8080/TCP")
    assert found.egress is not None
    assert found.ingress is not None
    assert found.verdict is Verdict.REDIRECT
    assert (found.egress.reason, found.ingress.reason) == (Reason.RULE, Reason.L7)
    sources = [str(d.clauses[0].source) for d in found.decisions]
    assert sources == [
        "CiliumNetworkPolicy shop/web spec.egress[0].toPorts[0]",
        "CiliumNetworkPolicy shop/api spec.ingress[0].toPorts[0]",
    ]


def test_what_is_missing_is_named_for_each_side(repository: Repository) -> None:
    """A connection that two default denies stop needs two rules."""
    found = repository.explain(party("db"), party("web"), "5432/TCP")
    assert found.verdict is Verdict.DENY
    assert list(found.missing) == [
        "an egress rule of a policy that selects db, with toEndpoints web and port 5432/TCP",
        "an ingress rule of a policy that selects web, with fromEndpoints db and port 5432/TCP",
    ]


def test_rules_that_nearly_match_are_shown(repository: Repository) -> None:
    """The right peer on another port, and the right port for another peer."""
    by_port = repository.explain(party("web"), party("api"), "8081/TCP")
    assert "selects the peer, not the port: it has 8080/TCP" in str(by_port)
    by_peer = repository.explain(party("db"), party("api"), "8080/TCP")
    assert "spec.ingress[0].toPorts[0] (allow) covers the port, not the peer" in str(by_peer)


def test_a_deny_rule_is_no_missing_allow(repository: Repository) -> None:
    """What a rule denies no further allow would let pass."""
    found = repository.explain(9, party("api"), "8080/TCP")
    assert (found.verdict, found.missing, found.egress) == (Verdict.DENY, (), None)
    assert "deny: a deny rule, CiliumNetworkPolicy shop/api spec.ingressDeny[0]" in str(found)


def test_the_text_in_full(repository: Repository) -> None:
    """One line a direction, its near misses and what is missing."""
    assert str(repository.explain(9, party("web"), "80/TCP")).splitlines() == [
        "deny: reserved:world-ipv4 -> web 80/TCP",
        "  egress of reserved:world-ipv4: allow: no policy applies here",
        "  ingress of web: deny: no rule allows it; default deny comes from "
        "CiliumNetworkPolicy shop/closed spec",
        "  missing: an ingress rule of a policy that selects web, with fromEntities "
        "reserved:world-ipv4 and port 80/TCP",
    ]


def test_what_an_audit_lets_pass_says_what_it_would_be(repository: Repository) -> None:
    """The verdict is allow, and the text has the denial, its reason and the rule that lacks."""
    audited = Party(party("web").labels, name="web", audit=True)
    found = repository.explain(audited, party("db"), "9/TCP")
    assert found.verdict is Verdict.DENY  # that of db, which is not audited
    assert found.egress is not None and found.egress.audited
    assert found.egress.verdict is Verdict.ALLOW and found.egress.reason is Reason.DEFAULT_DENY
    assert "egress of web: allow for the audit, else deny: no rule allows it" in str(found)
    assert "missing: an egress rule of a policy that selects web" in str(found)
    said = repository.explain(audited, party("api"), "8080/TCP").egress
    assert said is not None and not said.audited


def test_html_is_escaped_and_capped() -> None:
    """Names come from users: no markup of theirs reaches a notebook, and rows end."""
    many = [{"fromEndpoints": [select(f"a{n}")], "toPorts": to("80")} for n in range(80)]
    repository = Repository()
    repository.apply([cnp("<script>", "web", ingress=many)])
    markup = repository.explain(
        Party(["k8s:app=x"], name="<b>" + "x" * 1000), party("web"), "80/TCP"
    )._repr_html_()
    assert "<script>" not in markup
    assert "<b>" not in markup
    assert "&lt;script&gt;" in markup
    assert len(markup) < 50 * 800


@pytest.mark.parametrize(
    ("target", "error"),
    [
        ("80", PolicyError),
        ("TCP", PolicyError),
        ("80-90/TCP", PolicyError),
        ("256/ICMP", PolicyError),
        ("x/ICMP", PolicyError),
        ("80/TPC", UnitError),
        ("", UnitError),
    ],
)
def test_a_target_is_one_port_of_one_protocol(
    repository: Repository, target: str, error: type[Exception]
) -> None:
    """Anything else has no single verdict."""
    with pytest.raises(error):
        repository.explain(party("web"), party("api"), target)


def test_icmp_is_asked_for_by_type(repository: Repository) -> None:
    """An echo request unless a type is given."""
    assert repository.explain(party("web"), party("api"), "ICMP").port == 8
    assert repository.explain(party("web"), party("api"), "128/ICMPv6").port == 128
