"""Service and EndpointSlice documents: what they mean, and how their faults are told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pyciliumlib.errors import InvalidError, NotFoundError, ServiceError
from pyciliumlib.loadbalancer import (
    Algorithm,
    BackendState,
    ForwardingMode,
    FrontendType,
    LoadBalancerConfig,
    LocalNode,
    MeshAffinity,
    Service,
    SourceRangesPolicy,
    TrafficPolicy,
    read_services,
)
from pyciliumlib.loadbalancer.annotations import matches_selector

#: A service of type LoadBalancer as a user writes it: no address, a mode that Cilium spells
#: otherwise, and another port on the pods.
DSR_SERVICE = """
apiVersion: v1
kind: Service
metadata:
  name: web-service
  annotations:
    service.cilium.io/mode: "dsr"
spec:
  type: LoadBalancer
  selector:
    app: web
  ports:
  - port: 80
    targetPort: 8080
"""
SLICE = """
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: web-service-abc
  labels: {kubernetes.io/service-name: web-service}
addressType: IPv4
ports: [{port: 8080, protocol: TCP}]
endpoints:
- addresses: [10.0.0.1]
  conditions: {ready: true}
  nodeName: n1
- addresses: [10.0.0.2]
"""
CHOOSE = LoadBalancerConfig(mode_annotation=True, algorithm_annotation=True)


def service(spec: dict[str, Any], **metadata: Any) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "web", **metadata},
        "spec": {"ports": [{"port": 80}], "clusterIP": "10.96.0.1", **spec},
    }


def endpoint_slice(endpoints: list[dict[str, Any]], **fields: Any) -> dict[str, Any]:
    annotations = fields.pop("annotations", {})
    name = fields.pop("name", "web-1")
    labels = {"kubernetes.io/service-name": "web"}
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": name, "labels": labels, "annotations": annotations},
        "addressType": "IPv4",
        "ports": [{"port": 8080}],
        "endpoints": endpoints,
        **fields,
    }


def only(*documents: Any, **options: Any) -> Service:
    (found,) = read_services(list(documents), **options).services
    return found


def test_a_dsr_service() -> None:
    """Its annotation is taken with a warning; the address is the user's to give."""
    read = read_services(
        f"{DSR_SERVICE}---{SLICE}",
        config=CHOOSE,
        addresses={"default/web-service": ["203.0.113.10"]},
    )
    (web,) = read.services
    assert web.forwarding is ForwardingMode.DSR
    assert [str(f) for f in web.frontends] == ["203.0.113.10:80/TCP"]
    assert [str(b) for b in web.backends] == ["10.0.0.1:8080/TCP", "10.0.0.2:8080/TCP"]
    assert web.backends[0].node == "n1"
    (warning,) = read.warnings
    assert "service.cilium.io/forwarding-mode" in warning and "web-service" in warning


def test_without_an_address_nobody_can_reach_it() -> None:
    """A LoadBalancer that no controller has given an address is no service of this node yet."""
    assert read_services(DSR_SERVICE, config=CHOOSE).services == ()


def test_services_may_not_choose_unless_told_so() -> None:
    """The error names the switch."""
    with pytest.raises(ServiceError, match='bpf-lb-mode-annotation: "true"'):
        read_services(DSR_SERVICE)


def test_every_kind_of_frontend() -> None:
    """ClusterIP, external, ingress and node addresses, the last with the node port."""
    document = service(
        {
            "type": "LoadBalancer",
            "clusterIPs": ["10.96.0.1", "fd00:96::1"],
            "externalIPs": ["198.51.100.1"],
            "ports": [{"port": 80, "nodePort": 30080}],
        }
    )
    document["status"] = {"loadBalancer": {"ingress": [{"ip": "203.0.113.10"}, {"hostname": "x"}]}}
    found = only(document, node=LocalNode("n1", ["192.0.2.1"]))
    assert {(str(f), f.type) for f in found.frontends} == {
        ("10.96.0.1:80/TCP", FrontendType.CLUSTER_IP),
        ("[fd00:96::1]:80/TCP", FrontendType.CLUSTER_IP),
        ("198.51.100.1:80/TCP", FrontendType.EXTERNAL_IPS),
        ("203.0.113.10:80/TCP", FrontendType.LOAD_BALANCER),
        ("192.0.2.1:30080/TCP", FrontendType.NODE_PORT),
        ("0.0.0.0:30080/TCP", FrontendType.NODE_PORT),
        ("[::]:30080/TCP", FrontendType.NODE_PORT),
    }


