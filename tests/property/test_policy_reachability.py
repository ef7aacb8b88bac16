"""The matrix of reachability says what the model says of each pair."""

from __future__ import annotations

import itertools
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from pyciliumlib.policy import Party, PolicySettings, Repository, Verdict
from pyciliumlib.policy.analysis.rows import CODES
from tests.property import strategies
from tests.property.strategies import Target

#: Every third identity, so that an example is quick: pods, prefixes and the reserved ones.
PARTIES = {
    str(number): Party(strategies.PARSED[number]) for number in sorted(strategies.PARSED)[::3]
}


@settings(max_examples=40, deadline=None)
@given(strategies.document_sets(), strategies.targets(), st.booleans())
def test_the_matrix_is_the_model(
    documents: list[dict[str, Any]], target: Target, audit: bool
) -> None:
    """Each cell, both sides by themselves; and what the pair comes to."""
    repository = Repository(PolicySettings(audit=audit))
    repository.apply(documents)
    port = f"{target.port}/{target.protocol}"
    found = repository.reachability(PARTIES, port)
    places = range(len(found.names))
    for source, destination in itertools.product(places, places):
        ends = PARTIES[found.names[source]], PARTIES[found.names[destination]]
        said = repository.explain(*ends, port)
        egress = said.egress.verdict if said.egress else Verdict.ALLOW
        ingress = said.ingress.verdict if said.ingress else Verdict.ALLOW
        assert found.egress[source, destination] == CODES[egress], ends
        assert found.ingress[source, destination] == CODES[ingress], ends
        assert found.verdict(found.names[source], found.names[destination]) is said.verdict
