"""The tables of CiliumNetworkPolicy: every field that any version of Cilium knows.

https://docs.cilium.io/en/stable/security/policy/language/
"""

from __future__ import annotations

from typing import Final

from pyciliumlib.policy.schema import (
    ANY,
    BOOL,
    LIST,
    NUMBER,
    OBJECT,
    TEXT,
    FieldSpec,
    Form,
    Schema,
)

METADATA: Final = Schema(
    "metadata",
    {
        "name": TEXT,
        "namespace": TEXT,
        "labels": OBJECT,
        **dict.fromkeys(
            (
                "annotations",
                "uid",
                "creationTimestamp",
                "deletionTimestamp",
                "deletionGracePeriodSeconds",
                "finalizers",
                "generateName",
                "generation",
                "managedFields",
                "ownerReferences",
                "resourceVersion",
                "selfLink",
            ),
            ANY,
        ),
    },
)

DOCUMENT: Final = Schema(
    "policy",
    {
        "apiVersion": TEXT,
        "kind": TEXT,
        "metadata": OBJECT,
        "spec": OBJECT,
        "specs": LIST,
        "status": ANY,
    },
)

RULE: Final = Schema(
    "rule",
    {
        "endpointSelector": OBJECT,
        "nodeSelector": OBJECT,
        "ingress": LIST,
        "ingressDeny": LIST,
        "egress": LIST,
        "egressDeny": LIST,
        "enableDefaultDeny": OBJECT,
        "labels": LIST,
        "description": TEXT,
        "log": OBJECT,
    },
)

LOG: Final = Schema("log", {"value": TEXT})

DEFAULT_DENY: Final = Schema("enableDefaultDeny", {"ingress": BOOL, "egress": BOOL})

_SHARED: Final[dict[str, FieldSpec]] = {
    "toPorts": LIST,
    "icmps": LIST,
    "authentication": OBJECT,
}
_DENY_SHARED: Final[dict[str, FieldSpec]] = {"toPorts": LIST, "icmps": LIST}
_FROM: Final[dict[str, FieldSpec]] = {
    "fromEndpoints": LIST,
    "fromEntities": LIST,
    "fromCIDR": LIST,
    "fromCIDRSet": LIST,
    "fromNodes": LIST,
    "fromGroups": LIST,
    "fromRequires": LIST,
}
_TO: Final[dict[str, FieldSpec]] = {
    "toEndpoints": LIST,
    "toEntities": LIST,
    "toCIDR": LIST,
    "toCIDRSet": LIST,
    "toNodes": LIST,
    "toGroups": LIST,
    "toRequires": LIST,
    "toServices": LIST,
}

INGRESS: Final = Schema("ingress rule", {**_FROM, **_SHARED})
INGRESS_DENY: Final = Schema("ingressDeny rule", {**_FROM, **_DENY_SHARED})
EGRESS: Final = Schema(
    "egress rule",
    {
        **_TO,
        **_SHARED,
        "toFQDNs": LIST,
        "toBandwidth": OBJECT,
    },
)
EGRESS_DENY: Final = Schema("egressDeny rule", {**_TO, **_DENY_SHARED})

AUTHENTICATION: Final = Schema("authentication", {"mode": TEXT}, required=("mode",))

BANDWIDTH: Final = Schema("bandwidth", {"rate": TEXT, "burst": TEXT}, required=("rate",))

CIDR_RULE: Final = Schema(
    "CIDR set",
    {
        "cidr": TEXT,
        "except": LIST,
        "cidrGroupRef": TEXT,
        "cidrGroupSelector": OBJECT,
    },
    one_of=("cidr", "cidrGroupRef", "cidrGroupSelector"),
)

CIDR_GROUP: Final = Schema("CIDR group", {"externalCIDRs": LIST}, required=("externalCIDRs",))

CLOUD_GROUP: Final = Schema("cloud group", {"aws": OBJECT}, required=("aws",))
AWS_GROUP: Final = Schema(
    "aws group",
    {"labels": OBJECT, "securityGroupsIds": LIST, "securityGroupsNames": LIST, "region": TEXT},
)