def test_options_of_the_spec() -> None:
    """Affinity, source ranges, traffic policies."""
    found = only(
        service(
            {
                "sessionAffinity": "ClientIP",
                "loadBalancerSourceRanges": ["10.0.0.0/8", " 2001:db8::/32 "],
                "externalTrafficPolicy": "Local",
                "internalTrafficPolicy": "Cluster",
            }
        )
    )
    assert found.affinity_timeout == 10800
    assert list(map(str, found.source_ranges)) == ["10.0.0.0/8", "2001:db8::/32"]
    assert found.external_policy is TrafficPolicy.LOCAL
    assert found.internal_policy is TrafficPolicy.CLUSTER
    config = {"clientIP": {"timeoutSeconds": 60}}
    found = only(service({"sessionAffinity": "ClientIP", "sessionAffinityConfig": config}))
    assert found.affinity_timeout == 60


def annotated(**annotations: str) -> dict[str, Any]:
    names = {f"service.cilium.io/{k.replace('_', '-')}": v for k, v in annotations.items()}
    return service({}, annotations=names)


def test_annotations() -> None:
    """Every one that changes a service."""
    found = only(
        annotated(
            lb_algorithm="maglev",
            forwarding_mode="snat",
            src_ranges_policy="deny",
            proxy_delegation="delegate-if-local",
            affinity="local",
            type="ClusterIP",
            **{"global": "true"},
        ),
        config=CHOOSE,
    )
    assert found.algorithm is Algorithm.MAGLEV
    assert found.forwarding is ForwardingMode.SNAT
    assert found.source_ranges_policy is SourceRangesPolicy.DENY
    assert found.mesh.is_global and found.mesh.shared
    assert found.mesh.affinity is MeshAffinity.LOCAL


def test_older_names_of_annotations() -> None:
    """`io.cilium/...` means the same."""
    found = only(service({}, annotations={"io.cilium/global-service": "true",
                                          "io.cilium/shared-service": "false"}))  # fmt: skip
    assert found.mesh.is_global and not found.mesh.shared


def test_requested_addresses() -> None:
    """What LB IPAM is asked for stands in until the status says."""
    document = service(
        {"type": "LoadBalancer", "clusterIP": None},
        annotations={"lbipam.cilium.io/ips": "203.0.113.7, 203.0.113.8"},
    )
    assert [str(f.address) for f in only(document).frontends] == ["203.0.113.7", "203.0.113.8"]


@pytest.mark.parametrize(
    ("annotations", "labels", "there"),
    [
        ({}, {}, True),
        ({"node": "edge"}, {}, False),
        ({"node": "edge"}, {"service.cilium.io/node": "edge"}, True),
        ({"node_selector": "zone in (a, b)"}, {"zone": "b"}, True),
        ({"node": "edge", "node_selector": "zone=c"}, {"service.cilium.io/node": "edge"}, False),
    ],
)
def test_only_on_some_nodes(
    annotations: dict[str, str], labels: dict[str, str], there: bool
) -> None:
    """`node` and `node-selector`, of which the second wins."""
    found = read_services([annotated(**annotations)], node=LocalNode(labels=labels)).services
    assert bool(found) is there


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a", True), ("!a", False), ("!b", True), ("a=1", True), ("a==1", True), ("a!=1", False),
        ("a in (1,2)", True), ("a notin (1, 2)", False), ("a in (1,2),b", False), ("b!=1", True),
        ("b notin (1)", True),
    ],
)  # fmt: skip
def test_label_selectors(text: str, expected: bool) -> None:
    """kubectl's forms."""
    assert matches_selector(text, {"a": "1"}) is expected


