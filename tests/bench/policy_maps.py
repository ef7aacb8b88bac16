"""Policies in the kernel: what a decision costs, and how they get there.

A decision is timed beside two lookups in a longest-prefix trie with the same entries, in the same
run. The policies that are filled in are those of `policy.py`; beside the worst case stands the
rate of batches of the same type of map.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import numpy as np
from attrs import evolve

from pyciliumlib.identity import Labels
from pyciliumlib.kernel import Map, Object, ObjectSpec
from pyciliumlib.policy import Repository
from pyciliumlib.policy.entries import ALLOW_BYTE, EntryValue, PolicyEntries, Slot, precedence
from pyciliumlib.policy.grouped import GroupedEntries
from pyciliumlib.policy.nodes import ROOTS_DTYPE, PolicyNodes
from pyciliumlib.policy.program import PolicyTries
from pyciliumlib.resources import object_path
from pyciliumlib.types import Direction, Protocol
from tests.bench import policy
from tests.bench.compiled import bpf_object
from tests.bench.fastpath import one_cpu
from tests.bench.figure import Figure, at_most, ratio_at_least, ratio_at_most

_ENDPOINTS = 50
_ROUNDS = 5
_LOOKUP_ROUNDS = 25
_REPEAT = 1 << 17
#: Rows of an endpoint's map, enough for the worst case.
_ROOM = 1 << 18
_FIRST_IDENTITY, _FIRST_PORT = 1000, 8000
_FRAME = bytes(64)
#: Name, identities, ports of each, and whether every prefix of every port has an entry too.
_POLICIES = (
    ("10 entries", 5, 2, False),
    ("1,000 entries", 100, 10, False),
    ("100,000 entries", 10_000, 10, False),
    ("1,000 nested ranges", 12, 50, True),
    ("100,000 nested ranges", 1200, 50, True),
)


def figures() -> Iterator[Figure]:
    """Decisions; one identity into the maps of 50 endpoints; the worst case into one."""
    with one_cpu():
        for name, identities, ports, ranges in _POLICIES:
            yield _lookup(name, identities, ports, ranges)
    workload = policy._load()
    if workload is None:
        print("policy_maps: needs what `policy` needs", file=sys.stderr)
        return
    size = next(size for size in policy.SIZES if size.held)
    run = policy._Run(workload, size)
    documents = (workload.policy(p, size.namespaces) for p in range(size.policies))
    run.repository.apply(list(documents))
    known = run._identities()
    run.repository.update_identities(known)
    yield from _one_identity(run)
    run.repository = Repository()
    run.repository.apply(workload.worst_policies(0, size.namespaces))
    run.repository.update_identities(known)
    yield from _worst_case(run)


# ------------------------------------------------------------------ decisions


def _lookup(name: str, identities: int, ports: int, ranges: bool) -> Figure:
    """The best round of each."""
    spec = ObjectSpec.open(bpf_object("policy"), "policy")
    spec.resize("policies", 4)
    spec.config.update({"max_endpoints": 2, "identities": identities, "ports": ports})
    entries = _entries(identities, ports, ranges)
    with spec.load() as bench:
        tries = PolicyTries(bench.maps, 2, _ROOM)
        tries.fill(tries.allocate(), entries)
        flat = entries.spread()
        lpm = bench.maps["lpm"]
        lpm.update_batch(flat.keys.view(lpm.key_dtype), flat.values.view(lpm.value_dtype))
        times = dict.fromkeys(("nothing", "decide", "decide_by_lpm"), sys.maxsize)
        for _ in range(_LOOKUP_ROUNDS):
            for program, best in times.items():
                times[program] = min(best, _run(bench, program))
        tries.close()
    floor = times.pop("nothing")
    ours, theirs = (time - floor for time in times.values())
    return Figure(
        f"decision, {name} ({len(flat):,})",
        ours,
        "ns",
        "two LPM lookups",
        theirs,
        ratio_at_most(1),
    )


def _run(bench: Object, program: str) -> int:
    result = bench.programs[program].run(_FRAME, repeat=_REPEAT)
    if program != "nothing" and result.retval:
        raise AssertionError(f"{program} found no entry")
    return result.duration_ns


def _entries(identities: int, ports: int, ranges: bool) -> GroupedEntries:
    """The same ports for each identity, with another rule for every hundredth, and two ports for
    anyone."""
    numbers = range(_FIRST_PORT, _FIRST_PORT + ports)
    slots = {Slot(Direction.INGRESS, Protocol.TCP, number, 16) for number in numbers}
    if ranges:
        slots |= {wider for slot in slots for wider in slot.wider()}
    listed = sorted(slots)
    kinds = min(100, identities)
    templates = [_said(listed, 2 + kind) for kind in range(kinds)]
    members = np.arange(_FIRST_IDENTITY, _FIRST_IDENTITY + identities, dtype=np.uint32)
    parts = np.array_split(members, kinds)
    of_anyone = [Slot(Direction.INGRESS, Protocol.TCP, number, 16) for number in numbers[:2]]
    return GroupedEntries(_said(of_anyone, 1), templates, list(map(len, parts)), members)


def _said(slots: list[Slot], rule: int) -> PolicyEntries:
    value = EntryValue(precedence(ALLOW_BYTE), rule)
    return PolicyEntries.of([(slot, value) for slot in slots])


# ------------------------------------------------------------------ into the kernel


@contextmanager
def _kernel() -> Iterator[tuple[PolicyTries, Object]]:
    spec = ObjectSpec.open(object_path("policy"))
    spec.resize("policies", 4 * _ENDPOINTS)
    spec.resize("policy_rev", 2 * _ENDPOINTS)
    with spec.load() as loaded:
        tries = PolicyTries(loaded.maps, 2 * _ENDPOINTS, _ROOM)
        yield tries, loaded
        tries.close()


def _one_identity(run: policy._Run) -> Iterator[Figure]:
    """From the labels of a new identity to its row in every map that it concerns."""
    with _kernel() as (tries, _):
        for number in range(_ENDPOINTS):
            run._endpoint(number)
            tries.fill(tries.allocate(), run.repository.policy(number + 1).grouped())
        tables: list[float] = []

        def add(number: int) -> None:
            _, labels = run.workload.identity(number, run.size.namespaces)
            parsed = Labels.parse({**labels, "inst": f"new-{number}"}, source="k8s")
            delta = run.repository.update_identities({800_000 + number: parsed})
            for endpoint, resolved in run.repository.policies().items():
                added, _ = resolved.grouped_changes(delta)
                if len(added):
                    started = time.perf_counter()
                    tries.add(endpoint, added)
                    tables.append((time.perf_counter() - started) * 1e3)

        took, written = [], []
        for number in range(_ROUNDS):
            tables.clear()
            took.append(_ms(partial(add, number)))
            written.append((len(tables), -sum(tables)))
    name = f"{run.size}: one identity, in the maps of all {_ENDPOINTS}"
    yield Figure(name, min(took), "ms", target=at_most(1))
    count, least = max(written)
    yield Figure(f"{name}: written into {count}", -least, "ms", target=at_most(0.2))


def _worst_case(run: policy._Run) -> Iterator[Figure]:
    """All entries of the policy that has most, worked out and written, and put into force."""
    run._endpoint(0)
    resolved = run.repository.policy(1)
    policies = resolved.grouped()
    count, rows = len(policies), len(policies.members)
    keys, values = np.arange(count, dtype=np.uint32), np.zeros(count, ROOTS_DTYPE)

    def write_batch(made: Map, number: int) -> None:
        made.update_batch(keys[:number], values[:number].view(made.value_dtype))

    def write(made: Map, nodes: PolicyNodes) -> None:
        keys, values = nodes.rows(resolved.grouped())
        nodes.flush()
        made.update_batch(keys, values.view(made.value_dtype))

    written, in_force, floor, of_all = [], [], [], []
    for _ in range(_ROUNDS):
        with _kernel() as (tries, loaded):
            first = tries.allocate()
            template = evolve(loaded.maps["policy_template"].spec, max_entries=_ROOM)
            nodes = PolicyNodes(loaded.maps["policy_nodes"], loaded.maps["policy_entries"])
            for times, work, what in (
                (floor, write_batch, rows),
                (of_all, write_batch, count),
                (written, write, nodes),
            ):
                with template.create() as made:
                    times.append(_ms(partial(work, made, what)))
            whole = partial(tries.replace, {first: resolved.grouped()})
            in_force.append(_ms(whole))
    name = f"{run.size}: {count:,} entries"
    yield Figure(
        f"{name} worked out and written",
        count / min(written),
        "entries/ms",
        "rows/ms of such a map",
        count / min(of_all),
        ratio_at_least(0.9),
    )
    yield Figure(f"{name}, {rows:,} rows", min(written), "ms", "the rows alone", min(floor))
    yield Figure(f"{name} put into force", min(in_force), "ms")


def _ms(work: Callable[[], object]) -> float:
    """Milliseconds that `work` takes, the kernel's part included."""
    started = time.perf_counter()
    work()
    return (time.perf_counter() - started) * 1e3
