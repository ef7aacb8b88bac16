"""Maglev tables: the paper's example, Cilium's golden figures, evenness, disruption, bad input."""

from __future__ import annotations

import ipaddress
import re

import numpy as np
import pytest
from pyciliumlib._fast import ffi, lib

from pyciliumlib.errors import InvalidError, NotFoundError, UnitError
from pyciliumlib.loadbalancer import (
    Backend,
    FlowHash,
    FlowTuple,
    Maglev,
    MaglevSeed,
    notebook,
)
from pyciliumlib.loadbalancer.maglev import SIZES
from pyciliumlib.loadbalancer.notebook import Bar


def backends(count: int, weight: int = 100) -> list[Backend]:
    first = ipaddress.ip_address("10.0.0.1")
    return [Backend(first + index, 8080, weight=weight) for index in range(count)]


def fill(size: int, offsets: list[int], skips: list[int]) -> list[int]:
    slots = np.empty(size, np.uint32)
    arrays = [ffi.from_buffer("uint32_t[]", np.array(a, np.uint32)) for a in (offsets, skips)]
    lib.pcl_maglev_fill(ffi.from_buffer("uint32_t[]", slots), size, *arrays, ffi.NULL, len(offsets))
    return slots.tolist()


def test_the_papers_example():
    """Table 1 and figure 3 of the paper, with B1 and without it."""
    assert fill(7, [3, 0, 3], [4, 2, 1]) == [1, 0, 1, 0, 2, 2, 0]
    assert fill(7, [3, 3], [4, 1]) == [0, 0, 0, 0, 1, 1, 1]


def test_golden_counts_of_weights():
    """The counts that Cilium's own test of weights expects."""
    weights = {"0.0.0.1": 2, "0.0.0.3": 13, "0.0.0.4": 111, "0.0.0.5": 10}
    table = Maglev(1021).build(
        Backend(ip, int(ip[-1]), weight=weight) for ip, weight in weights.items()
    )
    assert list(table.counts().values()) == [16, 98, 832, 75]


def test_known_placement():
    """Offset and skip of a backend under the default seed, as Cilium computed them."""
    assert Maglev(251).placement(Backend("0.0.0.1", 1)) == (129, 67)


@pytest.mark.parametrize(
    ("backend", "text"),
    [
        (Backend("10.0.0.1", 80), "[10.0.0.1:80/TCP,State:active]"),
        (Backend("2001:DB8:0:0:1:0:0:1", 53, "UDP"), "[[2001:db8::1:0:0:1]:53/UDP,State:active]"),
        (Backend("::ffff:10.0.0.1", 80), "[[::ffff:10.0.0.1]:80/TCP,State:active]"),
        (Backend("10.0.0.1", 80, cluster_id=3), "[10.0.0.1@3:80/TCP,State:active]"),
        (Backend("10.0.0.1", 80, "SCTP", internal=True), "[10.0.0.1:80/SCTP/i,State:active]"),
    ],
)
def test_hash_strings(backend, text):
    """Every part that the text has, and IPv6 in its one short form."""
    assert backend.hash_string == text


@pytest.mark.parametrize("count", [1, 2, 3, 10, 100])
@pytest.mark.parametrize("size", SIZES[:4])
def test_even_shares(size, count):
    """Without weights the counts differ by one at most."""
    counts = Maglev(size).build(backends(count)).counts().values()
    assert max(counts) - min(counts) <= 1
    assert sum(counts) == size


def test_removing_one_moves_its_slots_and_few_others():
    """The slots of the one that went move, and less than 5 percent beside them."""
    maglev = Maglev(16381)
    before = maglev.build(backends(100))
    change = before.disruption(maglev.build(backends(99)))
    assert change.ideal == before.counts()[backends(100)[-1]]
    assert change.moved == change.ideal + change.extra
    assert 0 < change.extra < 0.05 * 16381


def test_equal_backends_share_their_slots():
    """In any order, whatever their states, and as long as somebody holds them."""
    maglev = Maglev(251)
    table = maglev.build(backends(5))
    assert maglev.build(reversed(backends(5))).slots is table.slots
    terminating = [backend.in_state("terminating") for backend in backends(5)]
    assert maglev.build(terminating).slots is table.slots
    assert maglev.build(terminating).backends == tuple(terminating)
    for others in (backends(4), backends(5, weight=7), [*backends(4), *backends(5, 7)[4:]]):
        assert maglev.build(others).slots is not table.slots


def test_ids_are_those_of_the_map():
    """Each slot with the number of its backend; a table without backends is all 0."""
    table = Maglev(251).build(backends(2))
    assert set(table.ids([7, 9]).tolist()) == {7, 9}
    assert (table.ids([7, 9]) == 7).sum() == table.counts()[table.backends[0]]
    assert set(Maglev(251).build([]).ids([]).tolist()) == {0}
    with pytest.raises(InvalidError, match="2 backends need as many ids"):
        table.ids([1])


