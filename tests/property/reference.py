"""A second, naive policy engine, written to be read: it shares no code with the library.

It takes documents as YAML gives them and labels as texts, and walks everything for each packet.
It knows the part of the language that `strategies` generates.
"""

from __future__ import annotations

import ipaddress
from typing import Any

NAMESPACE = "io.kubernetes.pod.namespace"
NAMESPACE_LABELS = "io.cilium.k8s.namespace.labels."
CLUSTER = "io.cilium.k8s.policy.cluster"
WORLD = ["world", "world-ipv4", "world-ipv6"]
CLUSTER_RESERVED = ["host", "remote-node", "init", "ingress", "health", "unmanaged",
                    "kube-apiserver"]  # fmt: skip

Labels = dict[str, tuple[str, str]]
#: What a pod calls its ports: name to number and protocol.
PortNames = dict[str, tuple[int, str]]


def read_labels(texts: list[str]) -> Labels:
    """Key to (source, value)."""
    found = {}
    for text in texts:
        source, _, rest = text.partition(":")
        key, _, value = rest.partition("=")
        found[key] = (source, value)
    return found


def verdict(
    documents: list[dict[str, Any]],
    subject: Labels,
    peer: Labels,
    direction: str,
    protocol: str,
    port: int,
    names: PortNames,
) -> str:
    """allow, deny or redirect; `direction` is ingress or egress of the subject.

    `names` are those of whoever listens: of the subject for ingress, of the peer for egress.
    """
    groups = [d for d in documents if d["kind"] == "CiliumCIDRGroup"]
    rules = [d for d in documents if d not in groups and selects_subject(d, subject)]
    sections = [(direction, False), (direction + "Deny", True)]
    enforcing = [d for d in rules if any(d["spec"].get(name) for name, _ in sections)]
    if not enforcing:
        return "allow"
    statements: list[tuple[str, int, str]] = []  # tier, priority, outcome
    for document in enforcing:
        if document["kind"] == "ClusterNetworkPolicy":
            statements += administrators(document, peer, direction, protocol, port)
            continue
        for name, deny in sections:
            for entry in document["spec"].get(name, []):
                scene = entry, document, groups, peer, protocol, port, names
                for outcome in outcomes_of(*scene, deny):
                    statements.append(("Normal", 0, outcome))
    for tier in ("Admin", "Normal", "Baseline"):
        outcome = last_word([(p, o) for t, p, o in statements if t == tier])
        if outcome != "pass":
            return outcome
    if direction == "ingress" and has(peer, "reserved", "host", ""):
        return "allow"
    return "deny" if any(denies_by_default(d, direction) for d in enforcing) else "allow"


def denies_by_default(document: dict[str, Any], direction: str) -> bool:
    if document["kind"] == "ClusterNetworkPolicy":
        return False
    chosen: bool = document["spec"].get("enableDefaultDeny", {}).get(direction, True)
    return chosen


def last_word(statements: list[tuple[int, str]]) -> str:
    """What a tier says in the end; "pass" if it leaves it to the next one."""
    for priority in sorted({priority for priority, _ in statements}):
        outcomes = {outcome for at, outcome in statements if at == priority}
        for outcome in ("deny", "redirect", "allow", "pass"):
            if outcome in outcomes:
                return outcome
    return "pass"


def administrators(
    document: dict[str, Any], peer: Labels, direction: str, protocol: str, port: int
) -> list[tuple[str, int, str]]:
    """What the rules of a ClusterNetworkPolicy say about a packet."""
    spec = document["spec"]
    found = []
    for index, rule in enumerate(spec.get(direction, [])):
        peers = rule.get("from", []) + rule.get("to", [])
        if not any(is_administrators_peer(item, peer) for item in peers):
            continue
        if "protocols" in rule and not any(
            carries(item, protocol, port) for item in rule["protocols"]
        ):
            continue
        outcome = {"Accept": "allow", "Deny": "deny", "Pass": "pass"}[rule["action"]]
        found.append((spec["tier"], spec["priority"] * 100 + index, outcome))
    return found


def is_administrators_peer(item: dict[str, Any], peer: Labels) -> bool:
    if "networks" in item:
        return any(inside(prefix, peer) for prefix in item["networks"])
    local = has(peer, "k8s", CLUSTER, "default") or "pods" not in item
    return local and is_administrators_pod(item, peer)


def is_administrators_pod(item: dict[str, Any], labels: Labels) -> bool:
    spaces = item.get("namespaces", item.get("pods", {}).get("namespaceSelector", {}))
    if NAMESPACE not in labels:
        return False
    names = spaces.get("matchLabels", {})
    if any(not has(labels, "k8s", NAMESPACE_LABELS + key, names[key]) for key in names):
        return False
    return matches(item.get("pods", {}).get("podSelector", {}), labels)


def carries(item: dict[str, Any], protocol: str, port: int) -> bool:
    if protocol.lower() not in item:
        return False
    match = item[protocol.lower()].get("destinationPort")
    if match is None:
        return True
    ends = match.get("range", {"start": match.get("number"), "end": match.get("number")})
    return bool(ends["start"] <= port <= ends["end"])


def selects_subject(document: dict[str, Any], subject: Labels) -> bool:
    if document["kind"] == "ClusterNetworkPolicy":
        return is_administrators_pod(document["spec"]["subject"], subject)
    namespace = document["metadata"].get("namespace")
    if namespace is not None and not has(subject, "k8s", NAMESPACE, namespace):
        return False
    return matches(document["spec"]["endpointSelector"], subject)


