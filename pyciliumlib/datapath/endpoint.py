"""An endpoint: what policy governs, behind one device of the node."""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Mapping
from typing import Any, Final

from attrs import field, frozen

from pyciliumlib.errors import InvalidError, LabelError, StateError
from pyciliumlib.identity import Labels, ReservedIdentity
from pyciliumlib.identity.labels import LabelsLike
from pyciliumlib.kernel import Map
from pyciliumlib.policy import Party
from pyciliumlib.types import Address, PortProto, Protocol

_NAMESPACE: Final = "io.kubernetes.pod.namespace"
_NAMESPACE_LABELS: Final = "io.cilium.k8s.namespace.labels."
_CLUSTER: Final = "io.cilium.k8s.policy.cluster"
_SERVICE_ACCOUNT: Final = "io.cilium.k8s.policy.serviceaccount"
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
#: `enum endpoint_flags`: the node itself.
_ENDPOINT_HOST: Final = 1
_MAC: Final = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")


@frozen
class Endpoint:
    """One endpoint as it is now; a change makes another value.

    `labels` are what was given, `identity_labels` with what follows from the namespace.
    `ifindex` and `node_mac` are of the host-side `device`, `mac` of the endpoint's own. `routed`:
    the datapath made the node's routes to it, and not a lab. `audit`: what policy denies passes.
    """

    id: int
    name: str
    namespace: str
    labels: Labels
    identity_labels: Labels
    identity: int
    addresses: tuple[Address, ...]
    device: str
    ifindex: int
    mac: str
    node_mac: str
    named_ports: Mapping[str, tuple[int, Protocol]] = field(factory=dict, hash=False)
    routed: bool = False
    audit: bool = False

    @property
    def ip4(self) -> ipaddress.IPv4Address | None:
        """Its first IPv4 address."""
        return next((a for a in self.addresses if isinstance(a, ipaddress.IPv4Address)), None)

    @property
    def ip6(self) -> ipaddress.IPv6Address | None:
        """Its first IPv6 address."""
        return next((a for a in self.addresses if isinstance(a, ipaddress.IPv6Address)), None)

    @property
    def party(self) -> Party:
        """The endpoint as policy sees it."""
        return Party(self.identity_labels, self.named_ports, self.identity, self.name, self.audit)

    def to_json(self) -> str:
        """All of it as text, for the state file."""
        return json.dumps(
            {
                "id": self.id,
                "name": self.name,
                "namespace": self.namespace,
                "labels": [str(label) for label in self.labels],
                "identity_labels": [str(label) for label in self.identity_labels],
                "identity": self.identity,
                "addresses": [str(address) for address in self.addresses],
                "device": self.device,
                "ifindex": self.ifindex,
                "mac": self.mac,
                "node_mac": self.node_mac,
                "named_ports": {n: f"{p}/{proto}" for n, (p, proto) in self.named_ports.items()},
                "routed": self.routed,
                "audit": self.audit,
            }
        )

    @classmethod
    def from_json(cls, text: str) -> Endpoint:
        """The endpoint that `to_json` wrote; StateError for any other text."""
        try:
            data: dict[str, Any] = json.loads(text)
            data["labels"] = Labels.parse(data["labels"])
            data["identity_labels"] = Labels.parse(data["identity_labels"])
            data["addresses"] = tuple(ipaddress.ip_address(text) for text in data["addresses"])
            data["named_ports"] = named_ports(data["named_ports"])
            return cls(**data)
        except (ValueError, KeyError, TypeError) as error:
            raise StateError(f"{text!r} is no endpoint that was written down: {error}") from error

    def __str__(self) -> str:
        where = ", ".join(map(str, self.addresses))
        return f"{self.name} (endpoint {self.id}, identity {self.identity}, {where})"


def identity_labels(
    labels: Labels, namespace: str, namespace_labels: Mapping[str, str], cluster: str
) -> Labels:
    """A pod's own labels with those that Cilium adds: namespace, its labels, cluster, account.

    LabelError where a pod claims another namespace or cluster than it is in.
    """
    implied = {
        _NAMESPACE: namespace,
        _CLUSTER: cluster,
        _SERVICE_ACCOUNT: "default",
        f"{_NAMESPACE_LABELS}kubernetes.io/metadata.name": namespace,
        **{f"{_NAMESPACE_LABELS}{key}": value for key, value in namespace_labels.items()},
    }
    for label in labels:
        of_place = label.key in (_NAMESPACE, _CLUSTER) or label.key.startswith(_NAMESPACE_LABELS)
        if of_place and implied.get(label.key) != label.value:
            raise LabelError(
                f"label {label}: this follows from the endpoint's namespace and cluster; give "
                "namespace= instead"
            )
    return Labels.parse(implied, source="k8s").merge(labels)


def pod_labels(labels: LabelsLike | None) -> Labels:
    """Labels as given; those without a source are Kubernetes labels."""
    return Labels.parse(labels or {}, source="k8s")


def named_ports(ports: Mapping[str, str | PortProto]) -> dict[str, tuple[int, Protocol]]:
    """A pod's names for its ports: {"http": "80/TCP"}."""
    parsed = {n: p if isinstance(p, PortProto) else PortProto.parse(p) for n, p in ports.items()}
    for name, port in parsed.items():
        if not port.first or port.first != port.last or port.protocol is Protocol.ANY:
            raise InvalidError(f"named port {name!r} is {port}; write one port, as in 80/TCP")
    return {name: (port.first, port.protocol) for name, port in parsed.items()}


def check_name(name: str) -> str:
    """The name of an endpoint; InvalidError if it is none."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InvalidError(
            f"endpoint name {name!r}: write letters, digits, '.', '_' and '-', at most 63"
        )
    return name


def mac_bytes(mac: str) -> bytes:
    """The six bytes of a MAC address."""
    if not _MAC.fullmatch(mac.lower()):
        raise InvalidError(f"{mac!r} is no MAC address; write 02:00:00:00:00:01")
    return bytes.fromhex(mac.replace(":", ""))


def endpoint_row(endpoint: Endpoint) -> dict[str, object]:
    """The endpoint's value in the map `endpoints`."""
    return {
        "ifindex": endpoint.ifindex,
        "identity": endpoint.identity,
        "id": endpoint.id,
        "flags": _ENDPOINT_HOST if endpoint.identity == ReservedIdentity.HOST else 0,
        "mac": mac_bytes(endpoint.mac),
        "node_mac": mac_bytes(endpoint.node_mac),
    }


def device_row(endpoint: Endpoint) -> dict[str, object]:
    """The endpoint's value in the map `devices`."""
    return {"endpoint": endpoint.id, "node_mac": mac_bytes(endpoint.node_mac)}


def put_row(table: Map, key: object, row: Mapping[str, object]) -> None:
    """Write a row of `endpoints` or `devices`, if it is not there just so.

    A hash puts a row's successor at the head of a list and then takes the row out: a program that
    is between the two meanwhile finds neither (htab_map_update_elem, kernel/bpf/hashtab.c).
    """
    held = table.get(key)
    if held is None or any(getattr(held, field) != value for field, value in row.items()):
        table[key] = row