@pytest.mark.parametrize("text", ["a b", "a in 1", "=", "a=1=2", "a,,b", "in (a)", "a>1"])
def test_bad_label_selectors(text: str) -> None:
    """Refused, and not taken for something else."""
    with pytest.raises(InvalidError, match="label selector"):
        matches_selector(text, {"a": "1"})


STATES = [
    ({}, BackendState.ACTIVE),
    ({"ready": True, "serving": True, "terminating": False}, BackendState.ACTIVE),
    ({"ready": False}, BackendState.MAINTENANCE),
    ({"ready": False, "serving": True}, BackendState.MAINTENANCE),
    ({"ready": False, "serving": True, "terminating": True}, BackendState.TERMINATING),
    ({"ready": False, "serving": False, "terminating": True}, BackendState.TERMINATING_NOT_SERVING),
    ({"ready": False, "terminating": True}, BackendState.TERMINATING_NOT_SERVING),
    ({"ready": True, "serving": True, "terminating": True}, BackendState.ACTIVE),
]


@pytest.mark.parametrize(("conditions", "state"), STATES)
def test_conditions(conditions: dict[str, bool], state: BackendState) -> None:
    """Ready, serving and terminating give the state; who is not ready keeps its connections."""
    endpoints = [{"addresses": ["10.0.0.1"], "conditions": conditions}]
    found = only(service({}), endpoint_slice(endpoints))
    assert [backend.state for backend in found.backends] == [state]


def test_weights() -> None:
    """Of a slice; 0 is maintenance."""
    key = "service.cilium.io/weight"
    found = only(
        service({}),
        endpoint_slice([{"addresses": ["10.0.0.1"]}], annotations={key: "7"}, name="a"),
        endpoint_slice([{"addresses": ["10.0.0.2"]}], annotations={key: "0"}, name="b"),
    )
    assert {(str(b.address), b.weight, b.state) for b in found.backends} == {
        ("10.0.0.1", 7, BackendState.ACTIVE),
        ("10.0.0.2", 0, BackendState.MAINTENANCE),
    }


def test_an_address_in_two_slices_counts_once() -> None:
    """As while a pod moves from one slice to another: the better state counts."""
    conditions = {"ready": False, "serving": True, "terminating": True}
    found = only(
        service({}),
        endpoint_slice([{"addresses": ["10.0.0.1"], "conditions": conditions}], name="a"),
        endpoint_slice([{"addresses": ["10.0.0.1"]}], name="b"),
    )
    assert [b.state for b in found.backends] == [BackendState.ACTIVE]


def test_ports_meet_by_name() -> None:
    """A service for each port, with the backends of the slice's port of that name."""
    document = service({"ports": [{"name": "http", "port": 80}, {"name": "dns", "port": 53,
                                                                "protocol": "UDP"}]})  # fmt: skip
    ports = [{"name": "http", "port": 8080}, {"name": "dns", "port": 5353, "protocol": "UDP"}]
    found = read_services([document, endpoint_slice([{"addresses": ["10.0.0.1"]}], ports=ports)])
    assert {str(s.key): [str(b) for b in s.backends] for s in found.services} == {
        "default/web:http": ["10.0.0.1:8080/TCP"],
        "default/web:dns": ["10.0.0.1:5353/UDP"],
    }


def test_both_families() -> None:
    """Frontends and backends of a dual-stack service; a family without a frontend is left out."""
    six = endpoint_slice([{"addresses": ["fd00::1"]}], addressType="IPv6", name="six")
    four = endpoint_slice([{"addresses": ["10.0.0.1"]}])
    dual = service({"clusterIPs": ["10.96.0.1", "fd00:96::1"]})
    assert len(only(dual, four, six).backends) == 2
    assert [b.address.version for b in only(service({}), four, six).backends] == [4]