def outcomes_of(
    entry: dict[str, Any],
    document: dict[str, Any],
    groups: list[dict[str, Any]],
    peer: Labels,
    protocol: str,
    port: int,
    names: PortNames,
    deny: bool,
) -> set[str]:
    fields = [f for f in entry if f.startswith(("from", "to")) and f != "toPorts"]
    names_ports = bool(entry.get("toPorts") or entry.get("icmps"))
    if "toFQDNs" in fields and not entry["toFQDNs"]:
        fields = []  # an empty list of names says as little as none
    if fields:
        if not any(selects_peer(f, v, document, groups, peer) for f in fields for v in entry[f]):
            return set()
    elif not names_ports:
        return set()
    if not names_ports:
        return {"deny" if deny else "allow"}
    found = set()
    for item in entry.get("toPorts", []):
        if any(covers(p, protocol, port, names) for p in item["ports"]):
            found.add("deny" if deny else "redirect" if item.get("rules") else "allow")
    for item in entry.get("icmps", []):
        for icmp in item["fields"]:
            family = {"IPv4": "ICMP", "IPv6": "ICMPv6"}[icmp["family"]]
            if family == protocol and icmp["type"] in (0, port):
                found.add("deny" if deny else "allow")
    return found


def selects_peer(
    field: str,
    value: Any,
    document: dict[str, Any],
    groups: list[dict[str, Any]],
    peer: Labels,
) -> bool:
    kind = field.removeprefix("from").removeprefix("to")
    if kind == "Entities":
        return selects_entity(value, peer)
    if kind == "CIDR":
        return inside(value, peer)
    if kind == "FQDNs":
        return has(peer, "fqdn", value.get("matchName", value.get("matchPattern")), "")
    if kind == "CIDRSet":
        prefixes = [value["cidr"]] if "cidr" in value else members(value, groups)
        return any(inside(prefix, peer) for prefix in prefixes) and not any(
            inside(hole, peer) for hole in value.get("except", [])
        )
    keys = [*value.get("matchLabels", {}), *(e["key"] for e in value.get("matchExpressions", []))]
    if any(key.startswith("reserved:") for key in keys):
        return matches(value, peer)
    if not any(key.removeprefix("k8s:") == NAMESPACE for key in keys):
        namespace = document["metadata"].get("namespace")
        if namespace is not None and not has(peer, "k8s", NAMESPACE, namespace):
            return False
        if namespace is None and NAMESPACE not in peer:
            return False
    if CLUSTER not in keys and not has(peer, "k8s", CLUSTER, "default"):
        return False
    return matches(value, peer)


def members(value: dict[str, Any], groups: list[dict[str, Any]]) -> list[str]:
    """The prefixes of the groups that a CIDR set refers to."""
    wanted = value.get("cidrGroupSelector", {}).get("matchLabels", {})
    return [
        prefix
        for group in groups
        if value.get("cidrGroupRef") in (None, group["metadata"]["name"])
        and all(group["metadata"]["labels"].get(key) == wanted[key] for key in wanted)
        for prefix in group["spec"]["externalCIDRs"]
    ]


def selects_entity(entity: str, peer: Labels) -> bool:
    if entity == "all":
        return True
    if entity == "world":
        return any(has(peer, "reserved", name, "") for name in WORLD)
    if entity == "cluster":
        return has(peer, "k8s", CLUSTER, "default") or any(
            has(peer, "reserved", name, "") for name in CLUSTER_RESERVED
        )
    return has(peer, "reserved", entity, "")


def inside(prefix: str, peer: Labels) -> bool:
    """Whether the peer is a prefix inside `prefix`; all of a family is its world."""
    outer = ipaddress.ip_network(prefix)
    if outer.prefixlen == 0:
        return has(peer, "reserved", f"world-ipv{outer.version}", "")
    for key, (source, _) in peer.items():
        if source == "cidr":
            inner = ipaddress.ip_network(key.replace("-", ":"))
            return inner.version == outer.version and inner.subnet_of(outer)
    return False


def matches(selector: dict[str, Any], labels: Labels) -> bool:
    for text, value in selector.get("matchLabels", {}).items():
        source, key = split(text)
        if not has(labels, source, key, value):
            return False
    for expression in selector.get("matchExpressions", []):
        source, key = split(expression["key"])
        there = key in labels and source in ("any", labels[key][0])
        chosen = there and labels[key][1] in expression.get("values", [])
        fits = {
            "In": chosen,
            "NotIn": not chosen,
            "Exists": there,
            "DoesNotExist": not there,
        }
        if not fits[expression["operator"]]:
            return False
    return True


def split(text: str) -> tuple[str, str]:
    source, colon, key = text.partition(":")
    return (source, key) if colon else ("any", text)


def has(labels: Labels, source: str, key: str, value: str) -> bool:
    return key in labels and source in ("any", labels[key][0]) and labels[key][1] == value


def covers(item: dict[str, Any], protocol: str, port: int, names: PortNames) -> bool:
    wanted = item.get("protocol", "ANY")
    if protocol not in (["TCP", "UDP", "SCTP"] if wanted == "ANY" else [wanted]):
        return False
    if not item["port"].isdigit():
        return names.get(item["port"]) == (port, protocol)
    first = int(item["port"])
    return first == 0 or first <= port <= (item.get("endPort") or first)
