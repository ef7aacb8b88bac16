"""Random policies, identities and packets, close enough to each other to collide often.

The alphabets are small on purpose: a deny meets an allow, ranges overlap, a prefix holds another,
and a selector meets an identity in a good part of all examples.
"""

from __future__ import annotations

import ipaddress
from typing import Any

from attrs import frozen
from hypothesis import strategies as st

from pyciliumlib.identity.labels import Labels
from pyciliumlib.policy import Party
from pyciliumlib.types import Protocol

NAMESPACES = ("default", "other")
APPS = ("a", "b", "c")
TIERS = ("fe", "be")
ENTITIES = ("all", "world", "cluster", "host", "remote-node", "kube-apiserver", "health",
            "world-ipv4", "world-ipv6")  # fmt: skip
PREFIXES = (
    "0.0.0.0/0", "10.0.0.0/8", "10.1.0.0/16", "10.1.2.0/24", "10.1.2.3/32", "192.168.0.0/16",
    "::/0", "fd00::/8", "fd00:1::/32", "fd00:1::1/128",
)  # fmt: skip
PORTS = (1, 22, 53, 79, 80, 81, 443, 1023, 1024, 8080, 65535)
PROTOCOLS = ("TCP", "UDP", "SCTP")
ICMP_TYPES = (0, 3, 8, 128, 129)
#: Names of ports; every pod gives some of them to ports of its own.
PORT_NAMES = ("web", "dns")
SUBJECT_PORTS = {"web": (80, Protocol.TCP), "dns": (53, Protocol.UDP)}
GROUPS = {"g0": "a", "g1": "b"}
NAMES = ("*.example.com", "www.example.com")
RESERVED = {1: "host", 2: "world", 3: "unmanaged", 4: "health", 5: "init", 6: "remote-node",
            8: "ingress", 9: "world-ipv4", 10: "world-ipv6"}  # fmt: skip


@frozen
class Target:
    """What a packet is for: a direction of the subject, a protocol, a port or ICMP type."""

    direction: str
    protocol: str
    port: int


@frozen
class World:
    """Documents, and the labels of the endpoint that is asked about."""

    documents: list[dict[str, Any]]
    subject: list[str]

    @property
    def party(self) -> Party:
        """The endpoint, with the names of its ports."""
        return Party(self.subject, SUBJECT_PORTS)


def pod(namespace: str, app: str, tier: str | None, cluster: str = "default") -> list[str]:
    """The labels of a pod."""
    labels = [
        f"k8s:app={app}",
        f"k8s:io.kubernetes.pod.namespace={namespace}",
        f"k8s:io.cilium.k8s.namespace.labels.name={namespace}",
        f"k8s:io.cilium.k8s.policy.cluster={cluster}",
    ]
    return labels + ([f"k8s:tier={tier}"] if tier else [])


def prefix_labels(prefix: str) -> list[str]:
    """The labels of a prefix where both families are enabled."""
    network = ipaddress.ip_network(prefix)
    world = f"reserved:world-ipv{network.version}"
    if not network.prefixlen:
        return [world]
    address = str(network.network_address).replace(":", "-")
    address += "0" if address.endswith("-") else ""
    return [f"cidr:{address}/{network.prefixlen}", world]


PODS = {
    1000 + index: pod(namespace, app, tier, cluster)
    for index, (namespace, app, tier, cluster) in enumerate(
        (n, a, t, c)
        for n in NAMESPACES
        for a in APPS
        for t in (*TIERS, None)
        for c in ("default", "elsewhere")
    )
}
PREFIX_IDENTITIES = {
    0x0100_0001 + index: prefix_labels(prefix)
    for index, prefix in enumerate(p for p in PREFIXES if not p.endswith("/0"))
}
#: Addresses that a name was found to have.
NAMED = {
    0x0100_0100: ["fqdn:*.example.com", "fqdn:www.example.com", "reserved:world-ipv4"],
    0x0100_0101: ["fqdn:*.example.com", "reserved:world-ipv6"],
}
IDENTITIES: dict[int, list[str]] = {
    **{number: [f"reserved:{name}"] for number, name in RESERVED.items()},
    7: ["reserved:kube-apiserver", "reserved:remote-node"],
    **PODS,
    **PREFIX_IDENTITIES,
    **NAMED,
}
#: The same, read once: most examples need them all.
PARSED = {number: Labels.parse(labels) for number, labels in IDENTITIES.items()}
#: The port that each app calls "web"; c has none.
PEER_PORTS = {
    number: {"web": ({"a": 81, "b": 8080}[app], Protocol.TCP)}
    for number, labels in PODS.items()
    for app in ("a", "b")
    if f"k8s:app={app}" in labels
}


