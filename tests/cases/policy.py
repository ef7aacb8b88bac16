"""Policy cases: documents, a subject, peers, and the verdict of each probe.

Every probe is put to the model and to a lookup in the resolved map entries.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import yaml
from attrs import define, field, frozen

from pyciliumlib.errors import PolicyError, UnsupportedError
from pyciliumlib.policy import Direction, Party, PolicySettings, Repository, parse
from pyciliumlib.policy.model import Authentication
from pyciliumlib.policy.table import PolicyLookup
from pyciliumlib.types import Protocol

SUBJECT = 1
#: Numbers of peers to which the oracle gave none.
_FIRST_NUMBER = 0x20000
#: Agent options of a case, and the setting that each is.
_SETTINGS = {
    "cluster_name": "cluster_name",
    "enable_ipv4": "enable_ipv4",
    "enable_ipv6": "enable_ipv6",
    "policy_default_local_cluster": "default_local_cluster",
    "enable_node_selector_labels": "node_selectors",
    "enable_host_firewall": "host_firewall",
    "policy_enforcement": "enforcement",
}
#: The cases of Cilium 1.9 know no clusters, and their local host has no allowance.
_LEGACY_SETTINGS = PolicySettings(
    enable_ipv6=False, default_local_cluster=False, allow_localhost=False
)
#: By Cilium's name for who authenticates.
_AUTHENTICATION = {
    "": Authentication.DISABLED,
    "disabled": Authentication.DISABLED,
    "spire": Authentication.REQUIRED,
    "test-always-fail": Authentication.TEST_ALWAYS_FAIL,
}
#: They call their verdicts otherwise; an empty one was not computed.
_LEGACY_VERDICTS = {"allowed": ("allow", "redirect"), "denied": ("deny",)}


@frozen
class Result:
    """How a case came out: how many probes it put, and what differed; or why it could not run."""

    name: str
    probes: int = 0
    differences: tuple[str, ...] = ()
    unsupported: tuple[str, ...] = ()


@define
class Report:
    """The results of one file."""

    file: str
    results: list[Result] = field(factory=list)

    @property
    def differing(self) -> list[Result]:
        return [result for result in self.results if result.differences]

    @property
    def unsupported(self) -> list[Result]:
        return [result for result in self.results if result.unsupported]

    def __str__(self) -> str:
        probes = sum(result.probes for result in self.results)
        wrong = sum(len(result.differences) for result in self.results)
        lines = [
            f"{self.file}: {len(self.results)} cases, {probes} probes, {wrong} differ "
            f"(in {len(self.differing)} cases), {len(self.unsupported)} cases not supported yet"
        ]
        kinds: dict[str, int] = {}
        for result in self.unsupported:
            for kind in set(result.unsupported):
                kinds[kind] = kinds.get(kind, 0) + 1
        lines += [f"    not supported: {kind} ({count})" for kind, count in sorted(kinds.items())]
        return "\n".join(lines)


def run_file(name: str, cases: list[dict[str, Any]]) -> Report:
    """Run all cases of a file."""
    return Report(name, [run_case(case) for case in cases])


def run_case(case: Mapping[str, Any]) -> Result:
    """Compare one case."""
    name = case["name"]
    expected_valid = case.get("expected", {}).get("valid", not case.get("error"))
    config = case.get("config", {})
    if unknown := config.keys() - _SETTINGS.keys() - {"allow_localhost"}:
        return Result(name, unsupported=tuple(f"option {option}" for option in sorted(unknown)))
    settings = _LEGACY_SETTINGS if "subject_labels" in case else settings_of(config)
    try:
        repository = Repository(settings)
        subject = party(name="subject", data=_subject(case))
        peers = _peers(case)
        for peer in peers.values():
            _add_identity(repository, peer)
        repository.add_endpoint(SUBJECT, subject.labels, subject.named_ports)
        documents = [d for d in yaml.safe_load_all(case["policies"]) if _is_policy(d, case)]
        documents += [_group(*item) for item in case.get("cidr_groups", {}).items()]
        repository.apply(parse(documents, settings, prune="subject_labels" not in case))
    except UnsupportedError as error:
        return Result(name, unsupported=tuple(map(_kind_of, error.problems)))
    except PolicyError as error:
        return Result(name, differences=(f"refused: {error}",) if expected_valid else ())
    if not expected_valid:
        return Result(name, differences=("accepted, and should be refused",))
    probes = list(case["probes"])
    return Result(name, len(probes), tuple(_compare(case, probes, repository, subject, peers)))


def settings_of(config: Mapping[str, Any]) -> PolicySettings:
    """The settings of a case; its defaults are IPv4 alone."""
    options = {_SETTINGS[key]: value for key, value in config.items() if key in _SETTINGS}
    return PolicySettings(
        **{"enable_ipv6": False, **options},
        allow_localhost=config.get("allow_localhost", "always") != "policy",
    )


def _subject(case: Mapping[str, Any]) -> Mapping[str, Any]:
    if "subject" in case:
        return dict(case["subject"])
    return {"labels": case["subject_labels"]}


def _peers(case: Mapping[str, Any]) -> dict[str, Party]:
    """By name (or labels, where the case gives no names), each with a number of its own."""
    if "peers" in case:
        found = dict(case["peers"])
    else:
        sets = {tuple(probe["peer_labels"]) for probe in case["probes"]}
        found = {str(labels): {"labels": labels} for labels in sorted(sets)}
    return {
        name: party(name, {**data, "identity": data.get("identity") or _FIRST_NUMBER + index})
        for index, (name, data) in enumerate(found.items())
    }


def party(name: str, data: Mapping[str, Any]) -> Party:
    """A subject or peer as the oracle saw it: with the labels of its identity."""
    labels = data.get("identity_labels") or data.get("labels")
    if labels is None:
        labels = [f"reserved:{data['reserved']}"] if "reserved" in data else ["reserved:world"]
    named = {
        key: (port["port"], Protocol.parse(port["proto"]))
        for key, port in (data.get("named_ports") or {}).items()
    }
    return Party(labels, named, data.get("identity"), name)


def _number(peer: Party) -> int:
    assert peer.identity is not None
    return peer.identity


def _add_identity(repository: Repository, peer: Party) -> None:
    number = _number(peer)
    names = {number: peer.named_ports} if peer.named_ports else {}
    repository.update_identities({number: peer.labels}, named_ports=names)


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


def _kind_of(problem: str) -> str:
    """The field (or kind of object) that a problem is about."""
    path, _, text = problem.partition(": not supported yet: ")
    field_name = path.rpartition(".")[2].rpartition(": ")[2].partition("[")[0]
    return text.partition(" objects")[0] if field_name == "kind" else field_name


def _compare(
    case: Mapping[str, Any],
    probes: list[dict[str, Any]],
    repository: Repository,
    subject: Party,
    peers: Mapping[str, Party],
) -> Iterator[str]:
    policy = repository.policy(SUBJECT)
    table = PolicyLookup.of(policy.entries())
    expected = case.get("expected", {})
    for direction in Direction:
        wanted = expected.get(f"{direction}_enforced")
        if wanted is not None and wanted != (direction in policy.enforced):
            yield f"{direction} enforced: {not wanted}, Cilium says {wanted}"
    for probe in probes:
        peer = peers[probe["peer"] if "peer" in probe else str(tuple(probe["peer_labels"]))]
        direction = Direction[probe["direction"].upper()]
        protocol, port = Protocol.parse(probe["proto"]), probe["port"]
        wanted = _LEGACY_VERDICTS.get(probe["verdict"], (probe["verdict"],))
        if wanted == ("",):
            continue
        target = f"{port}/{probe['proto']}"
        decision = repository.decide(subject, peer, direction, target)
        hit = table.lookup(direction, _number(peer), protocol, port)
        for what, mode in (("model", decision.authentication), ("table", hit.authentication)):
            if mode is not _AUTHENTICATION[probe.get("auth", "")]:
                yield (
                    f"{direction} {probe.get('peer', peer.labels)} {target}: {what} says "
                    f"authentication {mode}, Cilium {probe.get('auth', 'disabled')}"
                )
        for what, verdict in (("model", decision.verdict.value), ("table", hit.verdict.value)):
            if verdict not in wanted:
                yield (
                    f"{direction} {probe.get('peer', peer.labels)} {target}: {what} says {verdict},"
                    f" Cilium {probe['verdict']}"
                )
