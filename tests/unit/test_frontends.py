"""Frontends by number: whose a number is, and under which revision flows may rely on it."""

from __future__ import annotations

import errno

import pytest

from pyciliumlib.errors import KernelError, MapFullError
from pyciliumlib.loadbalancer import Frontend, LoadBalancerConfig, LocalNode, Service
from pyciliumlib.loadbalancer.restore import RestoredTable
from pyciliumlib.loadbalancer.table import ServiceTable
from pyciliumlib.testing import FakeKernel
from tests.unit.test_service_table import Time, maps

CONFIG = LoadBalancerConfig(table_size=251)
NODE = LocalNode("n1", ["192.0.2.1"])


@pytest.fixture
def kernel() -> FakeKernel:
    return maps()


@pytest.fixture
def clock() -> Time:
    return Time()


@pytest.fixture
def table(kernel: FakeKernel, clock: Time) -> ServiceTable:
    return ServiceTable(kernel, CONFIG, NODE, clock)


def web(*backends: int, name: str = "web", vip: str = "10.96.0.10:80", **options: int) -> Service:
    return Service(name, [vip], [f"10.0.0.{n}:8080" for n in backends], **options)


def put(table: ServiceTable, *services: Service) -> None:
    table.apply(table.plan(services))


def number(kernel: FakeKernel, address: str = "10.96.0.10") -> int:
    """The number of the only frontend at an address."""
    (found,) = [entry.frontend for key, entry in kernel["lb_services"].items()
                if str(key.addr) == address and key.port]  # fmt: skip
    return int(found)


def revision(kernel: FakeKernel, of: int) -> int:
    return int(kernel["lb_frontends"].lookup(of).revision)


def changes(kernel: FakeKernel) -> int:
    return revision(kernel, 0)


def test_a_row_says_what_answers_become(kernel: FakeKernel, table: ServiceTable) -> None:
    """The service's address, and whose it is."""
    put(table, web(1, affinity_timeout=60))
    row = kernel["lb_frontends"].lookup(number(kernel))
    assert (str(row.addr), row.port, row.proto) == ("10.96.0.10", 80, 6)
    assert (row.service, row.affinity) == (table.service_id(web().key), 60)
    told = table.service_of(number(kernel))
    assert str(told) == "default/web 10.96.0.10:80"
    assert table.service_of(99) is None


def test_what_does_not_concern_a_flow_leaves_it_alone(
    kernel: FakeKernel, table: ServiceTable
) -> None:
    """More backends, and other services: nobody has to look."""
    put(table, web(1))
    mine, before, told = number(kernel), revision(kernel, number(kernel)), changes(kernel)
    put(table, web(1, 2), web(3, name="other", vip="10.96.0.11:80"))
    assert (number(kernel), revision(kernel, mine)) == (mine, before)
    assert changes(kernel) == told + 1  # there is a new one
    put(table, web(1, 2, 4), web(3, name="other", vip="10.96.0.11:80"))
    assert changes(kernel) == told + 1


def test_a_backend_that_leaves(kernel: FakeKernel, table: ServiceTable) -> None:
    """Flows by the service are decided again; others look, and find that theirs has not moved."""
    other = web(3, name="other", vip="10.96.0.11:80")
    put(table, web(1, 2), other)
    mine, theirs = number(kernel), number(kernel, "10.96.0.11")
    before = revision(kernel, mine), revision(kernel, theirs), changes(kernel)
    put(table, web(2), other)
    after = revision(kernel, mine), revision(kernel, theirs), changes(kernel)
    assert [b - a for a, b in zip(before, after, strict=True)] == [1, 0, 1]


def test_the_cell_of_all_changes_is_written_last(kernel: FakeKernel, table: ServiceTable) -> None:
    """Whoever looks because of it finds everything as it will be."""
    put(table, web(1, 2))
    seen = []
    rows = kernel["lb_frontends"]
    write = rows.update_batch

    def watch(keys: object, values: object) -> int:
        if list(keys) == [0]:  # type: ignore[call-overload]
            seen.append([row.revision for row in kernel["lb_backends"].values() if row.revision])
        return write(keys, values)  # type: ignore[arg-type]

    rows.update_batch = watch  # type: ignore[method-assign]
    put(table, web(2))
    assert seen == [[2, 1]]  # the one that left is even


