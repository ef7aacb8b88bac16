"""The tries of several endpoints: replaced at one moment, whole or not at all, whatever fails."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from attrs import evolve

from pyciliumlib.errors import ExhaustedError, KernelError, MapFullError, NotFoundError
from pyciliumlib.kernel import Object, ObjectSpec
from pyciliumlib.policy.entries import KEY_DTYPE, VALUE_DTYPE, PolicyEntries
from pyciliumlib.policy.grouped import GroupedEntries
from pyciliumlib.policy.program import PolicyTries
from pyciliumlib.resources import object_path

MAX_ENDPOINTS, ENTRIES, NODES = 8, 4, 64
ONE, TWO = 1, 2


@pytest.fixture
def loaded() -> Iterator[Object]:
    spec = ObjectSpec.open(object_path("policy"))
    spec.resize("policies", 2 * MAX_ENDPOINTS)
    spec.resize("policy_rev", MAX_ENDPOINTS)
    spec.resize("policy_nodes", NODES)
    with spec.load() as made:
        yield made


@pytest.fixture
def tries(loaded: Object) -> Iterator[PolicyTries]:
    """Two endpoints, each with one entry: their own number as the cookie."""
    made = adopt(loaded)
    for endpoint in (ONE, TWO):
        assert made.allocate() == endpoint
        made.fill(endpoint, policy(endpoint))
    yield made
    made.close()


def adopt(loaded: Object) -> PolicyTries:
    return PolicyTries(loaded.maps, MAX_ENDPOINTS, ENTRIES)


def policy(*cookies: int, identity: int = 0) -> GroupedEntries:
    """One entry for each cookie, of the identity with that number if no other is given."""
    keys, values = np.zeros(len(cookies), KEY_DTYPE), np.zeros(len(cookies), VALUE_DTYPE)
    keys["prefixlen"], keys["identity"] = 64, identity or cookies
    values["lpm_bits"], values["rule"] = 24, cookies
    return GroupedEntries.of(PolicyEntries(keys, values))


def in_force(loaded: Object, half: int = 0) -> dict[int, list[int]]:
    """The cookies that a program finds by endpoint; `half` 1: in the half that is not in force."""
    maps = loaded.maps
    first = ((maps["policy_generation"][0] + half) & 1) * MAX_ENDPOINTS
    found = {}
    for endpoint in (ONE, TWO):
        with maps["policies"].open_inner(first + endpoint) as identities:
            found[endpoint] = sorted(rule(loaded, row.own[0]) for row in identities.values()
                                     if row.own[0])  # fmt: skip
    return found


def rule(loaded: Object, cell: int) -> int:
    """The cookie of the entry for protocol 0 and port 0: six nodes down, each time the first."""
    for _ in range(6):
        assert cell & 0x80000000
        cell = loaded.maps["policy_nodes"][cell & 0x7FFFFFFF].cell[0]
    cookie: int = loaded.maps["policy_entries"][cell].rule
    return cookie


def revisions(loaded: Object) -> list[int]:
    return [loaded.maps["policy_rev"][cell] for cell in (0, ONE, TWO)]


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def failing(monkeypatch: pytest.MonkeyPatch, name: str, times: int = 1, after: int = 0) -> None:
    """Let a method of `PolicyTries` fail so many times, from its call number `after` on."""
    real: Callable[..., Any] = getattr(PolicyTries, name)
    calls = iter(range(1000))

    def fail(self: PolicyTries, *arguments: Any) -> Any:
        if after <= next(calls) < after + times:
            raise KernelError(errno.ENOMEM, "no memory")
        return real(self, *arguments)

    monkeypatch.setattr(PolicyTries, name, fail)


def test_both_at_one_moment(tries: PolicyTries, loaded: Object) -> None:
    """The programs find the new ones, in both halves, and every flow of theirs is looked at."""
    before, held = revisions(loaded), descriptors()
    tries.replace({ONE: policy(11), TWO: policy(21, 22)})
    assert in_force(loaded) == in_force(loaded, half=1) == {ONE: [11], TWO: [21, 22]}
    assert revisions(loaded) == [number + 1 for number in before]
    assert tries.generation == 1 and descriptors() == held
    tries.replace({TWO: policy()})
    assert in_force(loaded) == in_force(loaded, half=1) == {ONE: [11], TWO: []}
    assert not tries.misplaced(ONE) and not tries.misplaced(TWO)


def test_one_that_does_not_fit(tries: PolicyTries, loaded: Object) -> None:
    """Nothing changes for the others either."""
    held = descriptors()
    with pytest.raises(MapFullError):
        tries.replace({ONE: policy(11), TWO: policy(*range(1, ENTRIES + 2))})
    with pytest.raises(NotFoundError, match="no endpoint 99"):
        tries.replace({ONE: policy(11), 99: policy(1)})
    assert in_force(loaded) == in_force(loaded, half=1) == {ONE: [ONE], TWO: [TWO]}
    assert tries.generation == 0 and descriptors() == held


def test_what_fails_before_the_switch(
    tries: PolicyTries, loaded: Object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new ones never come into force: not even by the next call, which is of another endpoint.

    Here the half that is to be switched to cannot even be written back at once.
    """
    held = descriptors()
    with monkeypatch.context() as patch:
        failing(patch, "bump")  # of the way back
        real = PolicyTries._write

        def write_and_fail(self: PolicyTries, slots: Any) -> None:
            real(self, slots)
            patch.setattr(PolicyTries, "_write", real)
            raise KernelError(errno.EINTR, "cut short")

        patch.setattr(PolicyTries, "_write", write_and_fail)
        with pytest.raises(KernelError, match="no memory") as caught:
            tries.replace({ONE: policy(11)})
    assert "cut short" in str(caught.value.__context__)
    assert in_force(loaded) == {ONE: [ONE], TWO: [TWO]}
    assert in_force(loaded, half=1)[ONE] == [11]
    tries.replace({TWO: policy(21)})
    assert in_force(loaded) == in_force(loaded, half=1) == {ONE: [ONE], TWO: [21]}
    assert descriptors() == held


