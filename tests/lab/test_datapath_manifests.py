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
PARTNERS_ONLY = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: out-to-partners, namespace: shop}
spec:
  endpointSelector: {matchLabels: {app: web}}
  egress:
  - toCIDRSet:
    - {cidr: 192.0.2.0/24, except: [192.0.2.128/25]}
    - {cidr: "2001:db8::/64", except: ["2001:db8::f000/116"]}
    toPorts: [{ports: [{port: "80", protocol: TCP}]}]
"""
DENY_IN_A_RANGE = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: all-but-81, namespace: shop}
spec:
  endpointSelector: {matchLabels: {app: api}}
  ingress:
  - fromEndpoints: [{}]
    toPorts: [{ports: [{port: "1", endPort: 1023, protocol: ANY}]}]
  ingressDeny:
  - fromEndpoints: [{matchLabels: {app: web}}]
    toPorts: [{ports: [{port: "81"}]}]
"""
PINGS_ONLY = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: only-pings, namespace: shop}
spec:
  endpointSelector: {matchLabels: {app: api}}
  ingress:
  - icmps: [{fields: [{type: EchoRequest, family: IPv4}, {type: EchoRequest, family: IPv6}]}]
"""
NOT_OUTSIDE = """
apiVersion: cilium.io/v2
kind: CiliumClusterwideNetworkPolicy
metadata: {name: not-to-the-world}
spec:
  endpointSelector: {}
  enableDefaultDeny: {egress: false}
  egressDeny: [{toEntities: [world]}]
"""
ACROSS_NAMESPACES = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: other-namespace, namespace: shop}
spec:
  endpointSelector: {matchExpressions: [{key: app, operator: NotIn, values: [db]}]}
  ingress:
  - fromEndpoints: [{matchLabels: {k8s:io.kubernetes.pod.namespace: default}}]
"""
NODE_ONLY = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: node-only, namespace: shop}
spec:
  endpointSelector: {matchLabels: {app: api}}
  ingress: [{fromEntities: [host, health]}]
"""
NAMES = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: by-name, namespace: shop}
spec:
  endpointSelector: {matchLabels: {app: web}}
  egress:
  - toEndpoints:
    - matchLabels: {k8s:io.kubernetes.pod.namespace: kube-system, k8s-app: kube-dns}
    toPorts:
    - ports: [{port: "53", protocol: ANY}]
      rules: {dns: [{matchPattern: "*"}]}
  - toFQDNs: [{matchName: world.example.com}]
"""
K8S_DENY_ALL = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: deny-all, namespace: shop}
spec: {podSelector: {}, policyTypes: [Ingress, Egress]}
"""
K8S_ALLOW_ALL = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: allow-all, namespace: shop}
spec: {podSelector: {matchLabels: {app: api}}, ingress: [{}]}
"""
K8S_NAMESPACE = """
apiVersion: v1
kind: Namespace
metadata: {name: kube-system, labels: {purpose: infra}}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: from-infra, namespace: shop}
spec:
  podSelector: {matchLabels: {app: api}}
  ingress:
  - from:
    - namespaceSelector: {matchLabels: {purpose: infra}}
    - podSelector: {matchLabels: {app: db}}
    ports: [{port: 80, endPort: 90}, {port: 53, protocol: UDP}]
"""
K8S_BLOCK = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: out-to-blocks, namespace: shop}
spec:
  podSelector: {matchLabels: {app: web}}
  policyTypes: [Egress]
  egress:
  - to:
    - ipBlock: {cidr: 192.0.2.0/24, except: [192.0.2.128/25]}
    - ipBlock: {cidr: "2001:db8::/64", except: ["2001:db8::f000/116"]}
