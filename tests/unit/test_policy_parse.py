"""Reading documents: what is refused, with which words, and that nothing is read by halves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from pyciliumlib.errors import NotFoundError, PolicyError, UnitError, UnsupportedError
from pyciliumlib.policy import NamespaceDocument, parse
from pyciliumlib.policy.model import PortMatch
from pyciliumlib.types import Protocol


def cnp(**spec: Any) -> dict[str, Any]:
    """A CiliumNetworkPolicy of one spec; it selects everything unless `spec` says otherwise."""
    return {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumNetworkPolicy",
        "metadata": {"name": "p", "namespace": "default"},
        "spec": {"endpointSelector": {}, **spec},
    }


def ingress(**entry: Any) -> dict[str, Any]:
    return cnp(ingress=[entry])


def egress(**entry: Any) -> dict[str, Any]:
    return cnp(egress=[entry])


def ports(*listed: Any, **more: Any) -> list[dict[str, Any]]:
    return [{"ports": list(listed), **more}]


def tcp(port: Any = "80", **more: Any) -> dict[str, Any]:
    return {"port": port, "protocol": "TCP", **more}


def http(**rule: Any) -> dict[str, Any]:
    return ingress(toPorts=ports(tcp(), rules={"http": [rule]}))


def dns(*rules: Any, listed: Any = None) -> dict[str, Any]:
    listed = [{"port": "53", "protocol": "ANY"}] if listed is None else listed
    return egress(toPorts=[{"ports": listed, "rules": {"dns": list(rules)}}])


def kafka(**rule: Any) -> dict[str, Any]:
    return ingress(toPorts=ports(tcp("9092"), rules={"kafka": [rule]}))


def listener(**more: Any) -> list[dict[str, Any]]:
    item = {"envoyConfig": {"kind": "CiliumEnvoyConfig", "name": "c"}, "name": "l", **more}
    return ports(tcp(), listener=item)


WRONG = {
    "nothing said": (cnp(), "spec: ingress, ingressDeny, egress and egressDeny are all empty"),
    "empty list": (cnp(ingress=[]), "are all empty"),
    "no selector": (
        {**cnp(), "spec": {"ingress": [{}]}},
        "spec: exactly one of endpointSelector and nodeSelector",
    ),
    "both selectors": (cnp(nodeSelector={}, ingress=[{}]), "exactly one of endpointSelector"),
    "no spec": ({k: v for k, v in cnp().items() if k != "spec"}, "neither spec nor specs"),
    "no name": ({**cnp(ingress=[{}]), "metadata": {}}, "metadata: name is missing"),
    "unknown rule field": (
        cnp(ingres=[{}]),
        'spec.ingres: unknown field of the rule (did you mean "ingress"?)',
    ),
    "unknown peer field": (ingress(fromEndpoint=[]), '(did you mean "fromEndpoints"?)'),
    "unknown deny field": (
        cnp(ingressDeny=[{"toPorts": ports(tcp(), rules={"http": [{}]})}]),
        "spec.ingressDeny[0].toPorts[0].rules: unknown field",
    ),
    "wrong form": (ingress(fromEndpoints={}), "spec.ingress[0].fromEndpoints: expected a list"),
    "text for object": (cnp(ingress=["x"]), "spec.ingress[0]: expected an object"),
    "two kinds of peer": (
        ingress(fromEndpoints=[{}], fromEntities=["all"]),
        "spec.ingress[0]: fromEndpoints and fromEntities in one entry",
    ),
    "cidr and set": (
        ingress(fromCIDR=["10.0.0.0/8"], fromCIDRSet=[{"cidr": "11.0.0.0/8"}]),
        "fromCIDR and fromCIDRSet in one entry",
    ),
    "unknown entity": (
        ingress(fromEntities=["galaxy"]),
        "fromEntities[0]: unknown entity 'galaxy'",
    ),
    "near entity": (ingress(fromEntities=["wold"]), '(did you mean "world"?)'),
    "bad operator": (
        ingress(
            fromEndpoints=[{"matchExpressions": [{"key": "a", "operator": "Gt", "values": ["1"]}]}]
        ),
        "spec.ingress[0].fromEndpoints[0].matchExpressions[0].operator",
    ),
    "number as label": (ingress(fromEndpoints=[{"matchLabels": {"a": 1}}]), "quote"),
    "bad prefix": (ingress(fromCIDR=["10.0.0.0/33"]), "spec.ingress[0].fromCIDR[0]"),
    "bare address": (ingress(fromCIDR=["10.0.0.1"]), "'10.0.0.1' has no length; write 10.0.0.1/32"),
    "empty prefix": (ingress(fromCIDR=[""]), "spec.ingress[0].fromCIDR[0]"),
    "no cidr": (ingress(fromCIDRSet=[{}]), "exactly one of cidr, cidrGroupRef"),
    "except outside": (
        ingress(fromCIDRSet=[{"cidr": "10.0.0.0/8", "except": ["11.0.0.0/24"]}]),
        "except[0]: 11.0.0.0/24 is not inside 10.0.0.0/8",
    ),
    "except of the other family": (
        ingress(fromCIDRSet=[{"cidr": "10.0.0.0/8", "except": ["fd00::/64"]}]),
        "is not inside",
    ),
    "no port": (ingress(toPorts=ports({"protocol": "TCP"})), "port is missing"),
    "port as number": (ingress(toPorts=ports(tcp(80))), 'quote it: "80"'),
    "port too high": (ingress(toPorts=ports(tcp("65536"))), "ports end at 65535"),
    "port of many digits": (ingress(toPorts=ports(tcp("9" * 5000))), "ports end at 65535"),
    "a mask": (ingress(fromCIDR=["10.0.0.0/255.0.0.0"]), "as in 10.0.0.0/8"),
    "a length with zeros": (ingress(fromCIDR=["10.0.0.0/08"]), "as in 10.0.0.0/8"),
    "a zone": (ingress(fromCIDR=["fe80::1%eth0/64"]), "fromCIDR[0]"),
    "octal port": (ingress(toPorts=ports(tcp("0443"))), "reads this as octal"),
    "bad port name": (ingress(toPorts=ports(tcp("-x-"))), "neither a number nor the name"),
    "long port name": (ingress(toPorts=ports(tcp("x" * 16))), "neither a number nor the name"),
    "ICMP as protocol": (
        ingress(toPorts=ports({"port": "8", "protocol": "ICMP"})),
        "ICMP goes under icmps",
    ),
    "unknown protocol": (ingress(toPorts=ports({"port": "8", "protocol": "TPC"})), '"TCP"'),
    "port of GRE": (ingress(toPorts=ports({"port": "80", "protocol": "GRE"})), "has no ports"),
    "too many ports": (ingress(toPorts=ports(*[tcp()] * 41)), "41 ports in one entry; at most 40"),
    "too many icmps": (
        ingress(icmps=[{"fields": [{"type": 8}] * 41}]),
        "41 fields in one entry; at most 40",
    ),
    "bad family": (ingress(icmps=[{"fields": [{"family": "IPv5", "type": 8}]}]), "unknown family"),
    "bad icmp name": (ingress(icmps=[{"fields": [{"type": "EchoRequst"}]}]), '"EchoRequest"'),
    "icmp type too high": (
        ingress(icmps=[{"fields": [{"type": 70000}]}]),
        "70000 is no message type",
    ),
    "icmp type with zeros": (
        ingress(icmps=[{"fields": [{"type": "08"}]}]),
        "no IPv4 message type '08'",
    ),
    "a cloud group without a cloud": (ingress(fromGroups=[{}]), "aws is missing"),
    "a cloud group with a number": (
        ingress(fromGroups=[{"aws": {"labels": {"a": 1}}}]),
        "keys and values are texts",
    ),
    "two kinds of peers": (
        ingress(fromGroups=[{"aws": {}}], fromCIDR=["10.0.0.0/8"]),
        "fromCIDR and fromGroups in one entry",
    ),
    "no icmp type": (ingress(icmps=[{"fields": [{}]}]), "type is missing"),
    "icmps and ports": (
        ingress(icmps=[{"fields": [{"type": 8}]}], toPorts=ports(tcp())),
        "toPorts and icmps in one entry",
    ),
    "http on UDP": (
        ingress(toPorts=ports({"port": "80", "protocol": "UDP"}, rules={"http": [{}]})),
        "http rules are for TCP, found 80/UDP",
    ),
    "http on ANY": (ingress(toPorts=ports({"port": "80"}, rules={"http": [{}]})), "are for TCP"),
    "http on every port": (
        ingress(toPorts=ports(tcp("0"), rules={"http": [{}]})),
        "need a port other than 0",
    ),
    "two kinds of L7": (
        egress(toPorts=ports(tcp(), rules={"http": [{}], "dns": [{"matchPattern": "*"}]})),
        "http and dns in one entry",
    ),
    "bad path": (http(path="(["), "is no regular expression"),
    "lookahead": (http(path="(?=a)"), "is no regular expression of RE2"),
    "back reference": (http(path=r"(a)\1"), "is no regular expression of RE2"),
    "huge repeat": (http(path="a{1001}"), "invalid repetition size"),
    "long regex": (http(path="a" * 5000), "at most 4096"),
    "header without name": (http(headerMatches=[{"value": "x"}]), "name is missing"),
    "bad mismatch": (
        http(headerMatches=[{"name": "x", "mismatch": "DROP"}]),
        "unknown action 'DROP'",
    ),
    "dns on ingress": (
        ingress(
            toPorts=ports({"port": "53", "protocol": "UDP"}, rules={"dns": [{"matchName": "a"}]})
        ),
        "dns rules are for egress only",
    ),
    "dns without port": (dns({"matchPattern": "*"}, listed=[]), "dns rules need a port"),
    "dns with range": (
        dns({"matchPattern": "*"}, listed=[{"port": "53", "endPort": 60, "protocol": "UDP"}]),
        "dns rules take no range",
    ),
    "bad dns name": (dns({"matchName": "a b"}), "'a b' may hold letters"),
    "long dns name": (dns({"matchName": "a" * 256}), "at most 255"),
    "name and pattern": (dns({"matchName": "a", "matchPattern": "b"}), "exclude each other"),
    "bad fqdn": (egress(toFQDNs=[{"matchPattern": "a/b"}]), "toFQDNs[0].matchPattern"),
    "role and key": (kafka(role="produce", apiKey="fetch"), "role and apiKey exclude each other"),
    "unknown role": (kafka(role="prodcue"), '"produce"'),
    "unknown key": (kafka(apiKey="nothing"), "unknown 'nothing'"),
    "bad topic": (kafka(topic="a/b"), "rules.kafka[0].topic"),
    "long version": (kafka(apiVersion="9" * 5000), "write a number from 0 to 32767"),
    "bad version": (kafka(apiVersion="32768"), "write a number from 0 to 32767"),
    "l7 without l7proto": (
        ingress(toPorts=ports(tcp(), rules={"l7": [{"a": "b"}]})),
        "l7proto is missing",
    ),
    "l7 with empty key": (
        ingress(toPorts=ports(tcp(), rules={"l7proto": "x", "l7": [{"": "b"}]})),
        "a key is empty",
    ),
    "empty server name": (
        egress(toPorts=ports(tcp("443"), serverNames=[""])),
        "the server name is empty",
    ),
    "server names and http": (
        egress(toPorts=ports(tcp(), serverNames=["a"], rules={"http": [{}]})),
        "needs terminatingTLS",
    ),
    "listener on ingress": (ingress(toPorts=listener()), "a listener is for egress only"),
    "listener with rules": (
        egress(toPorts=[{**listener()[0], "rules": {"http": [{}]}}]),
        "a listener brings its own rules",
    ),
    "listener priority": (egress(toPorts=listener(priority=101)), "write 1 to 100, found 101"),
    "node selector in a namespace": (
        {**cnp(), "spec": {"nodeSelector": {}, "ingress": [{}]}},
        "nodes belong to no namespace",
    ),
    "unknown auth mode": (ingress(authentication={"mode": "requird"}), '"required"'),
    "long log": (cnp(ingress=[{}], log={"value": "x" * 33}), "at most 32 printable characters"),
    "log in lines": (cnp(ingress=[{}], log={"value": "a\nb"}), "at most 32 printable characters"),
    "other kind": ({"apiVersion": "v1", "kind": "Secret"}, "'Secret' is no policy"),
    "misspelt kind": ({"kind": "CiliumNetworkPolcy"}, '(did you mean "CiliumNetworkPolicy"?)'),
    "wrong version": ({**cnp(ingress=[{}]), "apiVersion": "cilium.io/v1"}, "is of cilium.io/v2"),
}


@pytest.mark.parametrize(("document", "words"), WRONG.values(), ids=WRONG)
def test_a_wrong_document_is_refused(document: dict[str, Any], words: str) -> None:
    """The message holds the path of the field, and what to write."""
    with pytest.raises(PolicyError) as caught:
        parse(document)
    assert not isinstance(caught.value, UnsupportedError)
    assert words in "\n".join(caught.value.problems)


def test_what_is_known_but_not_done_is_refused_as_such() -> None:
    """It raises UnsupportedError, so that a caller can tell the two apart."""
    with pytest.raises(UnsupportedError, match="not supported yet"):
        parse({"kind": "CiliumEnvoyConfig", "metadata": {"name": "x"}})


def test_all_problems_of_all_documents_come_at_once() -> None:
    """One round of mending is enough: each problem names its document and field."""
    text = yaml.safe_dump_all(
        [ingress(fromEntities=["galaxy"]), cnp(egres=[{}]), egress(toServices=[{}])]
    )
    with pytest.raises(PolicyError) as caught:
        parse(text)
    assert not isinstance(caught.value, UnsupportedError)
    starts = [problem.partition(":")[0] for problem in caught.value.problems]
    assert {"document 1 (CiliumNetworkPolicy default/p)",
            "document 2 (CiliumNetworkPolicy default/p)",
            "document 3 (CiliumNetworkPolicy default/p)"} <= set(starts)  # fmt: skip


def test_two_documents_of_one_name_are_refused() -> None:
    """Which of them would hold is not to be guessed."""
    with pytest.raises(PolicyError, match="CiliumNetworkPolicy default/p is there twice"):
        parse([ingress(), ingress()])


def test_prune_does_what_the_api_does() -> None:
    """Fields that current Cilium does not know are left out, so Kafka rules are plain ports."""
    document = ingress(fromEndpoints=[{}], toPorts=ports(tcp(), rules={"kafka": [{"topic": "t"}]}))
    assert parse(document).policies[0].rules[0].clauses[0].l7 is not None
    assert parse(document, prune=True).policies[0].rules[0].clauses[0].l7 is None
    assert parse(cnp(ingress=[{}], nonsense=1), prune=True).policies


def test_namespaces_are_returned_with_their_labels() -> None:
    """A Namespace in the same file is accepted: its labels are those of its pods."""
    text = "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: n\n  labels: {env: prod}\n"
    assert parse(text).namespaces == (NamespaceDocument("n", {"env": "prod"}),)


def test_an_overridden_namespace_is_a_warning() -> None:
    """A subject in another namespace is not what the author wrote, but it is what Cilium does."""
    selector = {"matchLabels": {"k8s:io.kubernetes.pod.namespace": "other"}}
    found = parse(cnp(endpointSelector=selector, ingress=[{}]))
    assert "overridden" in found.warnings[0]
    assert str(found.policies[0].rules[0].subject) == "k8s:io.kubernetes.pod.namespace=default"


@pytest.mark.parametrize(
    ("document", "words"),
    [
        (cnp(ingress=[{}], enableDefaultDeny={"egress": True}), "`egress: [{}]` denies all"),
        (egress(toFQDNs=[{"matchName": "a.b"}]), "no DNS proxy"),
        (dns({}), "no name is meant"),
        (ingress(toPorts=ports({"port": "90", "endPort": 80})), "port 90 alone is meant"),
        (ingress(icmps=[{"fields": [{"type": 256}]}]), "no message has the type 256"),
        (
            egress(toPorts=[{"ports": [{"port": "443", "protocol": "UDP"}], "serverNames": ["a"]}]),
            "TLS runs over TCP",
        ),
        (
            {**cnp(ingress=[{}]), "kind": "CiliumClusterwideNetworkPolicy",
             "metadata": {"name": "n"}, "spec": {"nodeSelector": {}, "ingress": [{}]}},
            "no node is governed",
        ),
        (
            {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
             "metadata": {"name": "n"}, "spec": {"policyTypes": ["Ingress"], "egress": [{}]}},
            "policyTypes leaves Egress out",
        ),
    ],
    ids=[
        "default deny without rules", "names", "no name", "range backwards", "icmp type too high",
        "server names over UDP", "a policy for nodes", "rules beside policyTypes",
    ],
)  # fmt: skip
def test_what_does_less_than_it_seems_is_a_warning(document: dict[str, Any], words: str) -> None:
    """It is as in Cilium, but the author should know."""
    (warning,) = parse(document).warnings
    assert words in warning


@pytest.mark.parametrize("path", [r"/a\++", "/[*+]x", r"/[\]*+]", r"/\(?=", "/[]*+]", r"\\+"])
def test_expressions_that_only_look_foreign(path: str) -> None:
    """What is escaped, or in a class, stands for itself."""
    assert parse(http(path=path)).policies


@pytest.mark.parametrize("path", ["/a++", r"/[a]*+", r"(a)\\(?=b)"])
def test_expressions_that_are_foreign(path: str) -> None:
    """Beside a class or an escape it is still no RE2."""
    with pytest.raises(PolicyError, match="no regular expression of RE2"):
        parse(http(path=path))


def test_files_folders_text_and_objects_are_read_alike(tmp_path: Path) -> None:
    """Each form of input gives the same documents."""
    document = ingress(fromEndpoints=[{}])
    text = yaml.safe_dump(document)
    (tmp_path / "a.yaml").write_text(text)
    (tmp_path / "notes.txt").write_text("not a policy")
    expected = parse(document).policies
    listed = {"apiVersion": "v1", "kind": "List", "items": [document]}
    for source in (text, json.dumps(document), tmp_path / "a.yaml", str(tmp_path / "a.yaml"),
                   tmp_path, [document], listed):  # fmt: skip
        assert expected == parse(source).policies


#: Each level holds the one before twice.
BOMB = (
    "a: {l0: &l0 [a, a], "
    + "".join(f"l{n}: &l{n} [*l{n - 1}, *l{n - 1}], " for n in range(1, 32))
    + "}\n"
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [1, 2\n", "no YAML"),
        ("- just\n- a list\n", "expected an object with kind and metadata"),
        ("a: &a [1]\nb: [" + "*a, " * 65 + "]\n", "aliases"),
        ("a: " + "[" * 5000 + "]" * 5000 + "\n", "document"),
        ("a: " + "[" * 100 + "]" * 100 + "\n", "more than 64 levels"),
        ("kind: &a [*a, *a]\n", "more than 64 levels"),
        (BOMB, "values with its aliases written out; at most 1048576"),
        ("kind: 0x" + "f" * 6000 + "\n", "a number of 24000 bits; at most 64"),
        ("kind: List\nitems: 5\n", "'List' is no policy"),
        ("kind: 2026-13-45\n", "no YAML that can be read"),
        ("? [a, b]\n: 1\n", "unhashable key"),
        ("{1: 2}", "is no policy"),
        ("kind: A\nspec:\n  ingressDeny: [1]\n  ingressDeny: []\n", "key 'ingressDeny' twice"),
        ("a: &a {k: 1, k: 2}\nb: {<<: *a}\n", "key 'k' twice"),
    ],
    ids=[
        "broken",
        "list",
        "aliases",
        "deep",
        "deep enough for YAML",
        "one that holds itself",
        "aliases of aliases",
        "a long number",
        "a list that is none",
        "date",
        "object as key",
        "number as key",
        "key twice",
        "key twice in what is merged",
    ],
)
def test_hostile_yaml_is_a_policy_error(text: str, words: str) -> None:
    """Never anything but a PolicyError, in bounded time."""
    with pytest.raises(PolicyError, match=words):
        parse(text)


def test_a_file_that_is_not_there() -> None:
    """A path that leads nowhere says so, and how text is told from a path."""
    with pytest.raises(NotFoundError, match="YAML text has a line break"):
        parse("no-such-file.yaml")


def test_nothing_at_all_is_no_document() -> None:
    """An empty stream holds no policies, and is not wrong."""
    assert parse("---\n---\n").policies == ()


def test_aliases_of_large_parts_are_fine() -> None:
    """What is written out may be as long as it likes, and a part of it be there twice."""
    prefixes = ", ".join(f"10.{n >> 8 & 255}.{n & 255}.0/24" for n in range(3000))
    text = f"""
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {{name: p}}
spec:
  endpointSelector: {{}}
  ingress: [{{fromCIDR: &all [{prefixes}]}}]
  egress: [{{toCIDR: *all}}]