@pytest.mark.parametrize("step", ["bump", "_wait_for_programs", "_write"])
def test_what_fails_after_the_switch(
    step: str, tries: PolicyTries, loaded: Object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new ones are in force; the next call, of whatever endpoint, finishes what was left."""
    before, held = revisions(loaded), descriptors()
    with monkeypatch.context() as patch:
        failing(patch, step, after=1 if step == "_write" else 0)
        with pytest.raises(KernelError, match="no memory"):
            tries.replace({ONE: policy(11)})
    assert in_force(loaded) == {ONE: [11], TWO: [TWO]}
    assert in_force(loaded, half=1) == {ONE: [ONE], TWO: [TWO]}
    assert tries.misplaced(ONE) and tries.generation == 1
    tries.replace({TWO: policy(21)})
    assert in_force(loaded) == in_force(loaded, half=1) == {ONE: [11], TWO: [21]}
    after = revisions(loaded)
    assert after[1] > before[1] and after[2] > before[2]
    assert not tries.misplaced(ONE) and descriptors() == held


def test_what_was_left_is_finished_by_the_next_process(
    tries: PolicyTries, loaded: Object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever adopts the maps makes both halves those in force."""
    with monkeypatch.context() as patch:
        failing(patch, "_wait_for_programs")
        with pytest.raises(KernelError):
            tries.replace({ONE: policy(11)})
    next_one = adopt(loaded)
    assert in_force(loaded) == in_force(loaded, half=1) == {ONE: [11], TWO: [TWO]}
    next_one.close()


def hidden(loaded: Object) -> set[tuple[int, int]]:
    """The endpoints of which a program finds nothing, with the half."""
    slots = loaded.maps["policies"]
    ends = [(half, endpoint) for half in (0, 1) for endpoint in (ONE, TWO)]
    return {(h, e) for h, e in ends if slots.get(h * MAX_ENDPOINTS + e) is None}


def test_locked_down(tries: PolicyTries, loaded: Object, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is found of it, whatever happens to others, until it is replaced."""
    before, held = revisions(loaded), descriptors()
    tries.lock_down(ONE)
    assert hidden(loaded) == {(0, ONE), (1, ONE)} and tries.locked == {ONE}
    assert revisions(loaded)[:2] == [before[0] + 1, before[1] + 1]
    assert tries.misplaced(ONE)
    tries.replace({TWO: policy(21)})
    with pytest.raises(MapFullError):
        tries.replace({ONE: policy(*range(1, ENTRIES + 2))})
    for step in ("_write", "bump"):
        with monkeypatch.context() as patch, pytest.raises(KernelError, match="no memory"):
            failing(patch, step)
            tries.replace({ONE: policy(11)} if step == "_write" else {TWO: policy(22)})
    tries.replace({TWO: policy(23)})
    assert hidden(loaded) == {(0, ONE), (1, ONE)} and tries.locked == {ONE}
    tries.replace({ONE: policy(11)})
    assert in_force(loaded) == in_force(loaded, half=1) == {ONE: [11], TWO: [23]}
    assert not tries.locked and not tries.misplaced(ONE) and descriptors() == held


def test_locked_down_and_gone(tries: PolicyTries, loaded: Object) -> None:
    """Its id comes back empty and open; the next process finds it closed."""
    tries.lock_down(ONE)
    tries.lock_down(TWO)
    tries.release(ONE)
    assert hidden(loaded) == {(0, TWO), (1, TWO)} and tries.locked == {TWO}
    assert len(tries.read(ONE)) == 0 and not tries.misplaced(ONE)
    next_one = adopt(loaded)
    next_one.claim(TWO)
    assert in_force(loaded) == in_force(loaded, half=1) == {ONE: [], TWO: []}
    next_one.replace({TWO: policy(21)})
    assert in_force(loaded) == {ONE: [], TWO: [21]}
    next_one.close()


def test_ids(tries: PolicyTries, loaded: Object) -> None:
    """Each is given once, comes back empty, and there are as many as were asked for."""
    ids = [tries.allocate() for _ in range(3, MAX_ENDPOINTS)]
    with pytest.raises(ExhaustedError, match="max_endpoints"):
        tries.allocate()
    revision = loaded.maps["policy_rev"][ids[0]]
    tries.fill(ids[0], policy(5))
    tries.release(ids[0])
    assert tries.allocate() == ids[0]
    assert len(tries.read(ids[0])) == 0
    assert loaded.maps["policy_rev"][ids[0]] == revision + 1


def test_identities_in_place(tries: PolicyTries, loaded: Object) -> None:
    """They come with all of their entries and go; no other endpoint, no generation moves."""
    tries.add(ONE, policy(7))
    assert in_force(loaded) == {ONE: [ONE, 7], TWO: [TWO]} and tries.generation == 0
    tries.discard(ONE, np.array([7], np.uint32))
    tries.discard(ONE, np.array([7], np.uint32))  # one that has no row
    assert in_force(loaded) == {ONE: [ONE], TWO: [TWO]}


def test_a_row_is_never_written_over(tries: PolicyTries, loaded: Object) -> None:
    """A program that looks for it meanwhile might miss it: whoever differs gets another map, and
    the one in which a program looks stays as it is. What is equal stays where it is."""
    before = revisions(loaded)
    with loaded.maps["policies"].open_inner(ONE) as old:
        rows = old.lookup_batch()[1].tobytes()
        tries.add(ONE, policy(9, identity=ONE))
        assert old.lookup_batch()[1].tobytes() == rows
    assert in_force(loaded) == in_force(loaded, half=1) == {ONE: [9], TWO: [TWO]}
    assert tries.generation == 1 and not tries.misplaced(ONE)
    assert revisions(loaded) == [before[0] + 1, before[1] + 1, before[2]]
    tries.add(ONE, policy(9, identity=ONE))
    tries.add(TWO, policy(TWO, 7))  # one that is there and one that is not
    assert in_force(loaded) == {ONE: [9], TWO: [TWO, 7]} and tries.generation == 1
    tries.add(TWO, policy(6, 8))
    tries.lock_down(TWO)
    tries.add(TWO, policy(5, identity=TWO))
    assert 5 in tries.read(TWO).values["rule"] and hidden(loaded) == {(0, TWO), (1, TWO)}
    assert tries.generation == 1


def test_a_map_that_grows(loaded: Object, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where one is too small the same rows lie in a larger one, from one moment to the next, up to
    the entries that a policy may have; what does not fit is refused, and what was there stays."""
    monkeypatch.setattr("pyciliumlib.policy.program.tries._ROOM", 2)
    tries = adopt(loaded)
    one, two = tries.allocate(), tries.allocate()
    tries.fill(one, policy(1))
    held = descriptors()
    tries.add(one, policy(2))
    assert in_force(loaded) == in_force(loaded, half=1) == {ONE: [1, 2], TWO: []}
    assert tries.generation == 1 and not tries.misplaced(one) and descriptors() == held
    tries.add(one, policy(1, 3, 4))
    with pytest.raises(MapFullError):
        tries.add(one, policy(5))
    tries.fill(two, policy(1, 2, 3, 4))
    assert in_force(loaded) == in_force(loaded, half=1) == {ONE: [1, 2, 3, 4], TWO: [1, 2, 3, 4]}
    with pytest.raises(MapFullError, match="5 identities"):
        tries.replace({two: policy(1, 2, 3, 4, 5)})
    tries.close()


def test_a_locked_one_does_not_grow(loaded: Object, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written into it meanwhile opens nothing: it may not be all that there should be."""
    monkeypatch.setattr("pyciliumlib.policy.program.tries._ROOM", 2)
    tries = adopt(loaded)
    for endpoint in (ONE, TWO):
        assert tries.allocate() == endpoint
        tries.fill(endpoint, policy(endpoint))
    tries.lock_down(ONE)
    with pytest.raises(MapFullError):
        tries.add(ONE, policy(2, 3))
    assert hidden(loaded) == {(0, ONE), (1, ONE)} and tries.locked == {ONE}
    tries.close()


def test_nodes_are_used_again(tries: PolicyTries, loaded: Object) -> None:
    """Policy after policy, each with six nodes of its own, needs no more rows than two at a time;
    so do identities that come and go."""
    assert loaded.maps["policy_nodes"].max_entries == NODES
    cookies = range(10, 10 + NODES // 2)
    for cookie in cookies:
        tries.replace({ONE: policy(cookie)})
    assert in_force(loaded) == in_force(loaded, half=1) == {ONE: [cookies[-1]], TWO: [TWO]}
    for cookie in range(100, 100 + NODES // 2):
        tries.add(ONE, policy(cookie))
        tries.discard(ONE, np.array([cookie], np.uint32))
    assert in_force(loaded) == {ONE: [cookies[-1]], TWO: [TWO]}


def test_too_many_nodes(tries: PolicyTries, loaded: Object) -> None:
    """A policy for which the shared rows are too few is refused with nothing changed, and a
    smaller one fits again."""
    ports = np.zeros(40, KEY_DTYPE)
    ports["prefixlen"], ports["proto"], ports["port"] = 64, 6, range(0, 40 * 256, 256)
    values = np.zeros(40, VALUE_DTYPE)
    values["lpm_bits"], values["rule"] = 24, range(40)
    wide = GroupedEntries.of(PolicyEntries(ports[:4], values[:4]))
    large = GroupedEntries.of(PolicyEntries(ports, values))
    spec = loaded.maps["policy_template"].spec
    tries._template = evolve(spec, max_entries=64)
    with pytest.raises(MapFullError, match="rows that all endpoints share"):
        tries.replace({ONE: large})
    with pytest.raises(MapFullError, match="rows that all endpoints share"):
        tries.add(TWO, GroupedEntries(PolicyEntries.empty(), [large.anyone], [1], np.array([9], np.uint32)))  # fmt: skip  # noqa: E501
    assert in_force(loaded) == in_force(loaded, half=1) == {ONE: [ONE], TWO: [TWO]}
    tries.replace({ONE: wide})
    assert len(tries.read(ONE)) == 4


def test_the_next_process_knows_the_tries(tries: PolicyTries, loaded: Object) -> None:
    """It writes nothing twice, and nothing over what is in use."""
    tries.replace({ONE: policy(11, 12)})
    before = loaded.maps["policy_nodes"].lookup_batch()[1].tobytes()
    next_one = adopt(loaded)
    next_one.claim(ONE)
    assert next_one.read(ONE).keys["identity"].tolist() == [11, 12]
    next_one.replace({ONE: policy(12, 11)})
    assert loaded.maps["policy_nodes"].lookup_batch()[1].tobytes() == before
    next_one.add(TWO, policy(13))
    assert in_force(loaded) == {ONE: [11, 12], TWO: [TWO, 13]}
    next_one.close()


class Crowded(dict[int, Any]):
    """The tries by endpoint; while they are gone through, another thread wants to add to them."""

    other: threading.Thread

    def values(self) -> Any:
        for trie in super().values():
            if self.other.ident is None:
                self.other.start()
                self.other.join(0.3)
            yield trie


def test_an_endpoint_comes_while_nodes_are_looked_for(
    loaded: Object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits: whoever goes through all tries sees neither more nor fewer of them meanwhile."""
    monkeypatch.setattr("pyciliumlib.policy.program.tries._POOL", 2)
    tries = adopt(loaded)
    for endpoint in (ONE, TWO):
        assert tries.allocate() == endpoint
        tries.fill(endpoint, policy(endpoint))
    came: list[int] = []
    tries._tries = crowded = Crowded(tries._tries)
    crowded.other = threading.Thread(target=lambda: came.append(tries.allocate()))
    cookies = range(10, 10 + NODES // 2)
    for cookie in cookies:  # until there is no free node
        tries.replace({ONE: policy(cookie)})
    crowded.other.join()
    assert came == [3] and set(tries._tries) == {ONE, TWO, 3, 4}
    assert in_force(loaded) == {ONE: [cookies[-1]], TWO: [TWO]}
    tries.close()


def test_two_threads_bump(
    tries: PolicyTries, loaded: Object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No change is lost, and no cell ever falls, however long one stays between read and write."""
    other = threading.Thread(target=lambda: [tries.bump([ONE]) for _ in range(3)])

    class Slow:
        def __getitem__(self, cell: int) -> int:
            value: int = loaded.maps["policy_rev"][cell]
            if other.ident is None:
                other.start()
                other.join(0.3)
            return value

        def __setitem__(self, cell: int, value: int) -> None:
            assert value > loaded.maps["policy_rev"][cell]
            loaded.maps["policy_rev"][cell] = value

    monkeypatch.setattr(tries, "_revisions", Slow())
    before = revisions(loaded)
    tries.bump([ONE])
    other.join()
    assert revisions(loaded) == [before[0] + 4, before[1] + 4, before[2]]
