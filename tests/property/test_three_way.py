"""Model, table and program give one verdict: the third one by running the program on packets.

The program runs in this kernel, so this one property needs root.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import Phase, example, given, settings

from pyciliumlib.flow import DropReason
from pyciliumlib.identity import ReservedIdentity
from pyciliumlib.policy import Direction, PolicySettings, Repository, Verdict
from pyciliumlib.policy.resolve import EndpointPolicy
from pyciliumlib.policy.table import Hit, PolicyLookup
from pyciliumlib.types import Protocol
from tests.bpf import harness
from tests.bpf.harness import Rig
from tests.bpf.prober import ICMP_REPLIES, Answer, Probe, Prober
from tests.property import strategies
from tests.property.strategies import Target, World

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: run `sudo make test`")

SUBJECT = harness.CLIENT
DENIED = {DropReason.POLICY, DropReason.POLICY_DENY}
NUMBERS = tuple(sorted(strategies.IDENTITIES))


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    with harness.devices() as where, harness.rig(where, sizes={"ipcache": 256}) as made:
        yield made


@pytest.fixture(scope="module")
def prober(rig: Rig) -> Prober:
    return Prober(rig)


@pytest.fixture(scope="module")
def host_prober() -> Iterator[Prober]:
    """At the uplink of a node, which is the endpoint HOST."""
    sizes = {"ipcache": 256}
    with harness.devices() as where, harness.rig(where, "host", sizes=sizes) as made:
        made.place_host()
        yield Prober(made, host=True)


def written(
    rig: Rig, world: World, settings: PolicySettings | None = None, endpoint: int = SUBJECT
) -> tuple[Repository, EndpointPolicy]:
    """The documents in the model and in the kernel; no flows."""
    repository = Repository(settings)
    repository.update_identities(strategies.PARSED, named_ports=strategies.PEER_PORTS)
    repository.apply(world.documents)
    policy = repository.add_endpoint(endpoint, world.subject, strategies.SUBJECT_PORTS)
    entries = policy.entries()
    rig.clear_rules(endpoint)
    if len(entries):
        rig.rules(endpoint, entries.keys, entries.values)
    for table in ("flows", "pending"):
        rig.maps[table].clear()
    return repository, policy


@pytest.fixture(scope="module")
def seen() -> Iterator[set[str]]:
    """The verdicts that came up; all three must, or the property says little."""
    verdicts: set[str] = set()
    yield verdicts
    assert verdicts == {verdict.value for verdict in Verdict}


#: Every verdict in one: an L7 rule, a deny, and what nobody allows.
ALL_VERDICTS = World(
    [
        {
            "apiVersion": "cilium.io/v2",
            "kind": "CiliumNetworkPolicy",
            "metadata": {"name": "p", "namespace": "default"},
            "spec": {
                "endpointSelector": {},
                "ingress": [
                    {
                        "fromEndpoints": [{}],
                        "toPorts": [
                            {
                                "ports": [{"port": "80", "protocol": "TCP"}],
                                "rules": {"http": [{"method": "GET"}]},
                            }
                        ],
                    },
                    {"fromEntities": ["world"]},
                ],
                "ingressDeny": [{"fromCIDR": ["10.1.0.0/16"]}],
            },
        }
    ],
    strategies.pod("default", "a", "fe"),
)


@example(ALL_VERDICTS, [Target("ingress", "TCP", 80), Target("ingress", "UDP", 53)])
# Not shrunk: that takes minutes of packets, and the message names identity and target.
@settings(max_examples=40, deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate))
@given(strategies.worlds(), strategies.target_sets())
def test_model_table_and_program_agree(
    rig: Rig, prober: Prober, seen: set[str], world: World, targets: list[Target]
) -> None:
    """For any documents and packets of every identity: the same verdict, and the same rule."""
    repository, policy = written(rig, world)
    table = PolicyLookup.of(policy.entries())
    probes = probes_of(targets)
    for probe, answer in zip(probes, prober.ask(probes), strict=True):
        model = repository.decide(world.party, probe.identity, probe.direction, port_of(probe))
        hit = lookup(table, probe)
        found = model.verdict, hit.verdict, verdict_of(answer)
        assert len(set(found)) == 1, (probe, found, answer)
        assert answer == Answer(hit.drop_reason, hit.rule), probe
        seen.add(model.verdict.value)


@example(ALL_VERDICTS, [Target("ingress", "TCP", 80), Target("ingress", "UDP", 53)])
@settings(max_examples=15, deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate))
@given(strategies.worlds(), strategies.target_sets())
def test_an_audit_passes_what_would_be_denied(
    rig: Rig, prober: Prober, world: World, targets: list[Target]
) -> None:
    """In all three: the same rule, the verdict without what denies, and the word of it."""
    plain = Repository()
    plain.update_identities(strategies.PARSED, named_ports=strategies.PEER_PORTS)
    plain.apply(world.documents)
    repository, policy = written(rig, world, PolicySettings(audit=True))
    table = PolicyLookup.of(policy.entries())
    probes = probes_of(targets)
    for probe, answer in zip(probes, prober.ask(probes), strict=True):
        ends = world.party, probe.identity, probe.direction, port_of(probe)
        denied = plain.decide(*ends).verdict is Verdict.DENY
        model, hit = repository.decide(*ends), lookup(table, probe)
        found = model.verdict, hit.verdict, verdict_of(answer)
        assert len(set(found)) == 1 and Verdict.DENY not in found, (probe, found)
        assert [model.audited, hit.audited, answer.audited] == [denied] * 3
        assert answer.rule == hit.rule


@example(ALL_VERDICTS, [Target("ingress", "TCP", 80), Target("ingress", "UDP", 53)])
@settings(max_examples=30, deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate))
@given(strategies.worlds(), strategies.target_sets())
def test_the_node_is_one_more_endpoint(
    host_prober: Prober, world: World, targets: list[Target]
) -> None:
    """The same rules about the node: model, table, and the program at its uplink."""
    on_node = World([of_node(item) for item in world.documents if "spec" in item], NODE)
    host = PolicySettings(host_firewall=True)
    repository, policy = written(host_prober.rig, on_node, host, harness.HOST)
    table = PolicyLookup.of(policy.entries())
    # nobody outside of the node has its identity
    probes = [probe for probe in probes_of(targets) if probe.identity != ReservedIdentity.HOST]
    for probe, answer in zip(probes, host_prober.ask(probes), strict=True):
        model = repository.decide(on_node.party, probe.identity, probe.direction, port_of(probe))
        hit = lookup(table, probe)
        found = model.verdict, hit.verdict, verdict_of(answer)
        assert len(set(found)) == 1, (probe, found, answer)
        assert answer == Answer(hit.drop_reason, hit.rule), probe


NODE = ["reserved:host", "k8s:role=edge"]


def of_node(document: dict[str, Any]) -> dict[str, Any]:
    """The rules of a document as rules about nodes, which have no requests (L7)."""
    if document["kind"] not in ("CiliumNetworkPolicy", "CiliumClusterwideNetworkPolicy"):
        return document
    spec = {key: value for key, value in document["spec"].items() if key != "endpointSelector"}
    return {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumClusterwideNetworkPolicy",
        "metadata": {"name": document["metadata"]["name"]},
        "spec": {"nodeSelector": {"matchLabels": {"role": "edge"}}, **_without_requests(spec)},
    }


def _without_requests(item: Any) -> Any:
    if isinstance(item, dict):
        return {key: _without_requests(value) for key, value in item.items() if key != "rules"}
    return [_without_requests(each) for each in item] if isinstance(item, list) else item


def probes_of(targets: list[Target]) -> list[Probe]:
    """A packet of every identity to every target that a packet can have."""
    kinds = [(Protocol.parse(t.protocol), t) for t in targets]
    return [
        Probe(Direction[target.direction.upper()], number, protocol, target.port)
        for protocol, target in kinds
        if (protocol, target.port) not in ICMP_REPLIES
        for number in NUMBERS
    ]


def port_of(probe: Probe) -> str:
    return f"{probe.port}/{probe.protocol}"


def lookup(table: PolicyLookup, probe: Probe) -> Hit:
    return table.lookup(probe.direction, probe.identity, probe.protocol, probe.port)


def verdict_of(answer: Answer) -> Verdict:
    if answer.reason == DropReason.NO_PROXY:
        return Verdict.REDIRECT
    assert answer.reason in {0, *DENIED}, answer
    return Verdict.DENY if answer.reason else Verdict.ALLOW
