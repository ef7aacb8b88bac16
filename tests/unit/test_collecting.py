"""Flows that have expired: how often they are looked for, and which are deleted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pyciliumlib.conntrack import Clock
from pyciliumlib.conntrack.collecting import Pace
from pyciliumlib.kernel import ObjectSpec
from pyciliumlib.loadbalancer.collecting import FlowCollector
from pyciliumlib.resources import object_path
from pyciliumlib.testing import FakeKernel, FakeMap

HZ = 100
CLOCK = Clock(HZ, 0)
NOW = 5_000
MOMENT = NOW * 1_000_000_000 // HZ

PACES = [
    (300, 0, 100, 450),
    (300, 4, 100, 450),
    (300, 5, 100, 300),
    (300, 25, 100, 300),
    (300, 50, 100, 150),
    (300, 100, 100, 30),
    (20, 100, 100, 10),
    (40_000, 0, 100, 43_200),
]


@pytest.mark.parametrize(("seconds", "deleted", "size", "next_"), PACES)
def test_pace(seconds: float, deleted: int, size: int, next_: float) -> None:
    """Cilium's rule, at its edges."""
    assert Pace(seconds).after(deleted, size).seconds == pytest.approx(next_)


@pytest.fixture
def maps() -> Any:
    spec = ObjectSpec.open(object_path("loadbalancer"))
    kernel = FakeKernel(spec.maps.values())
    made = {"lb_collecting": kernel["lb_collecting"]}
    for name in ("lb_flows", "lb_nat"):  # which evict nothing here
        made[name] = FakeMap("hash", spec.maps[name].key, spec.maps[name].value, 64, name)
    return made


def fill(maps: Any, name: str, *expires: int) -> None:
    """An entry for each, whose number is the client's port."""
    table = maps[name]
    keys, values = (np.zeros(len(expires), d) for d in (table.key_dtype, table.value_dtype))
    keys["client_port" if name == "lb_flows" else "nat_port"] = range(len(expires))
    (values if name == "lb_flows" else values["flow"])["expires"] = expires
    table.update_batch(keys, values)


def left(maps: Any, name: str) -> set[int]:
    field = "client_port" if name == "lb_flows" else "nat_port"
    return set(maps[name].lookup_batch()[0][field].tolist())


def collector(maps: Any, wait: Any = lambda: None, now: Any = lambda: MOMENT) -> FlowCollector:
    return FlowCollector(maps, CLOCK, wait, now)


def test_what_is_deleted(maps: Any) -> None:
    """What has been dead for longer than any program runs; around the wrap of the clock too."""
    for name in ("lb_flows", "lb_nat"):
        fill(
            maps, name, NOW + 1, NOW, NOW - 2 * HZ, NOW - 2 * HZ - 1, 0, (NOW - 90_000) % (1 << 32)
        )
    assert collector(maps).collect() == 6
    for name in ("lb_flows", "lb_nat"):
        assert left(maps, name) == {0, 1, 2}


def test_programs_are_asked_to_make_no_entry(maps: Any) -> None:
    """Before anything is read, for a time that ends by itself, and no longer than needed."""
    fill(maps, "lb_flows", 1)
    asked = []

    def wait() -> None:
        asked.append(maps["lb_collecting"].lookup(0))
        assert left(maps, "lb_flows") == {0}

    collector(maps, wait).collect()
    assert asked == [NOW + 60 * HZ]
    assert maps["lb_collecting"].lookup(0) == 0


def test_a_failure_asks_no_longer(maps: Any) -> None:
    """The programs go on as before."""

    def wait() -> None:
        raise OSError("no")

    with pytest.raises(OSError, match="no"):
        collector(maps, wait).collect()
    assert maps["lb_collecting"].lookup(0) == 0


def test_one_that_takes_too_long_deletes_nothing(maps: Any) -> None:
    """Since the programs may make entries again; the next time goes on."""
    fill(maps, "lb_flows", 1, 2)
    moments = iter([MOMENT, MOMENT, MOMENT, MOMENT + 31_000_000_000])
    last = MOMENT + 31_000_000_000
    assert collector(maps, now=lambda: next(moments, last)).collect() == 0
    assert len(maps["lb_flows"]) == 2
    assert collector(maps).collect() == 2


def test_size(maps: Any) -> None:
    """What the pace is measured by."""
    assert collector(maps).size == 128
