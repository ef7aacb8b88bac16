"""What programs count for each CPU, under numbers of services and backends."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from attrs import frozen

from pyciliumlib.kernel import Map, possible_cpus


@frozen
class Count:
    """Packets, and bytes of IP, that went to backends."""

    packets: int
    bytes: int

    def __str__(self) -> str:
        return f"{self.packets} packets, {self.bytes} bytes"


def zero(counters: Map, numbers: Iterable[int]) -> None:
    """Begin anew, with counters or whatever else, for those who get the numbers next."""
    keys = np.array(sorted(numbers), counters.key_dtype)
    if len(keys):
        counters.update_batch(keys, np.zeros((len(keys), possible_cpus()), counters.value_dtype))


def zero_others(counters: Map, kept: Iterable[int]) -> None:
    """Begin anew for all numbers but these, which go on."""
    keys, values = counters.lookup_batch()
    rows = np.ascontiguousarray(values).view(np.uint8).reshape(len(keys), -1)
    zero(counters, set(keys[rows.any(axis=1)].tolist()).difference(kept))


def packet_sums(counters: Map) -> list[Count]:
    """`struct counter` summed over all CPUs, by number."""
    _, values = counters.lookup_batch()
    packets, sizes = values["packets"].sum(axis=1).tolist(), values["bytes"].sum(axis=1).tolist()
    return list(map(Count, packets, sizes))


def number_sums(counters: Map) -> list[int]:
    """Plain numbers, summed over all CPUs."""
    _, values = counters.lookup_batch()
    sums: list[int] = values.sum(axis=1).tolist()
    return sums
