"""The same policies on their way into the kernel: tries of a program, filled and kept up.

The set is that of `policy.py`. Beside each figure stands its floor: the same entries, made before,
in one batch of the map.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial

from pyciliumlib.identity import Labels
from pyciliumlib.kernel import Map, MapSpec, ObjectSpec
from pyciliumlib.policy import Repository
from pyciliumlib.policy.entries import PolicyEntries
from pyciliumlib.resources import object_path
from tests.bench import policy
from tests.bench.figure import Figure, at_most, ratio_at_most

_ENDPOINTS = 50
_ROUNDS = 5
#: Entries of a trie, enough for the worst case.
_ROOM = 1 << 18


def figures() -> Iterator[Figure]:
    """One identity into the tries of 50 endpoints; the worst case into one."""
    workload = policy._load()
    if workload is None:
        print("policy_maps: needs what `policy` needs", file=sys.stderr)
        return
    size = next(size for size in policy.SIZES if size.held)
    spec = ObjectSpec.open(object_path("policy"))
    spec.resize("policy_template", _ROOM)
    template = spec.maps["policy_template"]
    run = policy._Run(workload, size)
    documents = (workload.policy(p, size.namespaces) for p in range(size.policies))
    run.repository.apply(list(documents))
    known = run._identities()
    run.repository.update_identities(known)
    yield _one_identity(run, template)
    run.repository = Repository()
    run.repository.apply(workload.worst_policies(0, size.namespaces))
    run.repository.update_identities(known)
    yield _worst_case(run, template)


def _one_identity(run: policy._Run, template: MapSpec) -> Figure:
    """From the labels of a new identity to its entries in every trie that they concern."""
    with ExitStack() as stack:
        tries = {}
        for number in range(_ENDPOINTS):
            run._endpoint(number)
            tries[number + 1] = stack.enter_context(template.create())
            _fill(tries[number + 1], run.repository.policy(number + 1).entries())

        def add(number: int) -> None:
            _, labels = run.workload.identity(number, run.size.namespaces)
            parsed = Labels.parse({**labels, "inst": f"new-{number}"}, source="k8s")
            delta = run.repository.update_identities({800_000 + number: parsed})
            for endpoint, resolved in run.repository.policies().items():
                added, _ = resolved.changes(delta)
                if len(added):
                    _fill(tries[endpoint], added)

        took = min(_ms(partial(add, number)) for number in range(_ROUNDS))
    return Figure(
        f"{run.size}: one identity, in the maps of all {_ENDPOINTS}", took, "ms", target=at_most(1)
    )


def _worst_case(run: policy._Run, template: MapSpec) -> Figure:
    """All entries of the policy that has most, worked out and written."""
    run._endpoint(0)
    resolved = run.repository.policy(1)
    ready = resolved.entries()
    written, floor = [], []
    for _ in range(_ROUNDS):
        with template.create() as trie:
            floor.append(_ms(partial(_fill, trie, ready)))
        with template.create() as trie:
            written.append(_ms(lambda trie=trie: _fill(trie, resolved.entries())))  # type: ignore[misc]
    name = f"{run.size}: {len(ready):,} entries worked out and written"
    return Figure(
        name, min(written), "ms", "entries made before", min(floor), ratio_at_most(1 / 0.9)
    )


def _fill(trie: Map, entries: PolicyEntries) -> None:
    trie.update_batch(entries.keys, entries.values)


def _ms(work: Callable[[], object]) -> float:
    """Milliseconds that `work` takes, the kernel's part included."""
    started = time.perf_counter()
    work()
    return (time.perf_counter() - started) * 1e3