def test_zones() -> None:
    """Topology hints count where the config and the service say so, and all backends have them."""
    hints = [
        {"addresses": [f"10.0.0.{n}"], "hints": {"forZones": [{"name": zone}]}}
        for n, zone in ((1, "a"), (2, "b"))
    ]
    auto = service({}, annotations={"service.kubernetes.io/topology-mode": "Auto"})
    config, node = LoadBalancerConfig(service_topology=True), LocalNode(zone="a")
    near = only(auto, endpoint_slice(hints), config=config, node=node)
    assert [str(b.address) for b in near.backends] == ["10.0.0.1"]
    for documents, options in (
        ((auto, endpoint_slice(hints)), {"node": node}),
        ((service({}), endpoint_slice(hints)), {"config": config, "node": node}),
        ((auto, endpoint_slice([*hints, {"addresses": ["10.0.0.3"]}])),
         {"config": config, "node": node}),
    ):  # fmt: skip
        assert len(only(*documents, **options).backends) >= 2


TOPOLOGY = {"service.kubernetes.io/topology-mode": "Auto"}


@pytest.mark.parametrize(
    ("spec", "annotations", "taken"),
    [
        ({}, TOPOLOGY, [1]),
        ({}, {"service.kubernetes.io/topology-aware-hints": "auto"}, [1]),
        ({}, {**TOPOLOGY, "service.kubernetes.io/topology-aware-hints": "Disabled"}, [1, 2, 3]),
        ({"trafficDistribution": "PreferClose"}, {}, [1]),
        ({"trafficDistribution": "PreferSameZone"}, {}, [1]),
        ({"trafficDistribution": "PreferClose", "internalTrafficPolicy": "Local"}, {}, [1, 2, 3]),
        ({}, {}, [1, 2, 3]),
    ],
)
def test_who_follows_hints(
    spec: dict[str, Any], annotations: dict[str, str], taken: list[int]
) -> None:
    """By annotation, the older one first, or by field; not where backends are local anyway."""
    hints = [
        {"addresses": [f"10.0.0.{n}"], "hints": {"forZones": [{"name": zone}]}}
        for n, zone in ((1, "a"), (2, "b"), (3, "b"))
    ]
    found = only(
        service(spec, annotations=annotations), endpoint_slice(hints),
        config=LoadBalancerConfig(service_topology=True), node=LocalNode("n1", zone="a"),
    )  # fmt: skip
    assert [str(b.address) for b in found.backends] == [f"10.0.0.{n}" for n in taken]


@pytest.mark.parametrize(
    ("node", "zone", "taken"),
    [("n1", "a", [1]), ("n3", "a", [1, 2]), ("n3", "c", [1, 2, 3]), ("", "", [1, 2, 3])],
)
def test_hints_for_nodes(node: str, zone: str, taken: list[int]) -> None:
    """The node's own, else the zone's, else all; one that is not active needs no hint."""
    served = [("n1", "a"), ("n2", "a"), ("n2", "b")]
    endpoints = [
        {
            "addresses": [f"10.0.0.{n}"],
            "hints": {"forZones": [{"name": z}], "forNodes": [{"name": m}]},
        }
        for n, (m, z) in enumerate(served, 1)
    ]
    gone = {"addresses": ["10.0.0.9"], "conditions": {"ready": False}}
    found = only(
        service({"trafficDistribution": "PreferSameNode"}), endpoint_slice([*endpoints, gone]),
        config=LoadBalancerConfig(service_topology=True), node=LocalNode(node, zone=zone),
    )  # fmt: skip
    active = [b for b in found.backends if b.state is BackendState.ACTIVE]
    assert [str(b.address) for b in active] == [f"10.0.0.{n}" for n in taken]


def test_a_headless_slice() -> None:
    """Its name resolves to the pods; nothing is balanced by it."""
    labels = {"kubernetes.io/service-name": "web", "service.kubernetes.io/headless": ""}
    slices = endpoint_slice([{"addresses": ["10.0.0.1"]}])
    slices["metadata"]["labels"] = labels
    assert only(service({}), slices).backends == ()