def test_a_number_that_is_used_again(kernel: FakeKernel, table: ServiceTable, clock: Time) -> None:
    """Its revision goes on, whoever has it."""
    put(table, web(1))
    first = number(kernel)
    seen = [revision(kernel, first)]
    for turn in range(40):
        clock.now += 1
        put(table, web(1, name=f"w{turn}", vip=f"10.96.1.{turn}:80"))
        if number(kernel, f"10.96.1.{turn}") == first:
            break
        seen.append(revision(kernel, first))
    else:
        raise AssertionError("the number was never used again")
    seen.append(revision(kernel, first))
    assert seen == sorted(seen) and seen[0] < seen[1] < seen[-1]


def test_more_than_there_is_room_for(table: ServiceTable, kernel: FakeKernel) -> None:
    """MapFullError, and what is there stays."""
    put(table, web(1))
    many = Service("many", [Frontend("10.96.0.12", port) for port in range(1, 20)])
    before = kernel["lb_frontends"].lookup_batch()[1].tobytes()[32:]
    with pytest.raises(MapFullError, match="frontends by number"):
        table.apply(table.plan([many], whole=False))
    assert kernel["lb_frontends"].lookup_batch()[1].tobytes()[32:] == before
    some = Service("some", [Frontend("10.96.0.12", port) for port in range(1, 14)])
    table.apply(table.plan([some], whole=False))  # the numbers that were taken are free again


def test_a_change_that_fails(kernel: FakeKernel, table: ServiceTable) -> None:
    """Rows are as before; who looked meanwhile looks again, and the next change differs."""
    put(table, web(1, 2))
    mine = number(kernel)
    before, told = revision(kernel, mine), changes(kernel)

    def fail(*_: object) -> int:
        raise KernelError(errno.EIO, "broken")

    cells = kernel["lb_members"]
    whole, cells.delete_batch = cells.delete_batch, fail  # type: ignore[method-assign]
    with pytest.raises(KernelError):
        put(table, web(2))
    cells.delete_batch = whole  # type: ignore[method-assign]
    assert revision(kernel, mine) == before
    assert changes(kernel) > told
    put(table, web(2))
    assert revision(kernel, mine) == before + 2


def test_without_the_map(clock: Time) -> None:
    """A balancer whose programs need no numbers has none."""
    kernel = maps()
    names = ("services", "members", "ranges", "backends", "revisions", "filter", "slots")
    bare = {f"lb_{name}": kernel[f"lb_{name}"] for name in names}
    table = ServiceTable(bare, CONFIG, NODE, clock)
    put(table, web(1))
    put(table, web(2))
    (entry,) = [entry for key, entry in bare["lb_services"].items() if key.port]
    assert (entry.frontend, entry.frontend_revision) == (0, 0)


def test_after_a_restart(kernel: FakeKernel, table: ServiceTable) -> None:
    """The same numbers under the same revisions; an entry and a row that differ get another."""
    put(table, web(1), web(3, name="other", vip="10.96.0.11:80"))
    mine, theirs = number(kernel), number(kernel, "10.96.0.11")
    before = revision(kernel, mine), revision(kernel, theirs)
    again = RestoredTable(kernel, table.saved(), CONFIG, NODE, clock=Time())
    assert (revision(kernel, mine), revision(kernel, theirs)) == before
    assert not list(again.differences())

    row = kernel["lb_frontends"].lookup(mine)._asdict()
    kernel["lb_frontends"][mine] = {**row, "revision": row["revision"] + 1}
    mended = RestoredTable(kernel, table.saved(), CONFIG, NODE, clock=Time())
    assert (revision(kernel, mine), revision(kernel, theirs)) == (before[0] + 2, before[1])
    assert not list(mended.differences())
    assert str(mended.service_of(mine)) == "default/web 10.96.0.10:80"
