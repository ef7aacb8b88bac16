"""The naive reference, the model and the map entries give one verdict."""

from __future__ import annotations

import itertools

from hypothesis import given, settings

from pyciliumlib.policy import Direction, Repository
from pyciliumlib.policy.table import PolicyLookup
from pyciliumlib.types import Protocol
from tests.property import reference, strategies
from tests.property.strategies import Target, World

SUBJECT = 1
_PEERS = {number: reference.read_labels(texts) for number, texts in strategies.IDENTITIES.items()}


def _repository(world: World) -> Repository:
    repository = Repository()
    repository.update_identities(strategies.PARSED, named_ports=strategies.PEER_PORTS)
    repository.apply(world.documents)
    repository.add_endpoint(SUBJECT, world.subject, strategies.SUBJECT_PORTS)
    return repository


def _names(direction: str, identity: int) -> reference.PortNames:
    """The names of whoever listens."""
    names = strategies.SUBJECT_PORTS
    if direction == "egress":
        names = strategies.PEER_PORTS.get(identity, {})
    return {name: (port, str(protocol)) for name, (port, protocol) in names.items()}


@settings(max_examples=60, deadline=None)
@given(strategies.worlds(), strategies.target_sets())
def test_reference_model_and_table_agree(world: World, targets: list[Target]) -> None:
    """For any documents and packets of every identity the three give the same verdict."""
    repository = _repository(world)
    table = PolicyLookup.of(repository.policy(SUBJECT).entries())
    subject = reference.read_labels(world.subject)
    for identity, target in itertools.product(_PEERS, targets):
        expected = reference.verdict(
            world.documents,
            subject,
            _PEERS[identity],
            target.direction,
            target.protocol,
            target.port,
            _names(target.direction, identity),
        )
        direction = Direction[target.direction.upper()]
        model = repository.decide(
            world.party, identity, direction, f"{target.port}/{target.protocol}"
        )
        hit = table.lookup(direction, identity, Protocol.parse(target.protocol), target.port)
        found = {"model": model.verdict.value, "table": hit.verdict.value}
        assert found == {"model": expected, "table": expected}, (identity, target)


@settings(max_examples=15, deadline=None)
@given(strategies.worlds(), strategies.target_sets())
def test_the_cookie_names_rules_that_the_model_names(world: World, targets: list[Target]) -> None:
    """Each rule behind the entry that decided is one that decided in the model."""
    repository = _repository(world)
    table = PolicyLookup.of(repository.policy(SUBJECT).entries())
    for identity, target in itertools.product(_PEERS, targets):
        direction = Direction[target.direction.upper()]
        hit = table.lookup(direction, identity, Protocol.parse(target.protocol), target.port)
        decision = repository.decide(
            world.party, identity, direction, f"{target.port}/{target.protocol}"
        )
        if not hit.rule:
            assert not decision.clauses
            continue
        derivation = repository.derivation(hit.rule)
        assert derivation is not None
        named = {source for source in derivation.sources if source.kind != "reserved"}
        assert named <= {clause.source for clause in decision.clauses}
