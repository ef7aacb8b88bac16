"""Conntrack over maps that are not in a kernel: keys, entries, expiry, the clock."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
from attrs import evolve

from pyciliumlib.conntrack import Clock, Conntrack, FlowEntry, FlowKey
from pyciliumlib.conntrack.model import signed32
from pyciliumlib.errors import InvalidError, UnitError
from pyciliumlib.kernel import ObjectSpec
from pyciliumlib.resources import object_path
from pyciliumlib.testing import FakeMap
from pyciliumlib.types import address_to_bytes, parse_address

SPEC = ObjectSpec.open(object_path("endpoint"))
KEY, VALUE = SPEC.type("flow_key").dtype, SPEC.type("flow").dtype
CLOCK = Clock(hz=250, offset=(1 << 32) - 300 * 250)

WAYS = [
    ("10.0.0.1", "10.0.0.2", 40000, 80),
    ("10.0.0.2", "10.0.0.1", 40000, 80),
    ("10.0.0.1", "10.0.0.1", 40000, 80),
    ("10.0.0.1", "10.0.0.1", 80, 40000),
    ("10.0.0.1", "10.0.0.1", 80, 80),
    ("fd00::1", "fd00::2", 1, 65535),
    ("fd00:0:0:1::1", "fd00:0:0:2::1", 1, 2),
    ("10.0.0.1", "fd00::1", 5, 6),
]


@pytest.mark.parametrize(("src", "dst", "sport", "dport"), WAYS)
def test_both_directions_have_one_key(src: str, dst: str, sport: int, dport: int) -> None:
    """Whoever sends, the key is the same, and it holds both ends with their ports."""
    there = FlowKey.of(src, dst, sport, dport, 6)
    assert there == FlowKey.of(dst, src, dport, sport, 6)
    ends = {(there.low, there.low_port), (there.high, there.high_port)}
    assert ends == {(parse_address(src), sport), (parse_address(dst), dport)}
    assert there != FlowKey.of(src, dst, sport, dport, 17)
    assert there != FlowKey.of(src, dst, sport, dport ^ 1, 6)


def test_a_key_needs_addresses() -> None:
    """What is no address is refused by name."""
    with pytest.raises(UnitError, match="nowhere"):
        FlowKey.of("nowhere", "10.0.0.1", 1, 2, 6)


def sample(hz: int, uptime: float) -> tuple[int, int]:
    """What a kernel shows: jiffies and CLOCK_MONOTONIC."""
    return ((1 << 32) - 300 * hz) + int(uptime * hz), int(uptime * 1e9)


@pytest.mark.parametrize("hz", [100, 250, 300, 1000])
@pytest.mark.parametrize("uptime", [1.0, 30.0, 235.0, 365.0, 86_400.0, 400 * 86_400.0])
def test_one_sample_tells_the_clock(hz: int, uptime: float) -> None:
    """Whatever HZ, before and after the wrap of jiffies at five minutes."""
    (clock,) = Clock.fitting(*sample(hz, uptime))
    assert clock.hz == hz
    later, expected = sample(hz, uptime + 60)[1], sample(hz, uptime + 60)[0]
    assert abs(signed32(clock.jiffies(later) - expected)) <= 1


@pytest.mark.parametrize("hz", [100, 250, 300, 1000])
@pytest.mark.parametrize("uptime", [250.0, 285.0, 297.0, 299.9, 300.0, 300.2, 304.0, 315.0])
def test_two_samples_tell_it_about_the_wrap(hz: int, uptime: float) -> None:
    """There one sample may fit several; the wrong one would age flows at another speed."""
    first, second = sample(hz, uptime), sample(hz, uptime + 0.25)
    assert Clock.calibrate(first, second).hz == hz
    assert len(Clock.fitting(*sample(hz, 300.0))) > 1


@pytest.mark.parametrize("hz", [100, 250, 300, 1000])
def test_a_clock_that_has_lost_ticks(hz: int) -> None:
    """As a machine that is emulated does while it starts: the clock is late, and known so."""
    jiffies, moment = sample(hz, 73.0)
    (clock,) = Clock.fitting(jiffies - 3 * hz, moment)
    assert clock.hz == hz
    assert clock.jiffies(moment) == (jiffies - 3 * hz) & 0xFFFFFFFF


def test_a_clock_that_fits_nothing() -> None:
    """An unknown HZ is an error and no guess."""
    assert not Clock.fitting(*sample(77, 1000.0))
    with pytest.raises(InvalidError, match="no known HZ"):
        Clock.calibrate(sample(77, 1000.0), sample(77, 1000.25))


@pytest.mark.parametrize(
    ("difference", "signed"),
    [(0, 0), (1, 1), (-1, -1), (0xFFFFFFFF, -1), (0x7FFFFFFF, 0x7FFFFFFF),
     (0x80000000, -0x80000000), ((1 << 32) + 5, 5)],
)  # fmt: skip
def test_signed32(difference: int, signed: int) -> None:
    """Differences of clocks that wrap."""
    assert signed32(difference) == signed


class Tables:
    """Two maps as the programs have them, and the conntrack over both."""

    def __init__(self) -> None:
        self.flows = FakeMap("hash", KEY, VALUE, max_entries=1000)
        self.pending = FakeMap("hash", KEY, VALUE, max_entries=1000)
        self.conntrack = Conntrack(self.flows, self.pending, CLOCK)

    def put(self, table: FakeMap, key: FlowKey, seconds: float, **fields: Any) -> None:
        """An entry that expires in so many seconds; its opener is the low end."""
        value = np.zeros(1, VALUE)
        expires = CLOCK.jiffies64(time.clock_gettime_ns(time.CLOCK_MONOTONIC))
        expires += int(seconds * CLOCK.hz)
        value["expires"], value["expires_high"] = expires & 0xFFFFFFFF, expires >> 32 & 0xFF
        for name, data in fields.items():
            value[name] = data
        table.update_batch(key.packed(KEY), value)


@pytest.fixture
def tables() -> Tables:
    return Tables()


def test_entries_are_seen_from_the_opener(tables: Tables) -> None:
    """Ends, identities and counters turn round with `opener`; what was counted since is added."""
    key = FlowKey.of("10.0.0.1", "10.0.0.2", 40000, 80, 6)
    for opener in (0, 1):
        low_first = [opener, 1 - opener]
        packets, size = np.array([6, 5])[low_first], np.array([640, 500])[low_first]
        tables.put(
            tables.flows,
            key,
            60,
            opener=opener,
            identity=np.array([1001, 1002])[low_first],
            packets=packets,
            bytes=size,
            sent=(packets << 38) + size + np.array([(1 << 38) + 60, 0])[low_first],
            state=3,
            rule=9,
        )
        (entry,) = tables.conntrack
        low, high = (key.low, key.low_port), (key.high, key.high_port)
        ends = ((entry.src, entry.sport), (entry.dst, entry.dport))
        assert ends == ((high, low) if opener else (low, high))
        assert (entry.src_identity, entry.dst_identity) == (1001, 1002)
        assert (entry.packets, entry.bytes, entry.rule) == ((7, 5), (700, 500), 9)
        assert entry.closing and entry.replied
        assert entry.expires_in == pytest.approx(60, abs=1)


def test_live_entries_of_both_tables(tables: Tables) -> None:
    """Expired ones are not shown; a pending one is one without a reply."""
    keys = [FlowKey.of("10.0.0.1", "10.0.0.2", port, 80, 6) for port in range(1, 5)]
    tables.put(tables.flows, keys[0], 60)
    tables.put(tables.flows, keys[1], -1)
    tables.put(tables.pending, keys[2], 60)
    tables.put(tables.pending, keys[3], -1)
    found = {min(e.sport, 80 if e.sport == 80 else e.sport): e.replied for e in tables.conntrack}
    assert len(tables.conntrack) == 2
    assert set(found.values()) == {True, False}
    seen = [tables.conntrack.get(key) for key in keys]
    assert [entry and entry.replied for entry in seen] == [True, None, False, None]


def test_a_dead_entry_hides_no_live_one(tables: Tables) -> None:
    """The ports of a flow that ended are in use again before the old entry is collected."""
    key = FlowKey.of("10.0.0.1", "10.0.0.2", 40000, 80, 6)
    tables.put(tables.flows, key, -1)
    tables.put(tables.pending, key, 60)
    entry = tables.conntrack.get(key)
    assert entry is not None and not entry.replied


def test_collect_and_flush(tables: Tables) -> None:
    """`collect` takes what has expired and nothing else, `flush` the rest."""
    for number in range(20):
        key = FlowKey.of("fd00::1", "fd00::2", number + 1, 80, 17)
        tables.put(tables.flows if number % 2 else tables.pending, key, number - 9.5)
    live = {str(entry) for entry in tables.conntrack if isinstance(entry, FlowEntry)}
    assert tables.conntrack.collect() == 10
    assert (len(tables.flows), len(tables.pending)) == (5, 5)
    assert len(live) == len(tables.conntrack) == 10
    assert tables.conntrack.collect() == 0
    assert tables.conntrack.flush() == 10
    assert not list(tables.conntrack)
    assert tables.conntrack.flush() == 0


class Written(FakeMap):
    """A table to which a program writes right after all of it, or one of it, was read."""

    written: tuple[Any, Any] | None = None
    after = ""

    def lookup_batch(self) -> tuple[Any, Any]:
        found = super().lookup_batch()
        self._write_if("lookup_batch")
        return found

    def pop(self, key: Any, default: Any = None) -> Any:
        found = super().pop(key, default)
        self._write_if("pop")
        return found

    def _write_if(self, call: str) -> None:
        if self.written and self.after == call:
            self.update_batch(*self.written)
            self.after = ""


@pytest.mark.parametrize("after", ["lookup_batch", "pop"])
@pytest.mark.parametrize("table", ["flows", "pending"])
def test_collect_leaves_what_is_written_meanwhile(table: str, after: str) -> None:
    """An expired flow whose next packet comes while the table is cleaned is a new one: it stays."""
    tables = Tables()
    busy = Written("hash", KEY, VALUE, 64, table)
    setattr(tables, table, busy)
    tables.conntrack = Conntrack(tables.flows, tables.pending, CLOCK)
    again, dead = (FlowKey.of("10.0.0.1", "10.0.0.2", port, 80, 6) for port in (1, 2))
    tables.put(busy, again, 60, rule=7)
    written = busy.lookup_batch()
    for key in (again, dead):
        tables.put(busy, key, -1)
    busy.written, busy.after = written, after
    assert tables.conntrack.collect() == (1 if after == "lookup_batch" else 2)
    (entry,) = tables.conntrack
    assert (entry.sport, entry.rule) == (1, 7)
    assert len(busy) == 1 and tables.conntrack.collect() == 0


@pytest.mark.parametrize("wraps", [0.5, 0.75, 1, 1.5, 2, 100])
def test_what_has_expired_long_ago_is_not_alive(tables: Tables, wraps: float) -> None:
    """However often 32 bits of jiffies have wrapped since."""
    key = FlowKey.of("10.0.0.1", "10.0.0.2", 1, 80, 6)
    tables.put(tables.flows, key, -(wraps * (1 << 32) + 100) / CLOCK.hz)
    assert tables.conntrack.get(key) is None and not list(tables.conntrack)
    assert tables.conntrack.collect() == 1 and len(tables.flows) == 0


def test_expiry_over_the_wrap_of_the_clock(tables: Tables, monkeypatch: pytest.MonkeyPatch) -> None:
    """Entries made before jiffies wrap and looked at after it live on for the right time."""
    wraps_at = 300  # seconds after the start
    monkeypatch.setattr(time, "clock_gettime_ns", lambda _: (wraps_at - 1) * 10**9)
    key = FlowKey.of("10.0.0.1", "10.0.0.2", 1, 80, 6)
    tables.put(tables.flows, key, 10)
    for passed, left in ((0, 10), (5, 5), (9, 1)):
        now = (wraps_at - 1 + passed) * 10**9
        monkeypatch.setattr(time, "clock_gettime_ns", lambda _, now=now: now)
        entry = tables.conntrack.get(key)
        assert entry is not None and entry.expires_in == pytest.approx(left)
        assert tables.conntrack.collect() == 0
    monkeypatch.setattr(time, "clock_gettime_ns", lambda _: (wraps_at + 10) * 10**9)
    assert tables.conntrack.get(key) is None
    assert tables.conntrack.collect() == 1


# ---------------------------------------------------------------------- by a service


FRONTEND = SPEC.type("lb_frontend").dtype
SERVICE, BACKEND, HAIRPIN = 8, 16, 32


class Translated(Tables):
    """One flow to a service: what the client sent by each entry, and the backend by its own."""

    def __init__(self, hairpin: bool = False) -> None:
        super().__init__()
        frontends = FakeMap("array", np.dtype("u4"), FRONTEND, max_entries=8)
        row = np.zeros(1, FRONTEND)
        row["addr"] = np.frombuffer(address_to_bytes(parse_address("10.96.0.10")), np.uint8)
        row["port"] = 80
        frontends.update_batch(np.array([3], "u4"), row)
        self.conntrack = Conntrack(self.flows, self.pending, CLOCK, frontends)
        self.by_service = FlowKey.of("10.0.0.2", "10.96.0.10", 40000, 80, 6)
        other = "169.254.42.1" if hairpin else "10.0.0.2"
        server = "10.0.0.2" if hairpin else "10.0.0.3"
        self.by_backend = FlowKey.of(other, server, 40000, 8080, 6)
        extra = HAIRPIN if hairpin else 0
        for key, state, table, client in (
            (self.by_service, SERVICE, self.flows, "10.0.0.2"),
            (self.by_backend, BACKEND, self.pending, other),
        ):
            opener = int(str(key.high) == client)
            sent = [0, 0]
            sent[opener] = (5 << 38) + 500
            if state == BACKEND:
                sent[1 - opener] = (2 << 38) + 200
            self.put(table, key, 60, opener=opener, state=state | extra, sent=sent, frontend=3)


@pytest.mark.parametrize("hairpin", [False, True])
def test_a_translated_flow_is_one_entry(hairpin: bool) -> None:
    """With the sums of both, its backend, and the service that its opener knows."""
    tables = Translated(hairpin)
    (entry,) = tables.conntrack
    assert (str(entry.src), entry.sport) == ("10.0.0.2", 40000)
    assert (str(entry.dst), entry.dport) == ("10.0.0.2" if hairpin else "10.0.0.3", 8080)
    assert entry.service == (parse_address("10.96.0.10"), 80)
    assert (entry.packets, entry.bytes) == ((10, 2), (1000, 200))
    assert entry.service_key == tables.by_service
    keys = [tables.by_service]
    if not hairpin:
        assert entry.key == tables.by_backend
        keys.append(tables.by_backend)
    for key in keys:
        found = tables.conntrack.get(key)
        assert found is not None and evolve(found, expires_in=entry.expires_in) == entry


def test_a_translated_flow_whose_other_entry_is_gone() -> None:
    """What there is of it; and nothing of a service's entry alone."""
    tables = Translated()
    tables.flows.clear()
    (entry,) = tables.conntrack
    assert (entry.packets, entry.service) == ((5, 2), (parse_address("10.96.0.10"), 80))
    assert tables.conntrack.get(tables.by_service) is None
    tables = Translated()
    tables.pending.clear()
    assert list(tables.conntrack) == []
    assert tables.conntrack.get(tables.by_service) is None
