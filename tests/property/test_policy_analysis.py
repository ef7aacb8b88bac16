"""Differences and suggestions, held against the model pair by pair."""

from __future__ import annotations

import itertools
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from pyciliumlib.policy import Party, Repository, Verdict
from pyciliumlib.policy.analysis import Connection, suggest
from pyciliumlib.types import Protocol
from tests.property import strategies
from tests.property.strategies import Target

FEW = {str(n): Party(strategies.PARSED[n]) for n in sorted(strategies.PARSED)[::5]}


@settings(max_examples=30, deadline=None)
@given(
    strategies.document_sets(max_size=2),
    strategies.document_sets(max_size=2),
    strategies.target_sets(),
)
def test_a_difference_is_told_where_the_model_differs_and_nowhere_else(
    before: list[dict[str, Any]], after: list[dict[str, Any]], targets: list[Target]
) -> None:
    """For any pair and port: there is a range with these verdicts, or none holds the port."""
    old, new = Repository(), Repository()
    old.apply(before)
    new.apply(before)
    new.apply(after)
    told: dict[tuple[str, str], list[Any]] = {}
    for item in old.diff(after, FEW):
        told.setdefault((item.source, item.destination), []).append(item)
    for (source, destination), target in itertools.product(
        itertools.product(FEW, FEW), targets[:3]
    ):
        port = f"{target.port}/{target.protocol}"
        ends = FEW[source], FEW[destination]
        verdicts = old.explain(*ends, port).verdict, new.explain(*ends, port).verdict
        here = [
            (item.before, item.after)
            for item in told.get((source, destination), ())
            if item.ports.protocol is Protocol.parse(target.protocol)
            and item.ports.first <= target.port <= item.ports.last
        ]
        assert here == ([verdicts] if verdicts[0] is not verdicts[1] else [])


PODS = [
    Party(strategies.pod(namespace, app, tier), name=f"{namespace}/{app}/{tier}")
    for namespace in strategies.NAMESPACES
    for app in strategies.APPS
    for tier in (*strategies.TIERS, None)
]
#: (A prefix lies in the world, so only one of the two can be told apart.)
PEERS = [
    *PODS,
    Party(["reserved:remote-node"]),
    Party(["cidr:10.1.2.3/32", "reserved:world-ipv4"]),
]
PORTS = [(Protocol.TCP, 80), (Protocol.TCP, 443), (Protocol.UDP, 53), (Protocol.ICMP, 8)]
seen = st.lists(
    st.tuples(st.sampled_from(PODS), st.sampled_from(PEERS), st.sampled_from(PORTS)),
    min_size=1,
    max_size=8,
)


@settings(max_examples=40, deadline=None)
@given(seen, st.booleans())
def test_a_suggestion_allows_what_was_seen_and_nothing_else(
    found: list[tuple[Party, Party, tuple[Protocol, int]]], inbound: bool
) -> None:
    """Among those who were seen, on the ports that were seen; both sides are governed."""
    connections = [
        Connection(peer, pod, *port) if inbound else Connection(pod, peer, *port)
        for pod, peer, port in found
    ]
    repository = Repository()
    repository.apply(str(suggest(connections)))
    ends = list(dict.fromkeys(end for c in connections for end in (c.source, c.destination)))
    wanted = {(c.source, c.destination, c.protocol, c.port) for c in connections}
    for source, destination, (protocol, port) in itertools.product(ends, ends, PORTS):
        if source not in PODS and destination not in PODS:
            continue  # nobody governs either
        verdict = repository.explain(source, destination, f"{port}/{protocol}").verdict
        allowed = (source, destination, protocol, port) in wanted
        assert (verdict is Verdict.ALLOW) == allowed, (source, destination, protocol, port)
