"""What changes of identities and of documents do to entries, step by step and as a whole."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pyciliumlib.identity.labels import Labels
from pyciliumlib.identity.selector import Selector
from pyciliumlib.policy import PolicySettings, Repository
from pyciliumlib.policy.entries import KEY_DTYPE, PolicyEntries
from pyciliumlib.policy.identity_index import IdentityIndex
from pyciliumlib.policy.parse import parse
from pyciliumlib.policy.selector_index import SelectorIndex
from tests.property import strategies
from tests.property.strategies import World

Rows = dict[bytes, bytes]


def rows(entries: PolicyEntries) -> Rows:
    """Entries as bytes, key to value; two of one key are an error."""
    found = {k.tobytes(): v.tobytes() for k, v in zip(entries.keys, entries.values, strict=True)}
    assert len(found) == len(entries)
    return found


def identity_of(key: bytes) -> int:
    (entry,) = np.frombuffer(key, KEY_DTYPE)
    return int(entry["identity"])


def _all_selectors(documents: list[dict[str, Any]]) -> list[Selector]:
    parsed = parse(documents, PolicySettings())
    return [
        selector
        for document in parsed.policies
        for rule in document.rules
        for clause in rule.clauses
        for selector in clause.peers or ()
    ]


numbers = st.lists(st.sampled_from(sorted(strategies.PARSED)), unique=True, max_size=20)


@settings(max_examples=30, deadline=None)
@given(strategies.worlds(), numbers, st.lists(st.tuples(numbers, numbers), max_size=4))
def test_changes_follow_the_identities(
    world: World, first: list[int], steps: list[tuple[list[int], list[int]]]
) -> None:
    """Adding up what `changes` says gives what `entries` says, after any comings and goings."""
    repository = Repository()
    repository.update_identities({number: strategies.PARSED[number] for number in first})
    repository.apply(world.documents)
    policy = repository.add_endpoint(1, world.subject)
    held = rows(policy.entries())
    for come, go in steps:
        # numbers that are there already get the labels of another now and then
        labels = {n: strategies.PARSED[n if n % 3 else 1000] for n in come}
        delta = repository.update_identities(labels, go)
        adds, deletes = map(rows, policy.changes(delta))
        held.update(adds)
        for key in deletes:
            del held[key]
        assert held == rows(policy.entries())


@settings(max_examples=30, deadline=None)
@given(strategies.worlds(), numbers, st.lists(st.tuples(numbers, numbers), max_size=4))
def test_grouped_changes_follow_the_identities(
    world: World, first: list[int], steps: list[tuple[list[int], list[int]]]
) -> None:
    """The same by identity: whoever changed comes with all entries, or goes with all of them."""
    repository = Repository()
    repository.update_identities({number: strategies.PARSED[number] for number in first})
    repository.apply(world.documents)
    policy = repository.add_endpoint(1, world.subject)
    held = rows(policy.grouped().spread())
    assert held == rows(policy.entries())
    for come, go in steps:
        labels = {n: strategies.PARSED[n if n % 3 else 1000] for n in come}
        adds, gone = policy.grouped_changes(repository.update_identities(labels, go))
        touched = {*adds.members.tolist(), *gone.tolist()}
        assert len(touched) == len(adds.members) + len(gone) and not len(adds.anyone)
        held = {key: value for key, value in held.items() if identity_of(key) not in touched}
        held |= rows(adds.spread())
        assert held == rows(policy.entries())


@settings(max_examples=30, deadline=None)
@given(strategies.worlds(), strategies.document_sets(3))
def test_changed_documents_give_what_a_fresh_repository_gives(
    world: World, later: list[dict[str, Any]]
) -> None:
    """Replacing and undoing leave no trace: entries depend on the documents alone."""
    fresh = Repository()
    fresh.update_identities(strategies.PARSED)
    fresh.apply(world.documents)
    expected = rows(fresh.add_endpoint(1, world.subject).entries())

    used = Repository()
    used.update_identities(strategies.PARSED)
    used.add_endpoint(1, world.subject)
    before = used.apply(later)
    used.undo(before)
    change = used.apply(world.documents)
    assert expected == rows(used.policy(1).entries())
    used.undo(used.apply(later))
    assert expected == rows(used.policy(1).entries())
    assert change.revision < used.revision


@settings(max_examples=30, deadline=None)
@given(strategies.document_sets(3), numbers)
def test_the_identity_index_selects_what_a_scan_selects(
    documents: list[dict[str, Any]], gone: list[int]
) -> None:
    """The index finds exactly the identities whose labels match, also after some went."""
    index = IdentityIndex()
    for number, labels in strategies.PARSED.items():
        index.add(number, labels)
    for number in gone:
        assert index.remove(number) == strategies.PARSED[number]
    for selector in _all_selectors(documents):
        scanned = {number for number, labels in index.labels.items() if selector.matches(labels)}
        assert scanned == index.select(selector)


@settings(max_examples=30, deadline=None)
@given(strategies.document_sets(3), st.data())
def test_the_selector_index_finds_what_a_scan_finds(
    documents: list[dict[str, Any]], data: st.DataObject
) -> None:
    """For every identity it finds the selectors that match, also after some were taken out."""
    selectors = list(dict.fromkeys(_all_selectors(documents)))
    index = SelectorIndex()
    for selector in selectors:
        index.add(selector)
    for selector in data.draw(st.sets(st.sampled_from(selectors)) if selectors else st.just(set())):
        index.remove(selector)
        selectors.remove(selector)
    for labels in (*strategies.PARSED.values(), Labels()):
        found = index.matching(labels)
        assert len(found) == len(set(found))
        assert {s for s in selectors if s.matches(labels)} == set(found)
