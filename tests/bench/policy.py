"""The policy engine on a generated set of documents and identities, without a kernel.

The set is made by the module that PCL_POLICY_WORKLOAD names: `policy(p, namespaces)` is a
CiliumNetworkPolicy, `identity(i, namespaces)` a number and its labels, `new_policy(r, wide,
namespaces)` one to add. Without it this part is passed over. The peer's figures are those that the
Go engine reached on that set; they are not measured here.
"""

from __future__ import annotations

import gc
import importlib.util
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from types import ModuleType
from typing import Any, Final

from attrs import frozen

from pyciliumlib.identity import Labels
from pyciliumlib.identity.cidr import cidr_labels
from pyciliumlib.policy import PolicySettings, Repository, parse
from tests.bench.figure import Figure, at_most

_WORKLOAD: Final = "PCL_POLICY_WORKLOAD"
_ENDPOINTS: Final = 50
_PARTIES: Final = 2000
_FIRST_CIDR: Final = 1 << 24
_ADDED: Final = {"app": "app-05", "tier": "backend", "env": "prod"}


@frozen
class Size:
    """How large the set is, and what Cilium's Go engine needs for each step of it, in ms.

    `held` sizes have targets; the others show how each cost grows.
    """

    policies: int
    identities: int
    namespaces: int
    parse: float
    identities_in: float
    first: float
    all_cold: float
    one_identity: float
    batch: float
    one_policy: float
    wide_policy: float
    worst_first: float
    worst_one: float
    held: bool = False

    def __str__(self) -> str:
        return f"{self.policies // 1000}k policies, {self.identities // 1000}k identities"


SIZES: Final = (
    Size(1_000, 5_000, 50, 29, 3.4, 2.9, 171, 0.19, 35, 1.7, 3.0, 11.9, 0.29),
    Size(10_000, 50_000, 500, 234, 38, 60, 3292, 0.06, 19, 1.8, 10.8, 178, 3.3, held=True),
    Size(50_000, 100_000, 2_500, 1140, 96, 130, 7068, 0.08, 23, 3.4, 23.4, 405, 7.0),
)


def figures() -> Iterator[Figure]:
    """Milliseconds of each step, for each size."""
    workload = _load()
    if workload is None:
        print(f"policy: set {_WORKLOAD} to the module that makes the set", file=sys.stderr)
        return
    for size in SIZES:
        yield from _Run(workload, size).figures()


def _load() -> ModuleType | None:
    path = os.environ.get(_WORKLOAD)
    if not path:
        return None
    spec = importlib.util.spec_from_file_location("policy_workload", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class _Run:
    """One size: the steps in the order in which they build on each other."""

    def __init__(self, workload: ModuleType, size: Size) -> None:
        self.workload = workload
        self.size = size
        self.repository = Repository(PolicySettings())

    def figures(self) -> Iterator[Figure]:
        size, repository = self.size, self.repository
        documents = [self.workload.policy(p, size.namespaces) for p in range(size.policies)]
        gc.collect()
        insert = _ms(lambda: repository.apply(parse(documents, repository.settings)))
        yield self._figure("parse and insert all policies", insert, size.parse, 1000)
        known = self._identities()
        taken_in = _ms(lambda: repository.update_identities(known))
        yield self._figure("all identities into the selectors", taken_in, size.identities_in)
        cold = [_ms(partial(self._endpoint, number)) for number in range(_ENDPOINTS)]
        yield self._figure("first policy of an endpoint", cold[0], size.first, 60)
        yield self._figure(f"policies of all {_ENDPOINTS}, cold", sum(cold), size.all_cold, 1500)
        one = _median(self._adding(1, number) for number in range(9))
        yield self._figure(f"one identity, in all {_ENDPOINTS}", one, size.one_identity, 0.2)
        batch = _median(self._adding(1000, number) for number in range(10, 15))
        yield self._figure(f"batch of 1,000, in all {_ENDPOINTS}", batch, size.batch, 20)
        near = _median(partial(self._add_policy, number, False) for number in range(5))
        yield self._figure("one policy, its endpoint again", near, size.one_policy, 2)
        wide = _median(partial(self._add_policy, number, True) for number in range(5))
        yield self._figure("one that selects cluster-wide", wide, size.wide_policy, 4)
        asked = _median(partial(self._explain, number) for number in range(9))
        yield Figure(f"{size}: explain", asked, "ms", target=at_most(1) if size.held else None)
        several = dict(list(known.items())[:_PARTIES])
        matrix = _ms(partial(self._reachability, several))
        name = f"{size}: reachability of {_PARTIES:,}"
        yield Figure(name, matrix, "ms", target=at_most(10_000) if size.held else None)
        yield from self._worst(known)

    def _reachability(self, identities: Mapping[int, Labels]) -> None:
        parties = {str(number): labels for number, labels in identities.items()}
        self.repository.reachability(parties, "80/TCP")

    def _worst(self, known: Mapping[int, Labels]) -> Iterator[Figure]:
        """One selector that matches every pod, on three ports."""
        self.repository = Repository(PolicySettings())
        self.repository.apply(self.workload.worst_policies(0, self.size.namespaces))
        self.repository.update_identities(known)
        first = _ms(partial(self._endpoint, 0))
        one = _median(self._adding(1, number) for number in range(9))
        yield self._figure("worst case, first policy", first, self.size.worst_first, 180)
        yield self._figure("worst case, one identity", one, self.size.worst_one, 0.5)

    def _figure(self, name: str, value: float, peer: float, target: float | None = None) -> Figure:
        bound = at_most(target) if target and self.size.held else None
        return Figure(f"{self.size}: {name}", value, "ms", "Cilium's Go, on file", peer, bound)

    def _identities(self) -> dict[int, Labels]:
        size = self.size
        made = (self.workload.identity(i, size.namespaces) for i in range(size.identities))
        known = {number: Labels.parse(labels, source="k8s") for number, labels in made}
        prefixes = sorted(self.repository.prefixes(), key=str)
        known |= {_FIRST_CIDR + n: cidr_labels(p, True, True) for n, p in enumerate(prefixes)}
        return known

    def _endpoint(self, number: int) -> None:
        _, labels = self.workload.identity(number, self.size.namespaces)
        policy = self.repository.add_endpoint(number + 1, Labels.parse(labels, source="k8s"), {})
        policy.entries()

    def _adding(self, count: int, turn: int) -> Callable[[], object]:
        """Adds identities like those of the first namespaces, consumed by every policy."""
        added = {}
        for number in range(count):
            _, labels = self.workload.identity(number, self.size.namespaces)
            labels = {**labels, **_ADDED, "inst": f"added-{turn}-{number}"}
            added[900_000 + 10_000 * turn + number] = Labels.parse(labels, source="k8s")

        def add() -> None:
            delta = self.repository.update_identities(added)
            for policy in self.repository.policies().values():
                policy.changes(delta)

        return add

    def _add_policy(self, number: int, wide: bool) -> None:
        document: Any = self.workload.new_policy(number, wide, self.size.namespaces)
        change = self.repository.apply([document])
        for policy in change.policies.values():
            policy.entries()

    def _explain(self, number: int) -> None:
        self.repository.explain(1000 + number, 1001 + number, "80/TCP")


def _median(turns: Iterable[Callable[[], object]]) -> float:
    return statistics.median(map(_ms, turns))


def _ms(work: Callable[[], object]) -> float:
    """Milliseconds of CPU that this thread spends on `work`."""
    started = time.thread_time()
    work()
    return (time.thread_time() - started) * 1e3
