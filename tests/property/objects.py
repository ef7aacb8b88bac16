"""Random objects that are right, of the kinds beside Cilium's and the administrators' policies."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from tests.property import strategies
from tests.property.strategies import APPS, NAMESPACES, PORT_NAMES, PORTS, PREFIXES, PROTOCOLS

_ADDRESSES = ("198.51.100.7", "2001:db8::7", "10.1.2.3")


def _plain_selectors() -> st.SearchStrategy[dict[str, Any]]:
    """Selectors of Kubernetes, whose keys have no source."""
    return st.sampled_from([{}, *({"matchLabels": {"app": app}} for app in APPS)])


@st.composite
def network_policies(draw: st.DrawFn, name: str = "n") -> dict[str, Any]:
    """A NetworkPolicy of Kubernetes."""
    spaces = st.sampled_from([{}, *({"matchLabels": {"name": space}} for space in NAMESPACES)])
    block = st.builds(lambda cidr: {"ipBlock": {"cidr": cidr}}, st.sampled_from(PREFIXES))
    holed = st.just({"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}})
    pods = st.builds(lambda one: {"podSelector": one}, _plain_selectors())
    others = st.builds(lambda space: {"namespaceSelector": space}, spaces)
    both = st.builds(lambda one, two: one | two, pods, others)
    ports = st.one_of(
        st.builds(lambda port: {"port": port}, st.sampled_from([*PORTS, *PORT_NAMES])),
        st.builds(lambda name: {"protocol": name}, st.sampled_from(PROTOCOLS)),
        st.just({"port": 80, "endPort": 65535, "protocol": "TCP"}),
    )
    spec: dict[str, Any] = {"podSelector": draw(_plain_selectors())}
    for section, word in (("ingress", "from"), ("egress", "to")):
        rule = st.fixed_dictionaries(
            {},
            optional={
                word: st.lists(block | holed | pods | others | both, max_size=2),
                "ports": st.lists(ports, max_size=2),
            },
        )
        if draw(st.booleans()):
            spec[section] = draw(st.lists(rule, max_size=2))
    types = st.sampled_from(["Ingress", "Egress"])
    spec["policyTypes"] = draw(st.lists(types, unique=True, max_size=2))
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": name, "namespace": draw(st.sampled_from(NAMESPACES))},
        "spec": spec,
    }


@st.composite
def node_policies(draw: st.DrawFn, name: str = "h") -> dict[str, Any]:
    """A CiliumClusterwideNetworkPolicy about nodes."""
    prefix = draw(st.sampled_from(PREFIXES))
    return {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumClusterwideNetworkPolicy",
        "metadata": {"name": name},
        "spec": {
            "nodeSelector": draw(_plain_selectors()),
            "ingress": [{"fromNodes": [draw(_plain_selectors())]}, {"fromCIDR": [prefix]}],
            "egress": [{"toEntities": ["remote-node"], "toPorts": [{"ports": [draw(numbers)]}]}],
        },
    }


numbers = st.builds(
    lambda port, protocol: {"port": str(port), "protocol": protocol},
    st.sampled_from(PORTS),
    st.sampled_from(PROTOCOLS),
)


@st.composite
def services(draw: st.DrawFn, name: str = "s") -> list[dict[str, Any]]:
    """A Service, who is behind it, and a policy that names it."""
    metadata = {"name": name, "namespace": "default"}
    addresses = draw(st.lists(st.sampled_from(_ADDRESSES), max_size=2))
    selector = draw(st.sampled_from([None, {}, {"app": "a"}]))
    behind = {
        "EndpointSlice": {
            "apiVersion": "discovery.k8s.io/v1",
            "metadata": {**metadata, "labels": {"kubernetes.io/service-name": name}},
            "endpoints": [{"addresses": addresses, "conditions": {"ready": True}}],
        },
        "Endpoints": {
            "apiVersion": "v1",
            "metadata": metadata,
            "subsets": [{"addresses": [{"ip": address} for address in addresses]}],
        },
    }
    kind = draw(st.sampled_from(sorted(behind)))
    named = draw(
        st.sampled_from(
            [
                {"k8sService": {"serviceName": name}},
                {"k8sServiceSelector": {"selector": {"matchLabels": {"kind": "s"}}}},
            ]
        )
    )
    labels = {"kind": draw(st.sampled_from(["s", "t"]))}
    return [
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {**metadata, "labels": labels},
            "spec": {"selector": selector},
        },
        {"kind": kind, **behind[kind]},
        {
            "apiVersion": "cilium.io/v2",
            "kind": "CiliumNetworkPolicy",
            "metadata": {"name": f"to-{name}"},
            "spec": {"endpointSelector": {}, "egress": [{"toServices": [named]}]},
        },
    ]


@st.composite
def all_kinds(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Documents of all kinds that policy knows."""
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "n", "labels": {}}}
    kinds: list[st.SearchStrategy[list[dict[str, Any]]]] = [
        strategies.document_sets(2),
        st.lists(network_policies(), min_size=1, max_size=1),
        st.lists(node_policies(), min_size=1, max_size=1),
        st.lists(strategies.cluster_policies(), min_size=1, max_size=1),
        st.lists(strategies.cidr_groups("g0"), min_size=1, max_size=1),
        services(),
        st.just([namespace]),
    ]
    found = [draw(kinds[n]) for n in sorted(draw(st.sets(st.integers(0, 6), min_size=1)))]
    unique = {(d["kind"], d["metadata"]["name"]): d for documents in found for d in documents}
    return list(unique.values())