"""
    (policy,) = parse(text).policies
    (rule,) = policy.rules
    assert [len(clause.peers or ()) for clause in rule.clauses] == [3000, 3000]


def test_a_list_object_without_items_holds_nothing() -> None:
    """As the API writes one that is empty."""
    assert parse({"apiVersion": "v1", "kind": "List", "items": None}) == parse("---\n")


def test_a_merged_key_may_be_overridden() -> None:
    """That is what `<<` is for, also where the merged mapping merges itself."""
    text = """
apiVersion: v1
kind: Namespace
metadata:
  name: web
  labels: &all {<<: &some {a: "1", b: "1"}, b: "2"}
---
apiVersion: v1
kind: Namespace
metadata:
  name: api
  annotations: {x: &inner {c: "1"}, y: &outer {<<: *inner, c: "2"}}
  labels: {<<: *outer, c: "3"}
"""
    found = parse(text).namespaces
    assert [dict(item.labels) for item in found] == [{"a": "1", "b": "2"}, {"c": "3"}]


@pytest.mark.parametrize("text", ["", "  \n", "# a comment\n"])
def test_text_without_documents_is_not_the_current_folder(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An empty text used to be the path of the current folder, whose policies then applied."""
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(cnp(ingress=[{}])))
    monkeypatch.chdir(tmp_path)
    assert parse(text).policies == ()


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    """What is no text is told with the name of the file; a folder of that name is passed over."""
    (tmp_path / "folder.yaml").mkdir()
    (tmp_path / "bad.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(PolicyError, match=r"bad\.yaml"):
        parse(tmp_path)


def network_policy(**port: Any) -> dict[str, Any]:
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "p"},
        "spec": {"podSelector": {}, "ingress": [{"ports": [port]}]},
    }


@pytest.mark.parametrize(
    ("port", "words"),
    [
        ({"port": 0}, "ports begin at 1"),
        ({"port": "0"}, "ports begin at 1"),
        ({"endPort": 90}, "a range begins with a port's number"),
        ({"port": "http", "endPort": 90}, "a range begins with a port's number"),
        ({"port": 90, "endPort": 80}, "ends at 80, before 90"),
        ({"port": True}, "expected a number or a name"),
        ({"port": 65536}, "ports end at 65535"),
    ],
)
def test_ports_that_kubernetes_refuses(port: dict[str, Any], words: str) -> None:
    """None of them may come to mean every port."""
    with pytest.raises(PolicyError, match=words):
        parse(network_policy(**port))


def test_a_match_of_any_protocol_has_no_port() -> None:
    """The table knows no port without its protocol, and would widen it to all traffic."""
    with pytest.raises(UnitError, match="of one protocol"):
        PortMatch(Protocol.ANY, 80, 80)
    with pytest.raises(UnitError, match="in order"):
        PortMatch(Protocol.TCP, 90, 80)