def test_selection_follows_the_hash_and_the_columns_agree():
    """One flow and a thousand at once find the same backends, in both families."""
    table = Maglev(1021).build(backends(7))
    rng = np.random.default_rng(1)
    for width in (4, 16):
        clients = rng.integers(0, 256, (1000, width), np.uint8)
        clients[:, 0] = 0xFD
        ports = rng.integers(1, 65536, (2, 1000)).astype(np.uint16)
        protocols = np.full(1000, 6, np.uint8)
        positions = table.select_columns(clients, ports[0], ports[1], protocols)
        for row in range(0, 1000, 97):
            flow = FlowTuple(
                ipaddress.ip_address(clients[row].tobytes()), int(ports[0, row]), int(ports[1, row])
            )
            assert table.select(flow) == table.backends[positions[row]]
        assert len(set(positions.tolist())) == 7


def test_affinity_leaves_the_clients_port_out():
    """Every connection of a client goes to the same backend."""
    table = Maglev(1021).build(backends(7))
    flows = [FlowTuple("192.0.2.1", port, 443) for port in range(1024, 1100)]
    assert len({table.select(flow, affinity=True) for flow in flows}) == 1
    assert len({table.select(flow) for flow in flows}) > 1


def test_known_flow_hash():
    """A hash that Cilium's own program gave."""
    seed = MaglevSeed.parse("JLfvgnHc2kaSUFaI")
    assert seed.flow == FlowHash(1910299206, 2454738568)
    assert seed.flow.of(FlowTuple("160.66.190.92", 53137, 53, "UDP")) == 3639145694


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Maglev(257), InvalidError, "write one of 251, 509"),
        (lambda: Maglev(True), InvalidError, "table size"),
        (lambda: Maglev(seed="AAAA"), InvalidError, "holds 3 bytes and not 12"),
        (lambda: Maglev(seed="no base64!"), InvalidError, "is no base64"),
        (lambda: Maglev().build([*backends(2), *backends(1)]), InvalidError, "is there twice"),
        (lambda: Backend("10.0.0.1", 0), UnitError, "port 0"),
        (lambda: Backend("10.0.0.1", 65536), UnitError, "port 65536"),
        (lambda: Backend("web", 80), UnitError, "is no address"),
        (lambda: Backend("10.0.0.1", 80, "ICMP"), UnitError, "has no services"),
        (lambda: Backend("10.0.0.1", 80, weight=65536), UnitError, "weight 65536"),
        (lambda: Backend("10.0.0.1", 80, cluster_id=256), UnitError, "cluster id 256"),
        (
            lambda: Maglev(251).build([]).select(FlowTuple("10.0.0.1", 1, 2)),
            NotFoundError,
            "no backends",
        ),
        (
            lambda: Maglev(251).build([]).disruption(Maglev(509).build([])),
            InvalidError,
            "do not compare",
        ),
        (
            lambda: FlowHash(1, 2).of_columns(np.zeros(4, np.uint8), *np.zeros((3, 1), np.uint8)),
            InvalidError,
            r"shape \(n, 4\)",
        ),
    ],
)
def test_bad_input(make, error, message):
    """A typed error that says the mend."""
    with pytest.raises(error, match=message):
        make()


def test_shares_of_a_change():
    """What each backend keeps, loses and gains adds up to its slots before and after."""
    maglev = Maglev(1021)
    before, after = maglev.build(backends(10)), maglev.build(backends(9, weight=7))
    change = before.disruption(after)
    old, new = ({str(b): n for b, n in table.counts().items()} for table in (before, after))
    for share in change.shares:
        assert share.kept + share.lost == old[str(share.backend)]
        assert share.kept + share.gained == new.get(str(share.backend), 0)
    assert sum(share.lost for share in change.shares) == change.moved
    assert change.shares[0].kept == 0 and len(change.shares) == 10
    assert Maglev(251).build([]).disruption(Maglev(251).build([])).shares == ()


def test_html_names_every_backend():
    """The notebook form: a row for each of the first 40, and how many are left."""
    table = Maglev(1021).build(backends(42))
    page = table._repr_html_()
    assert page.count("<tr><td>") == 40
    assert "and 2 more" in page and "10.0.0.1:8080/TCP" in page
    change = table.disruption(Maglev(1021).build(backends(41)))
    page = change._repr_html_()
    assert page.count("<tr><td>") == 40 and "and 2 more" in page
    assert str(change).partition(";")[0] in page
    widths = [int(width) for width in re.findall(r"width:([0-9]+)px", page)]
    assert max(widths) <= 320 and len(widths) == 3 * 40
    assert "<script" not in page


def test_html_is_escaped():
    """Whatever a name holds."""
    page = notebook.table("<b>", ["<i>"], [["<script>alert(1)</script>", Bar((0.5, 0.5))]])
    assert "<script" not in page and "<b>" not in page and "<i>" not in page
    assert page.count("width:160px") == 2
    assert "…" in notebook.table("", [], [["x" * 1000]])
