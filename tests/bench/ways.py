"""Several ways for one client's traffic, measured in turns.

Each round measures every way once, right after the other and in an order of its own, so that what
else the machine does meets all alike, and so does what the way before leaves to the kernel.

Everybody is in one cgroup, since the kernel does more for each switch of a task that is in one and
services at sockets need it. It also tells what CPU time was taken, the packets' way included, which
the sender's task goes: where others use the machine too, that says more than the clock.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Final

from attrs import frozen

from pyciliumlib.lab import Host
from tests import cgroups
from tests.bench.figure import Figure, Target, ratio_at_least, spread
from tests.bench.load import Measure

ROUNDS = 8
#: Of plain routing: throughput, new connections and requests alike.
ENOUGH: Final = ratio_at_least(0.95)


@frozen
class Way:
    """Where the client asks, and what has to be there meanwhile."""

    name: str
    address: str
    there: Callable[[], AbstractContextManager[object]]
    target: Target | None = None


def compared(
    client: Host, ways: list[Way], what: str, unit: str, measure: Measure, cgroup: Path
) -> Iterator[Figure]:
    """Every way beside the first: by the clock, and by the CPU time that all of it took."""
    rates: dict[str, list[float]] = {way.name: [] for way in ways}
    work: dict[str, list[float]] = {way.name: [] for way in ways}
    for number in range(ROUNDS):
        for way in random.Random(number).sample(ways, len(ways)):
            with way.there():
                before = cgroups.seconds_of(cgroup)
                done = measure(client, way.address)
                took = cgroups.seconds_of(cgroup) - before
            rates[way.name].append(done.rate)
            work[way.name].append(done.amount / took)
    plain, *others = ways
    for way in others:
        name = f"{way.name}: {what}"
        yield from spread(
            name, rates[way.name], f"{unit}/s", plain.name, rates[plain.name], way.target
        )
        yield Figure(
            f"{name}, by CPU time", statistics.median(work[way.name]), f"{unit}/CPU s", plain.name,
            statistics.median(work[plain.name]),
        )  # fmt: skip


@contextmanager
def nftables(host: Host, chains: str) -> Iterator[None]:
    """These chains are in force at the host."""
    rules = f"table ip bench {{ {chains} }}"
    host.run(["nft", "--file", "-"], input=rules, check=True)
    try:
        yield
    finally:
        host.run(["nft", "delete", "table", "ip", "bench"], check=True)