def test_a_port_for_all() -> None:
    """A slice's port without a number is no service's."""
    slices = endpoint_slice([{"addresses": ["10.0.0.1"]}], ports=[{"name": ""}])
    assert only(service({}), slices).backends == ()


def test_annotations_in_any_case() -> None:
    """As Cilium takes them."""
    found = only(annotated(lb_algorithm="Maglev", forwarding_mode="DSR"), config=CHOOSE)
    assert (found.algorithm, found.forwarding) == (Algorithm.MAGLEV, ForwardingMode.DSR)


def test_health_check_node_ports() -> None:
    """For `HealthNodePorts`."""
    assert only(service({"healthCheckNodePort": 32100})).health_port == 32100


@pytest.mark.parametrize(
    "document",
    [
        service({"clusterIP": "None"}),
        service({"clusterIP": "None", "externalIPs": ["198.51.100.1"]}),
        service({}, labels={"service.kubernetes.io/headless": ""}),
        service({"type": "ExternalName", "externalName": "example.org"}),
        service({}, labels={"service.kubernetes.io/service-proxy-name": "other"}),
    ],
    ids=[
        "headless",
        "headless all the same",
        "headless by label",
        "external name",
        "another proxy's",
    ],
)
def test_no_service_of_ours(document: dict[str, Any]) -> None:
    """Nothing to balance, and no error."""
    assert read_services([document]).services == ()