"""


@pytest.fixture(scope="module")
def shared() -> Iterator[Scene]:
    """The pods of the scene are of the namespace `shop`; `dns` and `other` of others."""
    with Lab() as lab, scenes.scene(lab, namespace="shop") as made:
        made.dp.add_endpoint("dns", {"k8s-app": "kube-dns"}, namespace="kube-system")
        made.dp.add_endpoint("other", {"app": "other"}, namespace="default")
        lab.outside("partner", of=made.node, ip4="192.0.2.77", ip6="2001:db8::77")
        lab.outside("excepted", of=made.node, ip4="192.0.2.200", ip6="2001:db8::f001")
        for name in ("dns", "other", "partner", "excepted"):
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
    "CIDR egress with except": (PARTNERS_ONLY, {
        ("web", "partner", "80/TCP"): OPEN,
        ("web", "partner", "81/TCP"): POLICY,
        ("web", "excepted", "80/TCP"): POLICY,
        ("web", "api", "80/TCP"): POLICY,
        ("api", "excepted", "80/TCP"): OPEN,
    }),
    "deny over allow in a range": (DENY_IN_A_RANGE, {
        ("web", "api", "80/TCP"): OPEN,
        ("web", "api", "53/UDP"): OPEN,
        ("web", "api", "81/TCP"): DENY,
        ("db", "api", "81/TCP"): OPEN,
        ("other", "api", "80/TCP"): POLICY,
    }),
    "ICMP only": (PINGS_ONLY, {
        ("web", "api", "echo"): OPEN,
        ("world", "api", "echo"): OPEN,
        ("web", "api", "80/TCP"): POLICY,
        ("web", "db", "80/TCP"): OPEN,
    }),
    "nobody out of the cluster": (NOT_OUTSIDE, {
        ("web", "world", "80/TCP"): DENY,
        ("dns", "world", "53/UDP"): DENY,
        ("web", "dns", "53/UDP"): OPEN,
        ("web", "node", "80/TCP"): OPEN,
        ("world", "web", "80/TCP"): OPEN,
    }),
    "across namespaces": (ACROSS_NAMESPACES, {
        ("other", "api", "80/TCP"): OPEN,
        ("dns", "api", "80/TCP"): POLICY,
        ("web", "api", "80/TCP"): POLICY,
        ("web", "db", "80/TCP"): OPEN,
    }),
    "the node only": (NODE_ONLY, {
        ("node", "api", "80/TCP"): OPEN,
        ("web", "api", "80/TCP"): POLICY,
        ("world", "api", "80/TCP"): POLICY,
    }),
    "names that nobody learns": (NAMES, {
        ("web", "dns", "53/UDP"): NO_PROXY,
        ("web", "dns", "53/TCP"): NO_PROXY,
        ("web", "world", "80/TCP"): POLICY,
    }),
    "Kubernetes: deny all": (K8S_DENY_ALL, {
        ("web", "api", "80/TCP"): POLICY,
        ("web", "dns", "53/UDP"): POLICY,
        ("other", "api", "80/TCP"): POLICY,
        ("node", "api", "80/TCP"): OPEN,
        ("other", "dns", "80/TCP"): OPEN,
    }),
    "Kubernetes: deny all, then allow": (K8S_DENY_ALL + "---" + K8S_ALLOW_ALL, {
        ("other", "api", "81/TCP"): OPEN,
        ("world", "api", "echo"): OPEN,
        ("web", "api", "80/TCP"): POLICY,  # web may not go out
        ("api", "other", "80/TCP"): POLICY,
    }),
    "Kubernetes: a namespace and pods": (K8S_NAMESPACE, {
        ("dns", "api", "80/TCP"): OPEN,
        ("dns", "api", "53/UDP"): OPEN,
        ("db", "api", "81/TCP"): OPEN,
        ("db", "api", "echo"): POLICY,
        ("other", "api", "80/TCP"): POLICY,
        ("web", "api", "80/TCP"): POLICY,
    }),
    "Kubernetes: blocks with except": (K8S_BLOCK, {
        ("web", "partner", "81/TCP"): OPEN,
        ("web", "partner", "echo"): OPEN,
        ("web", "excepted", "80/TCP"): POLICY,
        ("web", "api", "80/TCP"): POLICY,
        ("api", "web", "80/TCP"): OPEN,
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
