"""One policy case made ready: its documents in a repository, its subject, its peers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import yaml
from attrs import frozen

from pyciliumlib.policy import Direction, Party, PolicySettings, Repository, parse
from pyciliumlib.policy.resolve import EndpointPolicy
from pyciliumlib.types import Protocol

SUBJECT = 1
#: Numbers of peers to which the oracle gave none.
_FIRST_NUMBER = 0x20000
#: Agent options of a case, and the setting that each is.
_SETTINGS = {
    "cluster_name": "cluster_name",
    "enable_extended_ip_protocols": "extended_protocols",
    "enable_host_firewall": "host_firewall",
    "enable_icmp_rules": "icmp_rules",
    "enable_ipv4": "enable_ipv4",
    "enable_ipv6": "enable_ipv6",
    "enable_l7_proxy": "l7_proxy",
    "enable_node_selector_labels": "node_selectors",
    "enable_non_default_deny_policies": "non_default_deny",
    "policy_audit_mode": "audit",
    "policy_default_local_cluster": "default_local_cluster",
    "policy_enforcement": "enforcement",
}
_MATCH_MODE = "policy_cidr_match_mode"
#: The cases of Cilium 1.9 know no clusters, and their local host has no allowance.
_LEGACY_SETTINGS = PolicySettings(
    enable_ipv6=False, default_local_cluster=False, allow_localhost=False
)


@frozen
class Question:
    """One probe: who is asked about, and what."""

    direction: Direction
    peer: Party
    protocol: Protocol
    port: int

    @property
    def target(self) -> str:
        return f"{self.port}/{self.protocol}"

    @property
    def identity(self) -> int:
        assert self.peer.identity is not None
        return self.peer.identity

    def __str__(self) -> str:
        return f"{self.direction} {self.peer} {self.target}"


@frozen
class Scene:
    """A case that Cilium accepts, and what this engine makes of it."""

    case: Mapping[str, Any]
    repository: Repository
    subject: Party
    peers: Mapping[str, Party]

    @property
    def policy(self) -> EndpointPolicy:
        """The subject's."""
        return self.repository.policy(SUBJECT)

    def questions(self) -> Iterator[tuple[Mapping[str, Any], Question]]:
        """Every probe with an answer, and what it asks."""
        for probe in self.case["probes"]:
            if probe["verdict"]:
                peer = probe["peer"] if "peer" in probe else str(tuple(probe["peer_labels"]))
                yield (
                    probe,
                    Question(
                        Direction[probe["direction"].upper()],
                        self.peers[peer],
                        Protocol.parse(probe["proto"]),
                        probe["port"],
                    ),
                )


def unknown_options(case: Mapping[str, Any]) -> list[str]:
    """Options of the case that nothing here knows the meaning of."""
    known = {*_SETTINGS, _MATCH_MODE, "allow_localhost"}
    return sorted(case.get("config", {}).keys() - known)


def scene(case: Mapping[str, Any]) -> Scene:
    """Apply a case's documents. Raises PolicyError if they are refused."""
    old = "subject_labels" in case
    settings = _LEGACY_SETTINGS if old else settings_of(case.get("config", {}))
    repository = Repository(settings)
    subject = _party("subject", {"labels": case["subject_labels"]} if old else case["subject"])
    peers = _peers(case)
    for peer in peers.values():
        _add_identity(repository, peer)
    repository.add_endpoint(SUBJECT, subject.labels, subject.named_ports)
    documents = [d for d in yaml.safe_load_all(case["policies"]) if _is_policy(d, case)]
    documents += [_group(*item) for item in case.get("cidr_groups", {}).items()]
    repository.apply(parse(documents, settings, prune=not old))
    return Scene(case, repository, subject, peers)


def settings_of(config: Mapping[str, Any]) -> PolicySettings:
    """The settings of a case; its defaults are IPv4 alone."""
    options = {_SETTINGS[key]: value for key, value in config.items() if key in _SETTINGS}
    return PolicySettings(
        **{"enable_ipv6": False, **options},
        allow_localhost=config.get("allow_localhost", "always") != "policy",
        cidr_match_nodes="nodes" in config.get(_MATCH_MODE, ()),
    )


def _peers(case: Mapping[str, Any]) -> dict[str, Party]:
    """By name (or labels, where the case gives no names), each with a number of its own."""
    if "peers" in case:
        found = dict(case["peers"])
    else:
        sets = {tuple(probe["peer_labels"]) for probe in case["probes"]}
        found = {str(labels): {"labels": labels} for labels in sorted(sets)}
    return {
        name: _party(name, {**data, "identity": data.get("identity") or _FIRST_NUMBER + index})
        for index, (name, data) in enumerate(found.items())
    }


def _party(name: str, data: Mapping[str, Any]) -> Party:
    """A subject or peer as the oracle saw it: with the labels of its identity."""
    labels = data.get("identity_labels") or data.get("labels")
    if labels is None:
        labels = [f"reserved:{data['reserved']}"] if "reserved" in data else ["reserved:world"]
    named = {
        key: (port["port"], Protocol.parse(port["proto"]))
        for key, port in (data.get("named_ports") or {}).items()
    }
    return Party(labels, named, data.get("identity"), name)


def _add_identity(repository: Repository, peer: Party) -> None:
    assert peer.identity is not None
    names = {peer.identity: peer.named_ports} if peer.named_ports else {}
    repository.update_identities({peer.identity: peer.labels}, named_ports=names)


def _group(name: str, data: Mapping[str, Any]) -> dict[str, Any]:
    """A group that was there, as its object."""
    return {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumCIDRGroup",
        "metadata": {"name": name, "labels": data["labels"]},
        "spec": {"externalCIDRs": data["cidrs"]},
    }


def _is_policy(document: Any, case: Mapping[str, Any]) -> bool:
    """Whether the oracle looked at a document: it passed over Deployments and the like."""
    if not document:
        return False
    skipped = case.get("expected", {}).get("unknown_field_warnings", [])
    return f"skipped object of kind {document.get('kind')}" not in skipped
