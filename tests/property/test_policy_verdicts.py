"""The naive reference, the model and the map entries give one verdict."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from pyciliumlib.policy import Direction, Repository
from pyciliumlib.policy.table import PolicyLookup
from pyciliumlib.types import Protocol
from tests.property import reference, strategies
from tests.property.strategies import Packet, World

SUBJECT = 1


def _repository(world: World) -> Repository:
    repository = Repository()
    repository.update_identities(strategies.PARSED)
    repository.apply(world.documents)
    repository.add_endpoint(SUBJECT, world.subject)
    return repository


@settings(max_examples=150, deadline=None)
@given(strategies.worlds(), st.lists(strategies.packets(), min_size=20, max_size=40))
def test_reference_model_and_table_agree(world: World, packets: list[Packet]) -> None:
    """For any documents, identities and packets the three give the same verdict."""
    repository = _repository(world)
    table = PolicyLookup.of(repository.policy(SUBJECT).entries())
    subject = reference.read_labels(world.subject)
    for packet in packets:
        peer = world.identities[packet.identity]
        expected = reference.verdict(
            world.documents,
            subject,
            reference.read_labels(peer),
            packet.direction,
            packet.protocol,
            packet.port,
        )
        direction = Direction[packet.direction.upper()]
        model = repository.decide(
            world.subject, packet.identity, direction, f"{packet.port}/{packet.protocol}"
        )
        hit = table.lookup(direction, packet.identity, Protocol.parse(packet.protocol), packet.port)
        assert (expected, expected) == (model.verdict.value, hit.verdict.value), packet


@settings(max_examples=60, deadline=None)
@given(strategies.worlds(), st.lists(strategies.packets(), min_size=10, max_size=30))
def test_the_cookie_names_the_rules_that_the_model_names(
    world: World, packets: list[Packet]
) -> None:
    """Each rule behind the entry that decided is one that decided in the model."""
    repository = _repository(world)
    policy = repository.policy(SUBJECT)
    table = PolicyLookup.of(policy.entries())
    for packet in packets:
        direction = Direction[packet.direction.upper()]
        hit = table.lookup(direction, packet.identity, Protocol.parse(packet.protocol), packet.port)
        decision = repository.decide(
            world.subject, packet.identity, direction, f"{packet.port}/{packet.protocol}"
        )
        if not hit.rule:
            assert not decision.clauses
            continue
        derivation = policy.derivation(hit.rule)
        assert derivation is not None
        named = {source for source in derivation.sources if source.kind != "reserved"}
        assert named <= {clause.source for clause in decision.clauses}
