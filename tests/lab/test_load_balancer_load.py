"""Nothing fails under change: wrk, ten thousand connections, datagrams, a flood, full maps."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from attrs import evolve

from pyciliumlib.lab.processes import Spawner, terminate
from pyciliumlib.loadbalancer import Backend
from pyciliumlib.loadbalancer.program import LoadBalancer, Sizes
from pyciliumlib.loadbalancer.program.load_balancer import DEFAULTS
from pyciliumlib.net import Netlink, NetNS
from tests.bpf.sockets import at
from tests.lab.balancer_controller import controlled
from tests.lab.balancer_scene import VIP, Scene, backend_address, dns, exchange
from tests.lab.http_load import load
from tests.lab.nginx import PORT, web_scene
from tests.lab.syn_flood import flood
from tests.lab.test_load_balancer import SIZES, web

_serial = itertools.count()


@pytest.fixture(scope="module")
def spawner() -> Iterator[Spawner]:
    made = Spawner()
    yield made
    made.close()


@pytest.fixture(scope="module")
def scene(spawner: Spawner, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with web_scene(spawner, tmp_path_factory.mktemp("scene")) as made:
        yield made


@pytest.fixture
def pin_root() -> Iterator[Path]:
    """A root of this test alone, gone afterwards."""
    path = Path(f"/sys/fs/bpf/pcl-load-{os.getpid()}-{next(_serial)}")
    yield path
    left = path.exists()
    shutil.rmtree(path, ignore_errors=True)
    assert not left


def make(scene: Scene, sizes: Sizes = SIZES) -> LoadBalancer:
    return scene.director.call(lambda: LoadBalancer("eth0", sizes=sizes))


# ---------------------------------------------------------------------- changes under wrk


@contextlib.contextmanager
def wrk(
    spawner: Spawner, netns: NetNS, connections: int, *headers: str
) -> Iterator[subprocess.Popen[str]]:
    """wrk on the service from a namespace, until it is interrupted."""
    given = [word for header in headers for word in ("--header", header)]
    argv = ["wrk", "--threads", 1, "--connections", connections, "--duration", "600s",
            "--timeout", "10s", *given, f"http://{VIP[4]}:{PORT}/"]  # fmt: skip
    process = spawner.spawn(netns, argv, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        terminate([process])
        process.stdout.close()


def requests_of(process: subprocess.Popen[str]) -> int:
    """Interrupt wrk; how many requests it made, none of which failed."""
    process.send_signal(2)
    assert process.stdout is not None
    said = process.stdout.read()
    assert "Socket errors" not in said, said
    assert "Non-2xx" not in said, said
    found = re.search(r"(\d+) requests in", said)
    assert found, said
    return int(found[1])


def test_a_thousand_changes(scene: Scene, spawner: Spawner) -> None:
    """A backend comes and, drained, goes a thousand times, and no request fails, old or new."""
    leaving = Backend(backend_address(3, 4), PORT)
    # room for some seconds of connections: one that is evicted forgets that it has this backend
    with make(scene, evolve(SIZES, flows=16384)) as balancer:
        balancer.apply([web(4, (1, 2), PORT)])
        with wrk(spawner, scene.client, 8) as kept, contextlib.ExitStack() as stack:
            time.sleep(0.5)
            closing = stack.enter_context(wrk(spawner, scene.client, 4, "Connection: close"))
            met = 0
            for _ in range(1000):
                balancer.apply([web(4, (1, 2, 3), PORT)])
                met += bool(connected_to(balancer, leaving))
                balancer.drain(leaving)
                wait_until_gone(balancer, leaving)
                balancer.apply([web(4, (1, 2), PORT)])
            assert requests_of(closing) > 1000
            assert requests_of(kept) > 10000
        assert met > 100
        assert not balancer.drift(), str(balancer.drift())


def connected_to(balancer: LoadBalancer, backend: Backend) -> int:
    """How many connections of a backend have not begun to close; the others are not looked at."""
    numbers = {n: held for n, held in balancer._backends_now().items() if held.key == backend.key}
    return sum(not one.closing for one in balancer._flows.read(numbers))


def wait_until_gone(balancer: LoadBalancer, backend: Backend) -> None:
    """Until two looks in a row find none: one that was just being decided shows in the second."""
    deadline = time.monotonic() + 20
    looks = 0
    while looks < 2:
        assert time.monotonic() < deadline
        looks = 0 if connected_to(balancer, backend) else looks + 1
        time.sleep(0.004)


# ---------------------------------------------------------------------- many connections


def test_ten_thousand_connections(scene: Scene, spawner: Spawner, pin_root: Path) -> None:
    """They keep their backends through changes, while nobody is there, and at the takeover."""
    sizes = evolve(SIZES, flows=32768)
    services = [web(4, port=PORT)]
    with (
        controlled(spawner, scene.director, pin_root, DEFAULTS, sizes) as controller,
        load(spawner, scene.client, (VIP[4], PORT), hold=10000) as clients,
    ):
        controller.hold(services)
        clients.wait_until_held()
        controller.hold([web(4, port=PORT, algorithm="random")])
        controller.kill()
        with scene.director.call(lambda: LoadBalancer.open(pin_root)) as balancer:
            assert len(balancer._object.maps["lb_flows"]) >= 10000
            balancer.apply(services)
            result = clients.end()
    assert (result.held, result.failed) == (10000, [])
    assert sum(result.homes.values()) == 10000 and min(result.homes.values()) > 2500


# ---------------------------------------------------------------------- datagrams


def test_datagrams_through_changes(scene: Scene, pin_root: Path) -> None:
    """Questions like those of DNS, each from a port of its own: every one is answered."""
    sets = [(1, 2), (1, 2, 3), (1, 3), (2, 3)]
    answered: list[str] = []
    failed: list[Exception] = []
    ending = threading.Event()

    def ask() -> None:
        while not ending.is_set():
            try:
                answered.append(scene.ask_udp(4).split()[0])
            except OSError as error:
                failed.append(error)

    balancer = scene.director.call(lambda: LoadBalancer("eth0", sizes=SIZES, pin_root=pin_root))
    balancer.apply([dns(4)])
    askers = [threading.Thread(target=ask) for _ in range(2)]
    for asker in askers:
        asker.start()
    for number in range(200):
        served = [at(backend_address(n, 4), 53, "UDP") for n in sets[number % 4]]
        balancer.apply([dns(4).with_backends(served)])
        if number % 50 == 49:
            balancer.keep()
            balancer = scene.director.call(lambda: LoadBalancer.open(pin_root))
    ending.set()
    for asker in askers:
        asker.join()
    balancer.close()
    assert failed == []
    assert len(answered) > 200 and set(answered) == {"b1", "b2", "b3"}


# ---------------------------------------------------------------------- a flood, full maps


def test_a_flood_evicts_no_connection(scene: Scene, spawner: Spawner) -> None:
    """SYNs for fifty times the table of new flows: connections stay known, busy or idle."""
    count = 50_000
    with make(scene) as balancer, contextlib.ExitStack() as stack:
        balancer.apply([web(4)])
        idle = [stack.enter_context(dialled(scene)) for _ in range(60)]
        homes = [exchange(tcp) for tcp in idle]
        assert set(homes) == {"b1", "b2", "b3"}
        balancer.upsert(evolve(web(4, port=PORT), name="busy"))
        with load(spawner, scene.client, (VIP[4], PORT), hold=60) as busy:
            busy.wait_until_held()
            before = balancer.metrics().packets(0)
            with Netlink(scene.router) as netlink:
                gateway = netlink.link("up0").mac
            flood(spawner, scene.client,
                  {"to": VIP[4], "port": 80, "mac": gateway, "count": count})  # fmt: skip
            assert balancer.metrics().packets(0) - before > 0.9 * count
            assert len(balancer._object.maps["lb_pending"]) > 500  # it is full
            known = {one.client.port for one in balancer.connections() if one.known}
            assert {tcp.getsockname()[1] for tcp in idle} <= known
            # those whose entry is lost would go elsewhere now
            balancer.upsert(web(4, algorithm="random"))
            assert [exchange(tcp) for tcp in idle] == homes
            result = busy.end()
    assert (result.held, result.failed) == (60, [])


@contextlib.contextmanager
def dialled(scene: Scene, source: str = "") -> Iterator[socket.socket]:
    """A connection to the service that nobody uses yet."""
    with scene.client.socket(socket.AF_INET, socket.SOCK_STREAM) as tcp:
        tcp.settimeout(5)
        if source:
            tcp.bind((source, 0))
        tcp.connect((VIP[4], 80))
        yield tcp


def test_full_maps(scene: Scene) -> None:
    """More connections and clients than the tables hold: all are served, and the next ones, too."""
    others = [f"198.51.100.{number}" for number in range(20, 220)]
    with make(scene, evolve(SIZES, flows=64, clients=64)) as balancer:
        with contextlib.ExitStack() as stack:
            netlink = stack.enter_context(Netlink(scene.client))
            for address in others:
                netlink.add_address("eth0", f"{address}/24")
                stack.callback(netlink.delete_address, "eth0", f"{address}/24")
            balancer.apply([web(4, affinity_timeout=60)])
            held = [stack.enter_context(dialled(scene, address)) for address in others]
            homes = [exchange(tcp) for tcp in held]
            assert set(homes) == {"b1", "b2", "b3"}
            assert len(balancer._object.maps["lb_flows"]) <= 64
            assert len(balancer._object.maps["lb_affinity"]) <= 64
            assert [exchange(tcp) for tcp in held] == homes
        assert len(scene.who(4, 10)) == 1  # who comes now is remembered