FAULTS: dict[str, tuple[Any, str]] = {
    "unknown field": (service({"clusterIp": "10.96.0.1"}), 'spec.clusterIp: .*"clusterIP"'),
    "port": (service({"ports": [{"port": 0}]}), r"spec.ports\[0\].port: 0: write 1 to 65535"),
    "port as text": (service({"ports": [{"port": "80"}]}), r"ports\[0\].port: expected a whole"),
    "protocol": (service({"ports": [{"port": 80, "protocol": "TPC"}]}), r"protocol: .*TCP"),
    "two ports of a name": (service({"ports": [{"port": 80}, {"port": 81}]}), "twice"),
    "type": (service({"type": "Loadbalancer"}), "spec.type: 'Loadbalancer'"),
    "source range": (
        service({"loadBalancerSourceRanges": ["10/8"]}), r"loadBalancerSourceRanges\[0\]",
    ),
    "policy": (service({"externalTrafficPolicy": "local"}), "externalTrafficPolicy: .*Local"),
    "affinity": (service({"sessionAffinity": "Cookie"}), "spec.sessionAffinity: 'Cookie'"),
    "affinity timeout": (
        service({"sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 0}}}), "1 to 86400",
    ),
    "annotation": (annotated(global_="true"), "unknown annotation"),
    "annotation's value": (annotated(src_ranges_policy="dney"), '"deny"'),
    "annotation's switch": (annotated(lb_algorithm="maglev"), "bpf-lb-algorithm-annotation"),
    "annotation no text": (
        service({}, annotations={"service.cilium.io/global": True}), 'quote it: "true"',
    ),
    "node selector": (annotated(node_selector="a b"), "label selector"),
    "weight on a service": (annotated(weight="7"), "EndpointSlice"),
    "weight": (
        endpoint_slice([], annotations={"service.cilium.io/weight": "-1"}), "0 to 65535",
    ),
    "family": (endpoint_slice([{"addresses": ["fd00::1"]}]), r"endpoints\[0\].addresses\[0\]"),
    "address type": (endpoint_slice([], addressType="FQDN"), "addressType: 'FQDN'"),
    "whose slice": (
        {"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
         "metadata": {"name": "x"}, "addressType": "IPv4"}, "kubernetes.io/service-name",
    ),
    "kind": ({"kind": "Node", "apiVersion": "v1"}, "'Node' of 'v1'"),
    "version": ({"kind": "EndpointSlice", "apiVersion": "v1"}, "EndpointSlices of discovery"),
    "health check node port": (
        service({"healthCheckNodePort": 70000}), "spec.healthCheckNodePort: 70000",
    ),
    "distribution": (
        service({"trafficDistribution": "PreferClosest"}), "trafficDistribution: .*PreferClose",
    ),
    "topology mode": (
        service({}, annotations={"service.kubernetes.io/topology-mode": "on"}), "Auto or Disabled",
    ),
    "address pool": (
        service({}, annotations={"lbipam.cilium.io/ip": "203.0.113.1"}), 'did you mean "ips"',
    ),
    "hints": (
        endpoint_slice([{"addresses": ["10.0.0.1"], "hints": {"forZone": []}}]), "forZones",
    ),
    "slice's port": (endpoint_slice([], ports=[{"port": 0}]), r"ports\[0\].port: 0"),
    "no object": ("text", "an object"),
    "name": ({"kind": "Service", "apiVersion": "v1"}, "metadata.name"),
}  # fmt: skip


@pytest.mark.parametrize(("document", "said"), FAULTS.values(), ids=FAULTS)
def test_faults(document: Any, said: str) -> None:
    """A ServiceError with the document and the field's path."""
    with pytest.raises(ServiceError, match=said) as caught:
        read_services([document])
    assert all(problem.startswith("document 1") for problem in caught.value.problems)


HOSTILE = {
    "a key twice": ("{kind: Service, kind: Pod}", "found the key 'kind' twice"),
    "a number without end": ("kind: Service\nspec: " + "9" * 5000, "no YAML that can be read"),
    "a large number": ("kind: Service\nspec: " + "9" * 50, "a number of 167 bits"),
    "aliases of aliases": (
        "".join(f"{n}: &a{n} [{f'*a{n - 1}, *a{n - 1}' if n else 1}]\n" for n in range(30)),
        "values with its aliases written out",
    ),
    "more aliases": ("a: &a 1\nb: [" + ", ".join(["*a"] * 65) + "]", "more than 64 aliases"),
    "what holds itself": ("a: &a [*a]", "more than 64 levels"),
}


@pytest.mark.parametrize(("text", "said"), HOSTILE.values(), ids=HOSTILE)
def test_hostile_text(text: str, said: str) -> None:
    """Refused before anybody looks into it."""
    with pytest.raises(ServiceError, match=said):
        read_services(text)


def test_all_faults_at_once() -> None:
    """Of every document, in order."""
    documents = [service({"type": "x"}), annotated(type="y")]
    with pytest.raises(ServiceError) as caught:
        read_services(documents)
    assert [problem.partition(" (")[0] for problem in caught.value.problems] == [
        "document 1", "document 2", "document 2",
    ]  # fmt: skip


def test_twice() -> None:
    """One name, one service."""
    with pytest.raises(ServiceError, match="default/web is there twice"):
        read_services([service({}), service({})])


def test_an_address_for_nobody() -> None:
    """A misspelt name in `addresses` is told."""
    with pytest.raises(ServiceError, match="addresses: default/wbe"):
        read_services([service({})], addresses={"default/wbe": ["203.0.113.1"]})


def test_files(tmp_path: Path) -> None:
    """A folder's YAML and JSON files, and the errors name the file."""
    (tmp_path / "a.yaml").write_text(DSR_SERVICE.replace("mode", "forwarding-mode"))
    (tmp_path / "b.yml").write_text(SLICE)
    (tmp_path / "notes.txt").write_text("{")
    given = {"default/web-service": ["203.0.113.10"]}
    (found,) = read_services(tmp_path, config=CHOOSE, addresses=given).services
    assert len(found.backends) == 2
    with pytest.raises(NotFoundError):
        read_services(tmp_path / "none.yaml")
    (tmp_path / "c.yaml").write_text("a: [")
    with pytest.raises(ServiceError, match=r"c\.yaml: no YAML"):
        read_services(tmp_path, config=CHOOSE, addresses=given)


def test_lists() -> None:
    """What `kubectl get -o yaml` prints."""
    items = {"kind": "List", "items": [service({}), endpoint_slice([{"addresses": ["10.0.0.1"]}])]}
    assert len(only(items).backends) == 1