def expressions() -> st.SearchStrategy[dict[str, Any]]:
    """One of `matchExpressions`."""
    keys = st.sampled_from(["app", "tier", "k8s:app", "k8s:tier", "any:absent"])
    values = st.lists(st.sampled_from([*APPS, *TIERS]), min_size=1, max_size=2, unique=True)
    with_values = st.fixed_dictionaries(
        {"key": keys, "operator": st.sampled_from(["In", "NotIn"]), "values": values}
    )
    without = st.fixed_dictionaries(
        {"key": keys, "operator": st.sampled_from(["Exists", "DoesNotExist"])}
    )
    return with_values | without


def selectors() -> st.SearchStrategy[dict[str, Any]]:
    """A label selector."""
    match = st.dictionaries(
        st.sampled_from(["app", "k8s:tier", "any:app"]),
        st.sampled_from([*APPS, *TIERS]),
        max_size=1,
    )
    namespace = st.sampled_from([None, *NAMESPACES])

    def build(labels: dict[str, str], space: str | None, items: list[Any]) -> dict[str, Any]:
        if space:
            labels = {**labels, "k8s:io.kubernetes.pod.namespace": space}
        found: dict[str, Any] = {"matchLabels": labels} if labels else {}
        return {**found, "matchExpressions": items} if items else found

    return st.builds(build, match, namespace, st.lists(expressions(), max_size=1))


def subject_selectors() -> st.SearchStrategy[dict[str, Any]]:
    """An endpointSelector: often everything, so that several policies govern one endpoint."""
    some = st.sampled_from([{}, {"matchLabels": {"app": "a"}}, {"matchLabels": {"tier": "fe"}}])
    return some | st.builds(lambda item: {"matchExpressions": [item]}, expressions())


@st.composite
def cidr_sets(draw: st.DrawFn) -> dict[str, Any]:
    """A prefix, or the prefixes of a group, maybe less some prefixes."""
    if draw(st.integers(0, 3)) == 0:
        group: dict[str, Any] = draw(
            st.sampled_from(
                [
                    {"cidrGroupRef": "g0"},
                    {"cidrGroupSelector": {"matchLabels": {"kind": "b"}}},
                    {"cidrGroupSelector": {}},
                ]
            )
        )
        holes = draw(st.lists(st.sampled_from(PREFIXES), max_size=2, unique=True))
        return {**group, "except": holes} if holes else group
    cidr = draw(st.sampled_from(PREFIXES))
    outer = ipaddress.ip_network(cidr)
    inner = [
        prefix
        for prefix in PREFIXES
        if (network := ipaddress.ip_network(prefix)).version == outer.version
        and network.subnet_of(outer)
        and network.prefixlen
    ]
    if not inner:
        return {"cidr": cidr}
    excepts = draw(st.lists(st.sampled_from(inner), max_size=2, unique=True))
    return {"cidr": cidr, "except": excepts} if excepts else {"cidr": cidr}


@st.composite
def ports(draw: st.DrawFn) -> dict[str, Any]:
    """A port, a range, all ports of a protocol, or a port by its name."""
    protocol = draw(st.sampled_from([*PROTOCOLS, "ANY"]))
    if draw(st.integers(0, 5)) == 0:
        return {"port": draw(st.sampled_from(PORT_NAMES)), "protocol": protocol}
    first = draw(st.sampled_from([0, *PORTS]))
    last = draw(st.sampled_from(PORTS))
    found: dict[str, Any] = {"port": str(first), "protocol": protocol}
    return {**found, "endPort": last} if first and last >= first and draw(st.booleans()) else found


