"""What the map of translated sockets says, in memory: who is connected, whose backend is gone."""

from __future__ import annotations

import pytest
from attrs import evolve

from pyciliumlib.kernel import MapType, ObjectSpec
from pyciliumlib.loadbalancer import LoadBalancerConfig, Service
from pyciliumlib.loadbalancer.sockets import Sockets
from pyciliumlib.loadbalancer.table import ServiceTable
from pyciliumlib.resources import object_path
from pyciliumlib.testing import FakeKernel
from pyciliumlib.types import Protocol, parse_address

WEB = Service("web", ["10.96.0.10:80", "[fd00:96::10]:80"], ["10.0.0.1:8080", "[fd00::1]:8080"])


@pytest.fixture
def kernel() -> FakeKernel:
    """The object's maps; one that forgets the oldest does not, as none is ever full here."""
    specs = ObjectSpec.open(object_path("socket")).maps.values()
    return FakeKernel(
        evolve(spec, type=MapType.HASH) if spec.type is MapType.LRU_HASH else spec for spec in specs
    )


@pytest.fixture
def table(kernel: FakeKernel) -> ServiceTable:
    made = ServiceTable(kernel, LoadBalancerConfig())
    serve(made, WEB)
    return made


def serve(table: ServiceTable, *services: Service) -> None:
    table.apply(table.plan(services))


def connect(kernel: FakeKernel, table: ServiceTable, cookie: int, backend: str) -> None:
    """What the program writes for a socket that asked for WEB and got the backend."""
    (number,) = [n for n, one in table.backends.items() if str(one.address) == backend]
    row = kernel["lb_backends"][number]
    service = "10.96.0.10" if "." in backend else "fd00:96::10"
    asked = {
        "addr": service, "port": 80, "proto": 6, "pad": 0, "service": table.service_id(WEB.key),
        "backend": number, "backend_rev": row.revision,
    }  # fmt: skip
    key = {"socket": cookie, "addr": backend, "port": 8080, "pad": bytes(6)}
    kernel["lb_reverse_sk"].update(key, asked)


def test_connections(kernel: FakeKernel, table: ServiceTable) -> None:
    """Each with what it asked for, in both families."""
    connect(kernel, table, 7, "10.0.0.1")
    connect(kernel, table, 8, "fd00::1")
    found = {one.cookie: one for one in Sockets(kernel).read(table.backends)}
    assert {cookie: str(one.to) for cookie, one in found.items()} == {
        7: "10.96.0.10:80/TCP", 8: "[fd00:96::10]:80/TCP",
    }  # fmt: skip
    assert found[7].backend == WEB.backends[0] and found[8].backend == WEB.backends[1]


CHANGES: dict[str, tuple[list[Service], set[int]]] = {
    "nothing": ([WEB], set()),
    "a backend more": ([WEB.with_backends([*WEB.backends, "10.0.0.2:8080"])], set()),
    "drained": ([WEB.with_backends([b.in_state("terminating") for b in WEB.backends])], set()),
    "one gone": ([WEB.with_backends(WEB.backends[1:])], {7}),
    "all gone": ([], {7, 8}),
    "another service's": ([Service("b", ["10.96.0.11:80"], WEB.backends[:1])], {7, 8}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_orphans(kernel: FakeKernel, table: ServiceTable, change: str) -> None:
    """Whose backend is there no more, or is another service's alone; the others are connections."""
    services, gone = CHANGES[change]
    connect(kernel, table, 7, "10.0.0.1")
    connect(kernel, table, 8, "fd00::1")
    serve(table, *services)
    sockets = Sockets(kernel)
    orphans = sockets.orphans()
    assert {orphan.cookie for orphan in orphans} == gone
    assert {one.cookie for one in sockets.read(table.backends)} == {7, 8} - gone
    for orphan in orphans:
        address = parse_address("10.0.0.1" if orphan.cookie == 7 else "fd00::1")
        assert (orphan.protocol, orphan.peer) == (Protocol.TCP, (address, 8080))
    sockets.forget(orphans)
    assert {key.socket for key in kernel["lb_reverse_sk"]} == {7, 8} - gone


def test_a_backend_that_comes_back_is_another(kernel: FakeKernel, table: ServiceTable) -> None:
    """Who was connected to it before is an orphan still."""
    connect(kernel, table, 7, "10.0.0.1")
    serve(table)
    serve(table, WEB)
    assert [orphan.cookie for orphan in Sockets(kernel).orphans()] == [7]
