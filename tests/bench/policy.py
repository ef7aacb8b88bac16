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
from collections.abc import Callable, Iterator
from functools import partial
from types import ModuleType
from typing import Any, Final

from attrs import frozen

from pyciliumlib.identity import Labels
from pyciliumlib.identity.cidr import cidr_labels
from pyciliumlib.policy import PolicySettings, Repository, parse
from tests.bench.figure import Figure

_WORKLOAD: Final = "PCL_POLICY_WORKLOAD"
_ENDPOINTS: Final = 50
_FIRST_CIDR: Final = 1 << 24
_ADDED: Final = {"app": "app-05", "tier": "backend", "env": "prod"}


@frozen
class Size:
    """How large the set is, and what Cilium's Go engine needs for it, in ms."""

    policies: int
    identities: int
    namespaces: int
    parse: float
    identities_in: float
    first: float
    all_cold: float
    one_identity: float
    one_policy: float

    def __str__(self) -> str:
        return f"{self.policies // 1000}k policies, {self.identities // 1000}k identities"


SIZES: Final = (
    Size(1_000, 5_000, 50, 29, 3.4, 2.9, 171, 0.19, 1.7),
    Size(10_000, 50_000, 500, 234, 38, 60, 3292, 0.06, 1.8),
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
        yield self._figure(
            "parse and insert all policies",
            _ms(lambda: repository.apply(parse(documents, repository.settings))),
            size.parse,
        )
        known = self._identities()
        yield self._figure(
            "all identities into the selectors",
            _ms(lambda: repository.update_identities(known)),
            size.identities_in,
        )
        cold = [_ms(partial(self._endpoint, number)) for number in range(_ENDPOINTS)]
        yield self._figure("first policy of an endpoint", cold[0], size.first)
        yield self._figure(
            f"policies of all {_ENDPOINTS} endpoints, cold", sum(cold), size.all_cold
        )
        yield self._figure(
            f"one identity more, in all {_ENDPOINTS} policies",
            statistics.median(_ms(partial(self._add_identity, number)) for number in range(5)),
            size.one_identity,
        )
        yield self._figure(
            "one policy more, its endpoint again",
            statistics.median(_ms(partial(self._add_policy, number)) for number in range(5)),
            size.one_policy,
        )

    def _figure(self, name: str, value: float, peer: float) -> Figure:
        return Figure(f"{self.size}: {name}", value, "ms", "Cilium's Go, on file", peer)

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

    def _add_identity(self, number: int) -> None:
        _, labels = self.workload.identity(0, self.size.namespaces)
        labels = {**labels, **_ADDED, "inst": f"added-{number}"}
        identity = {900_000 + number: Labels.parse(labels, source="k8s")}
        delta = self.repository.update_identities(identity)
        for policy in self.repository.policies().values():
            policy.changes(delta)

    def _add_policy(self, number: int) -> None:
        document: Any = self.workload.new_policy(number, False, self.size.namespaces)
        change = self.repository.apply([document])
        for policy in change.policies.values():
            policy.entries()


def _ms(work: Callable[[], object]) -> float:
    """Milliseconds of CPU that this thread spends on `work`."""
    started = time.thread_time()
    work()
    return (time.thread_time() - started) * 1e3