SERVICE_PEER: Final = Schema(
    "service",
    {"k8sService": OBJECT, "k8sServiceSelector": OBJECT},
    one_of=("k8sService", "k8sServiceSelector"),
)
K8S_SERVICE: Final = Schema(
    "k8sService", {"serviceName": TEXT, "namespace": TEXT}, required=("serviceName",)
)
K8S_SERVICE_SELECTOR: Final = Schema(
    "k8sServiceSelector", {"selector": OBJECT, "namespace": TEXT}, required=("selector",)
)

# Objects of Kubernetes of which policy needs a part.
_OBJECT: Final = {"apiVersion": TEXT, "kind": TEXT, "metadata": OBJECT}
SERVICE: Final = Schema("Service", {**_OBJECT, "spec": OBJECT, "status": ANY})
SLICE: Final = Schema(
    "EndpointSlice", {**_OBJECT, "addressType": TEXT, "endpoints": LIST, "ports": ANY}
)
SLICE_ENDPOINT: Final = Schema(
    "endpoint",
    {
        "addresses": LIST,
        **dict.fromkeys(
            (
                "conditions",
                "deprecatedTopology",
                "hints",
                "hostname",
                "nodeName",
                "targetRef",
                "zone",
            ),
            ANY,
        ),
    },
)
ENDPOINTS: Final = Schema("Endpoints", {**_OBJECT, "subsets": LIST})
SUBSET: Final = Schema("subset", {"addresses": LIST, "notReadyAddresses": ANY, "ports": ANY})
ENDPOINT_ADDRESS: Final = Schema(
    "address", {"ip": TEXT, "hostname": ANY, "nodeName": ANY, "targetRef": ANY}, required=("ip",)
)

FQDN: Final = Schema("FQDN selector", {"matchName": TEXT, "matchPattern": TEXT})

PORT_RULE: Final = Schema(
    "toPorts entry",
    {
        "ports": LIST,
        "rules": OBJECT,
        "terminatingTLS": OBJECT,
        "originatingTLS": OBJECT,
        "serverNames": LIST,
        "listener": OBJECT,
    },
)
PORT_DENY_RULE: Final = Schema("toPorts entry of a deny rule", {"ports": LIST})
PORT: Final = Schema("port", {"port": ANY, "endPort": NUMBER, "protocol": TEXT})
ICMP_RULE: Final = Schema("icmps entry", {"fields": LIST})
ICMP_FIELD: Final = Schema("ICMP field", {"family": TEXT, "type": ANY}, required=("type",))

_LEGACY_LIST: Final = FieldSpec(Form.LIST, legacy=True)
_LEGACY_TEXT: Final = FieldSpec(Form.TEXT, legacy=True)
L7_RULES: Final = Schema(
    "L7 rules",
    {
        "http": LIST,
        "dns": LIST,
        "kafka": _LEGACY_LIST,
        "l7proto": _LEGACY_TEXT,
        "l7": _LEGACY_LIST,
    },
)
HTTP: Final = Schema(
    "HTTP rule",
    {"method": TEXT, "path": TEXT, "host": TEXT, "headers": LIST, "headerMatches": LIST},
)
HEADER_MATCH: Final = Schema(
    "header match", {"name": TEXT, "value": TEXT, "secret": OBJECT, "mismatch": TEXT}
)
KAFKA: Final = Schema(
    "Kafka rule",
    {"role": TEXT, "apiKey": TEXT, "apiVersion": TEXT, "clientID": TEXT, "topic": TEXT},
)
SECRET: Final = Schema("secret", {"namespace": TEXT, "name": TEXT}, required=("name",))
TLS: Final = Schema(
    "TLS context",
    {"secret": OBJECT, "trustedCA": TEXT, "certificate": TEXT, "privateKey": TEXT},
    required=("secret",),
)
LISTENER: Final = Schema(
    "listener",
    {"envoyConfig": OBJECT, "name": TEXT, "priority": NUMBER},
    required=("envoyConfig", "name"),
)
ENVOY_CONFIG: Final = Schema("envoyConfig", {"kind": TEXT, "name": TEXT}, required=("name",))
