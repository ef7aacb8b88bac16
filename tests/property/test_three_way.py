"""Model, table and program give one verdict: the third one by running the program on packets.

The program runs in this kernel, so this one property needs root.
"""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Iterator

import pytest
from hypothesis import Phase, example, given, settings

from pyciliumlib.flow import DropReason, FlowType
from pyciliumlib.policy import Direction, PolicySettings, Repository, Verdict
from pyciliumlib.policy.resolve import EndpointPolicy
from pyciliumlib.policy.table import PolicyLookup
from pyciliumlib.types import Protocol, parse_address
from tests.bpf import harness, packets
from tests.bpf.packets import V4, V6, Family
from tests.property import strategies
from tests.property.strategies import Target, World

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: run `sudo make test`")

SUBJECT = harness.CLIENT
DENIED = {DropReason.POLICY, DropReason.POLICY_DENY}
#: Types that policy judges as they are: an answer to a ping is judged as the ping would be.
ICMP_TYPES = {"ICMP": (3, 8), "ICMPv6": (3, 128)}
#: The flag of an event about what only an audit let pass.
AUDITED = 16
NUMBERS = tuple(sorted(strategies.IDENTITIES))


@pytest.fixture(scope="module")
def rig() -> Iterator[harness.Rig]:
    """The loaded programs, and an address of each family for every identity."""
    with harness.devices() as where, harness.rig(where, sizes={"ipcache": 256}) as made:
        for number in NUMBERS:
            for family in packets.FAMILIES:
                made.set_identity(address(family, number), number)
        yield made


def address(family: Family, number: int) -> str:
    """Where the identity lives: an address that is no endpoint's."""
    index = NUMBERS.index(number)
    return f"10.200.0.{index}" if family.version == 4 else f"fd00:200::{index:x}"


@functools.cache
def template(family: Family, target: Target) -> bytes:
    """A packet that opens a flow to or from the subject; the other end's address is to be set."""
    out = target.direction == "egress"
    ends = (family.client, family.peer) if out else (family.peer, family.client)
    if target.protocol.startswith("ICMP"):
        if target.port == family.echo_request:
            return family.echo(*ends, identifier=1 if out else 2)
        return family.icmp_message(*ends, target.port)
    build = getattr(family, target.protocol.lower())
    frame: bytes = build(*ends, dport=target.port, sport=40000 if out else 40001)
    return frame


def packet(family: Family, target: Target, number: int) -> bytes:
    """The target's packet to or from the identity. (No program looks at checksums.)"""
    data = parse_address(address(family, number)).packed
    frame = bytearray(template(family, target))
    source = 26 if family.version == 4 else 22
    at = source + len(data) if target.direction == "egress" else source
    frame[at : at + len(data)] = data
    return bytes(frame)


def family_of(target: Target, number: int) -> Family:
    if target.protocol.startswith("ICMP"):
        return V4 if target.protocol == "ICMP" else V6
    return packets.FAMILIES[(number + target.port) % 2]


def written(
    rig: harness.Rig, world: World, settings: PolicySettings | None = None
) -> tuple[Repository, EndpointPolicy]:
    """The documents in the model and in the kernel; no flows."""
    repository = Repository(settings)
    repository.update_identities(strategies.PARSED)
    repository.apply(world.documents)
    policy = repository.add_endpoint(SUBJECT, world.subject)
    entries = policy.entries()
    rig.clear_rules(SUBJECT)
    if len(entries):
        rig.rules(SUBJECT, entries.keys, entries.values)
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
@settings(max_examples=25, deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate))
@given(strategies.worlds(), strategies.target_sets())
def test_model_table_and_program_agree(
    rig: harness.Rig, seen: set[str], world: World, targets: list[Target]
) -> None:
    """For any documents and packets of every identity: the same verdict, and the same rule."""
    repository, policy = written(rig, world)
    table = PolicyLookup.of(policy.entries())
    asked = [t for t in targets if t.port in ICMP_TYPES.get(t.protocol, (t.port,))]
    for number, target in itertools.product(NUMBERS, asked):
        direction = Direction[target.direction.upper()]
        protocol = Protocol.parse(target.protocol)
        model = repository.decide(
            world.subject, number, direction, f"{target.port}/{target.protocol}"
        )
        hit = table.lookup(direction, number, protocol, target.port)
        hook = harness.FROM if direction is Direction.EGRESS else harness.TO
        outcome = rig.send(hook, SUBJECT, packet(family_of(target, number), target, number))
        found = model.verdict, hit.verdict, verdict_of(outcome)
        assert len(set(found)) == 1, (number, target, found, str(outcome))
        assert outcome.drop == hit.drop_reason
        assert outcome.verdicts == [(int(direction), hit.drop_reason, hit.rule)]
        seen.add(model.verdict.value)


@example(ALL_VERDICTS, [Target("ingress", "TCP", 80), Target("ingress", "UDP", 53)])
@settings(max_examples=8, deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate))
@given(strategies.worlds(), strategies.target_sets())
def test_an_audit_passes_what_would_be_denied(
    rig: harness.Rig, world: World, targets: list[Target]
) -> None:
    """In all three: the same rule, the verdict without what denies, and the word of it."""
    plain = Repository()
    plain.apply(world.documents)
    repository, policy = written(rig, world, PolicySettings(audit=True))
    table = PolicyLookup.of(policy.entries())
    asked = [t for t in targets if t.port in ICMP_TYPES.get(t.protocol, (t.port,))]
    for number, target in itertools.product(NUMBERS, asked):
        direction = Direction[target.direction.upper()]
        protocol = Protocol.parse(target.protocol)
        what = f"{target.port}/{target.protocol}"
        peer = repository.identity(number)
        denied = plain.decide(world.subject, peer, direction, what).verdict is Verdict.DENY
        model = repository.decide(world.subject, number, direction, what)
        hit = table.lookup(direction, number, protocol, target.port)
        hook = harness.FROM if direction is Direction.EGRESS else harness.TO
        outcome = rig.send(hook, SUBJECT, packet(family_of(target, number), target, number))
        found = model.verdict, hit.verdict, verdict_of(outcome)
        assert len(set(found)) == 1 and Verdict.DENY not in found, (number, target, found)
        (told,) = [event for event in outcome.events if event.type == FlowType.VERDICT]
        assert [model.audited, hit.audited, bool(told.flags & AUDITED)] == [denied] * 3
        assert told.rule == hit.rule


def verdict_of(outcome: harness.Outcome) -> Verdict:
    if outcome.passed:
        return Verdict.ALLOW
    if outcome.drop == DropReason.NO_PROXY:
        return Verdict.REDIRECT
    assert outcome.drop in DENIED, str(outcome)
    return Verdict.DENY
