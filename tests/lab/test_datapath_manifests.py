"""The manifests that people write first, against real traffic in both families."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pyciliumlib.flow import DropReason
from pyciliumlib.lab import Lab
from tests.lab import scenes
from tests.lab.scenes import OPEN, POLICY, VERSIONS, Scene

NO_PROXY, DENY = int(DropReason.NO_PROXY), int(DropReason.POLICY_DENY)

DEFAULT_DENY = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: deny-everything, namespace: shop}
spec:
  endpointSelector: {}
  ingress: [{}]
  egress: [{}]
"""
DNS_ONLY = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: only-dns, namespace: shop}
spec:
  endpointSelector: {matchLabels: {app: web}}
  egress:
  - toEndpoints:
    - matchLabels:
        k8s:io.kubernetes.pod.namespace: kube-system
        k8s-app: kube-dns
    toPorts:
    - ports: [{port: "53", protocol: UDP}, {port: "53", protocol: TCP}]
"""
ISOLATED = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: own-namespace, namespace: shop}
spec:
  endpointSelector: {}
  ingress:
  - fromEndpoints: [{}]
  egress:
  - toEndpoints: [{}]
"""
ONLY_GET = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: only-get, namespace: shop}
spec:
  endpointSelector: {matchLabels: {app: api}}
  ingress:
  - fromEndpoints: [{matchLabels: {app: web}}]
    toPorts:
    - ports: [{port: "80", protocol: TCP}]
      rules: {http: [{method: GET, path: "/v1/.*"}]}
  - fromEndpoints: [{matchLabels: {app: web}}]
    toPorts:
    - ports: [{port: "53", protocol: UDP}]
"""
CLUSTERWIDE_DENY = """
apiVersion: cilium.io/v2
kind: CiliumClusterwideNetworkPolicy
metadata: {name: nobody-to-81}
spec:
  endpointSelector: {matchExpressions: [{key: app, operator: In, values: [api, other]}]}
  enableDefaultDeny: {ingress: false}
  ingressDeny:
  - fromEntities: [cluster]
    toPorts: [{ports: [{port: "81", protocol: TCP}]}]
"""
NODE_PORTS = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: a-range, namespace: shop}
spec:
  endpointSelector: {matchLabels: {app: api}}
  ingress:
  - fromEntities: [all]
    toPorts: [{ports: [{port: "80", endPort: 90, protocol: TCP}]}]
  - fromCIDR: ["192.0.2.0/24", "2001:db8::/64"]
    icmps: [{fields: [{type: 8, family: IPv4}, {type: 128, family: IPv6}]}]
"""


@pytest.fixture(scope="module")
def shared() -> Iterator[Scene]:
    """The pods of the scene are of the namespace `shop`; `dns` and `other` of others."""
    with Lab() as lab, scenes.scene(lab, namespace="shop") as made:
        made.dp.add_endpoint("dns", {"k8s-app": "kube-dns"}, namespace="kube-system")
        made.dp.add_endpoint("other", {"app": "other"}, namespace="default")
        for name in ("dns", "other"):
            for port in ("53/UDP", "53/TCP", "80/TCP", "81/TCP"):
                lab.host(name).serve(port)
        yield made


@pytest.fixture
def scene(shared: Scene) -> Iterator[Scene]:
    yield shared
    shared.no_policy()


TABLE = {
    "default deny": (DEFAULT_DENY, {
        ("web", "api", "80/TCP"): POLICY,
        ("web", "dns", "53/UDP"): POLICY,
        ("web", "world", "80/TCP"): POLICY,
        ("world", "web", "80/TCP"): POLICY,
        ("other", "web", "80/TCP"): POLICY,
        ("node", "web", "80/TCP"): OPEN,
        ("other", "dns", "53/UDP"): OPEN,
    }),
    "DNS only": (DNS_ONLY, {
        ("web", "dns", "53/UDP"): OPEN,
        ("web", "dns", "53/TCP"): OPEN,
        ("web", "dns", "80/TCP"): POLICY,
        ("web", "other", "53/UDP"): POLICY,
        ("web", "world", "53/UDP"): POLICY,
        ("api", "web", "80/TCP"): OPEN,
        ("api", "dns", "80/TCP"): OPEN,
    }),
    "namespace isolation": (ISOLATED, {
        ("web", "api", "80/TCP"): OPEN,
        ("web", "api", "echo"): OPEN,
        ("api", "db", "53/UDP"): OPEN,
        ("web", "other", "80/TCP"): POLICY,
        ("other", "web", "80/TCP"): POLICY,
        ("web", "dns", "53/UDP"): POLICY,
        ("world", "web", "80/TCP"): POLICY,
        ("web", "world", "80/TCP"): POLICY,
        ("other", "dns", "53/UDP"): OPEN,
    }),
    "an L7 rule without a proxy": (ONLY_GET, {
        ("web", "api", "80/TCP"): NO_PROXY,
        ("web", "api", "53/UDP"): OPEN,
        ("web", "api", "81/TCP"): POLICY,
        ("db", "api", "80/TCP"): POLICY,
    }),
    "a deny that asks for nothing else": (CLUSTERWIDE_DENY, {
        ("web", "api", "81/TCP"): DENY,
        ("web", "other", "81/TCP"): DENY,
        ("web", "api", "80/TCP"): OPEN,
        ("world", "api", "81/TCP"): OPEN,
        ("web", "db", "81/TCP"): OPEN,
    }),
    "a range, and pings of a prefix": (NODE_PORTS, {
        ("web", "api", "80/TCP"): OPEN,
        ("world", "api", "81/TCP"): OPEN,
        ("web", "api", "53/UDP"): POLICY,
        ("world", "api", "echo"): OPEN,
        ("web", "api", "echo"): POLICY,
    }),
    "deny and L7 together": (ONLY_GET + "---" + CLUSTERWIDE_DENY, {
        ("web", "api", "81/TCP"): DENY,
        ("web", "api", "80/TCP"): NO_PROXY,
    }),
}  # fmt: skip


@VERSIONS
@pytest.mark.parametrize("name", TABLE)
def test_manifest(scene: Scene, name: str, version: int) -> None:
    """Each way gets the verdict, and where it is dropped the reason, that the manifest means."""
    text, expected = TABLE[name]
    scene.dp.policy.apply(text)
    assert {way: scene.verdict(*way, version) for way in expected} == expected
    assert not scene.dp.drift()
