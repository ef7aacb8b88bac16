"""Ten thousand services with a hundred thousand backends at one device, and what a change costs.

Times are by the clock on the wall, the kernel's part included. Beside the first `apply` stand the
same rows of the maps, made before, in one batch of each map.
"""

from __future__ import annotations

import ipaddress
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial

from pyciliumlib.kernel import Map
from pyciliumlib.loadbalancer import Algorithm, Backend, LoadBalancerConfig, Service
from pyciliumlib.loadbalancer.program import LoadBalancer, Sizes
from pyciliumlib.loadbalancer.slots import ROW
from pyciliumlib.net import Netlink
from tests.bench.figure import Figure, at_most
from tests.bench.footprint import Memory
from tests.bpf.balancer import device

SERVICES, EACH = 10_000, 10
CHANGES = 100
FIRST_APPLY, ONE_CHANGE = 10_000, 5
_VIPS = ipaddress.IPv4Address("172.16.0.1")
_BACKENDS = ipaddress.IPv4Address("10.1.0.0")
#: The maps that are filled for services; the others belong to packets.
_FILLED = ("lb_services", "lb_members", "lb_backends", "lb_revisions", "lb_slots", "lb_filter")


def figures() -> Iterator[Figure]:
    """Milliseconds and megabytes: at random, and by Maglev tables for ten backends and for 160."""
    before = Memory.now()
    services = [service(number) for number in range(SERVICES)]
    yield Figure(
        "the services and backends as values", Memory.now().less(before).process / 1e3, "MB"
    )
    yield from _balancing(services, LoadBalancerConfig("random", "dsr", "ipip", "native"))
    for size in (1021, 16381):
        config = LoadBalancerConfig("maglev", "dsr", "ipip", "native", table_size=size)
        yield from _balancing(services, config)


def service(number: int, spare: int = 0) -> Service:
    """One with its own backends; `spare` replaces the last of them."""
    first = _BACKENDS + number * EACH
    backends = [Backend(first + index, 80) for index in range(EACH)]
    if spare:
        backends[-1] = Backend(_BACKENDS + SERVICES * EACH + spare, 80)
    return Service(f"s{number}", [f"{_VIPS + number}:80"], backends)


def _balancing(services: list[Service], config: LoadBalancerConfig) -> Iterator[Figure]:
    maglev = config.algorithm is Algorithm.MAGLEV
    name = f"{config.algorithm} {config.table_size}" if maglev else str(config.algorithm)
    slots = -(-(config.table_size if maglev else EACH) // ROW) * ROW
    sizes = Sizes(
        services=SERVICES + CHANGES,
        frontends=SERVICES + CHANGES,
        backends=(SERVICES + 2 * CHANGES) * EACH,
        slots=slots * (SERVICES + 4 * CHANGES),
    )
    with device() as (netns, _):
        with Netlink(netns) as netlink:
            netlink.add_route("10.0.0.0/8", dev="eth0", via="192.0.2.254")
        with netns.call(lambda: LoadBalancer("eth0", config=config, sizes=sizes)) as balancer:
            before = Memory.now()
            took = _ms(partial(balancer.apply, services))
            after = Memory.now()
            yield Figure(
                f"{SERVICES:,} services, {SERVICES * EACH:,} backends, {name}: first apply", took,
                "ms", "the same rows, made before", _floor(balancer._object.maps),
                at_most(FIRST_APPLY),
            )  # fmt: skip
            yield Figure(f"{name}: memory of the maps", after.maps / 1e3, "MB")
            if not maglev:  # later rounds find memory that this one let go of
                grown = after.less(before).process / 1e3
                yield Figure(f"{name}: memory of the process for the maps", grown, "MB")
            yield from _changes(balancer, name, services)


def _changes(balancer: LoadBalancer, name: str, services: list[Service]) -> Iterator[Figure]:
    more = [service(SERVICES + number) for number in range(CHANGES)]
    others = [service(number, spare=number + 1) for number in range(CHANGES)]
    backends = [one.backends[0] for one in services[:CHANGES]]
    for what, verb, of in (
        ("one backend for another", balancer.upsert, others),
        ("one service more", balancer.upsert, more),
        ("one service less", balancer.delete, [one.key for one in more]),
        ("a backend quarantined", balancer.quarantine, backends),
        ("a backend restored", balancer.restore, backends),
        ("a backend drained", balancer.drain, backends),
    ):
        times = [_ms(partial(verb, one)) for one in of]
        yield Figure(
            f"{name}: {what}", statistics.median(times), "ms", "the slowest", max(times),
            at_most(ONE_CHANGE),
        )  # fmt: skip


def _floor(maps: Mapping[str, Map]) -> float:
    """Milliseconds that the kernel takes for the rows that are there now."""
    rows = [(maps[name], *maps[name].lookup_batch()) for name in _FILLED]
    return sum(_ms(partial(into.update_batch, keys, values)) for into, keys, values in rows)


def _ms(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return (time.perf_counter() - started) * 1e3