@st.composite
def port_rules(draw: st.DrawFn, deny: bool) -> dict[str, Any]:
    """One of `toPorts`, for some with an HTTP rule."""
    if not deny and draw(st.integers(0, 3)) == 0:
        number = draw(st.sampled_from([*map(str, PORTS), *PORT_NAMES]))
        return {
            "ports": [{"port": number, "protocol": "TCP"}],
            "rules": {"http": [{"method": "GET"}]},
        }
    return {"ports": draw(st.lists(ports(), min_size=1, max_size=2))}


def icmps() -> st.SearchStrategy[dict[str, Any]]:
    """One of `icmps`."""
    field = st.fixed_dictionaries(
        {"family": st.sampled_from(["IPv4", "IPv6"]), "type": st.sampled_from(ICMP_TYPES)}
    )
    return st.fixed_dictionaries({"fields": st.lists(field, min_size=1, max_size=2)})


@st.composite
def entries(draw: st.DrawFn, word: str, deny: bool) -> dict[str, Any]:
    """One entry of a section: a kind of peer or none, and ports, ICMP or neither."""
    names = st.lists(
        st.sampled_from([{"matchPattern": NAMES[0]}, {"matchName": NAMES[1]}]), max_size=2
    )
    peers = draw(
        st.one_of(
            st.none(),
            *([st.tuples(st.just("FQDNs"), names)] if word == "to" and not deny else []),
            st.tuples(st.just("Endpoints"), st.lists(selectors(), max_size=2)),
            st.tuples(st.just("Entities"), st.lists(st.sampled_from(ENTITIES), max_size=2)),
            st.tuples(st.just("CIDR"), st.lists(st.sampled_from(PREFIXES), max_size=2)),
            st.tuples(st.just("CIDRSet"), st.lists(cidr_sets(), max_size=2)),
        )
    )
    entry: dict[str, Any] = {word + peers[0]: peers[1]} if peers else {}
    kind = draw(st.integers(0, 5))
    if kind <= 2:
        entry["toPorts"] = draw(st.lists(port_rules(deny), min_size=1, max_size=2))
    elif kind == 3:
        entry["icmps"] = draw(st.lists(icmps(), min_size=1, max_size=1))
    return entry


@st.composite
def documents(draw: st.DrawFn, name: str = "p") -> dict[str, Any]:
    """A CiliumNetworkPolicy or a CiliumClusterwideNetworkPolicy that is right."""
    namespace = draw(st.sampled_from(["default", "default", "other", None]))
    spec: dict[str, Any] = {"endpointSelector": draw(subject_selectors())}
    sections = [("ingress", "from", False), ("ingressDeny", "from", True),
                ("egress", "to", False), ("egressDeny", "to", True)]  # fmt: skip
    for section, word, deny in sections:
        listed = draw(st.lists(entries(word, deny), max_size=2))
        if listed:
            spec[section] = listed
    if not any(section in spec for section, _, _ in sections):
        spec["ingress"] = [{}]
    chosen = draw(st.dictionaries(st.sampled_from(["ingress", "egress"]), st.booleans()))
    if chosen:
        spec["enableDefaultDeny"] = chosen
    kind = "CiliumNetworkPolicy" if namespace else "CiliumClusterwideNetworkPolicy"
    metadata = {"name": name, "namespace": namespace} if namespace else {"name": name}
    return {"apiVersion": "cilium.io/v2", "kind": kind, "metadata": metadata, "spec": spec}


def administrators_pods() -> st.SearchStrategy[dict[str, Any]]:
    """Pods, as a ClusterNetworkPolicy names them."""
    spaces = st.sampled_from([{}, {}, *({"matchLabels": {"name": name}} for name in NAMESPACES)])
    pods = st.sampled_from([{}, *({"matchLabels": {"app": app}} for app in APPS)])
    both = st.fixed_dictionaries({"namespaceSelector": spaces, "podSelector": pods})
    return st.builds(lambda item: {"namespaces": item}, spaces) | st.builds(
        lambda item: {"pods": item}, both
    )


def administrators_ports() -> st.SearchStrategy[dict[str, Any]]:
    """One of `protocols`: a port, a range, or all ports."""
    one = st.builds(lambda port: {"destinationPort": {"number": port}}, st.sampled_from(PORTS))
    several = st.builds(
        lambda ends: {"destinationPort": {"range": {"start": min(ends), "end": max(ends)}}},
        st.tuples(st.sampled_from(PORTS), st.sampled_from(PORTS)),
    )
    names = st.sampled_from(["tcp", "udp", "sctp"])
    return st.builds(lambda name, match: {name: match}, names, one | several | st.just({}))


@st.composite
def cluster_policies(draw: st.DrawFn, name: str = "k") -> dict[str, Any]:
    """A ClusterNetworkPolicy that is right."""
    spec: dict[str, Any] = {
        "tier": draw(st.sampled_from(["Admin", "Admin", "Baseline"])),
        "priority": draw(st.sampled_from([0, 1, 1000])),
        "subject": draw(st.just({"namespaces": {}}) | administrators_pods()),
    }
    for section, word in (("ingress", "from"), ("egress", "to")):
        rules = []
        for _ in range(draw(st.integers(0, 3))):
            kinds = administrators_pods()
            if word == "to":
                prefixes = st.lists(st.sampled_from(PREFIXES), min_size=1, max_size=2)
                kinds |= st.builds(lambda found: {"networks": found}, prefixes)
            rule = {
                "action": draw(st.sampled_from(["Accept", "Deny", "Pass", "Pass"])),
                word: draw(st.lists(kinds, min_size=1, max_size=2)),
            }
            if draw(st.booleans()):
                rule["protocols"] = draw(st.lists(administrators_ports(), min_size=1, max_size=2))
            rules.append(rule)
        if rules:
            spec[section] = rules
    return {
        "apiVersion": "policy.networking.k8s.io/v1alpha2",
        "kind": "ClusterNetworkPolicy",
        "metadata": {"name": name},
        "spec": spec,
    }


@st.composite
def cidr_groups(draw: st.DrawFn, name: str) -> dict[str, Any]:
    """A CiliumCIDRGroup to which policies may refer."""
    return {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumCIDRGroup",
        "metadata": {"name": name, "labels": {"kind": GROUPS[name]}},
        "spec": {"externalCIDRs": draw(st.lists(st.sampled_from(PREFIXES), max_size=3))},
    }


@st.composite
def document_sets(draw: st.DrawFn, max_size: int = 3) -> list[dict[str, Any]]:
    """Some documents of different names, with the groups that they refer to.

    In half of the sets administrators have a say.
    """
    found = [draw(documents(f"p{index}")) for index in range(draw(st.integers(1, max_size)))]
    if draw(st.booleans()):
        found += [draw(cluster_policies(f"k{index}")) for index in range(draw(st.integers(1, 2)))]
    return found + [
        draw(cidr_groups(name)) for name in draw(st.sets(st.sampled_from(["g0", "g1"])))
    ]


def worlds() -> st.SearchStrategy[World]:
    """Documents, and a subject in the namespace `default`."""
    subjects = st.sampled_from([pod("default", "a", "fe"), pod("default", "b", None)])
    return st.builds(World, document_sets(), subjects)


@st.composite
def targets(draw: st.DrawFn) -> Target:
    """One target."""
    protocol = draw(st.sampled_from([*PROTOCOLS, "TCP", "ICMP", "ICMPv6"]))
    port = draw(st.sampled_from(ICMP_TYPES if protocol.startswith("ICMP") else PORTS))
    return Target(draw(st.sampled_from(["ingress", "egress"])), protocol, port)


def target_sets() -> st.SearchStrategy[list[Target]]:
    """Some targets, to be tried with every identity."""
    return st.lists(targets(), min_size=6, max_size=8, unique=True)
