"""A balancer of sockets outlives its process: killed, taken over, and what it then knows."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pyciliumlib import errors
from pyciliumlib.lab.processes import Spawner
from pyciliumlib.loadbalancer import LoadBalancerConfig, Service
from pyciliumlib.loadbalancer.program import LoadBalancer, SocketBalancer
from tests import cgroups
from tests.lab import socket_scene
from tests.lab.balancer_controller import controlled
from tests.lab.socket_scene import SIZES, VIP, Client, Scene, kinds, version_of, wait_for

_serial = itertools.count()
ENDING = LoadBalancerConfig(socket_terminate=True)


@pytest.fixture(scope="module")
def spawner() -> Iterator[Spawner]:
    made = Spawner()
    yield made
    made.close()


@pytest.fixture(scope="module")
def scene(spawner: Spawner) -> Iterator[Scene]:
    with socket_scene.scene() as made:
        yield made


def root() -> Path:
    return Path(f"/sys/fs/bpf/pcl-sockets-{os.getpid()}-{next(_serial)}")


@pytest.fixture
def pin_root() -> Iterator[Path]:
    """A root of this test alone, gone afterwards."""
    path = root()
    yield path
    left = path.exists()
    shutil.rmtree(path, ignore_errors=True)
    assert not left


def make(scene: Scene, pin_root: Path, **options: Any) -> SocketBalancer:
    options = {"sizes": SIZES, "config": ENDING, **options}
    return scene.node.call(lambda: SocketBalancer(scene.cgroup, pin_root=pin_root, **options))


def reopen(scene: Scene, pin_root: Path, **options: Any) -> SocketBalancer:
    return scene.node.call(lambda: SocketBalancer.open(pin_root, **options))


@kinds
def test_killed_and_taken_over(scene: Scene, spawner: Spawner, pin_root: Path, kind: str) -> None:
    """No connect fails and no connection breaks: while nobody is there, nor at the takeover."""
    ending = threading.Event()
    failed: list[Exception] = []
    made = [0]

    def connect() -> None:
        while not ending.is_set():
            try:
                with Client(scene.client, kind).connect() as client:
                    assert client.ask() in ("b1", "b2", "b3")
                    assert client.peer == client.to(VIP[version_of(kind)], 80)
                    made[0] += 1
            except (OSError, AssertionError) as error:
                failed.append(error)

    with controlled(spawner, scene.node.netns, pin_root, ENDING, SIZES, scene.cgroup) as controller:
        controller.hold([scene.service(), scene.service("UDP")])
        kept = Client(scene.client, kind).connect()
        home = kept.ask()
        thread = threading.Thread(target=connect)
        thread.start()
        controller.kill()
        time.sleep(0.5)
        before = made[0]
        with reopen(scene, pin_root) as balancer:
            assert not balancer.drift(), str(balancer.drift())
            assert len(balancer.services) == 2
            wait_for(lambda: made[0] > before + 50)
            ending.set()
            thread.join()
            assert failed == [] and before > 10
            assert kept.peer == kept.to(VIP[version_of(kind)], 80)
            assert [str(one.to) for one in balancer.connections()] == [
                str(scene.service().frontends[version_of(kind) // 6])
            ]
            assert sum(balancer.service_counts().values()) > made[0]
            number = int(home[1])
            balancer.upsert(scene.service("TCP", *({1, 2, 3} - {number})))
            with kept, pytest.raises(ConnectionAbortedError):
                kept.sock.recv(1)


def test_backends_that_went_when_nobody_was_there(scene: Scene, pin_root: Path) -> None:
    """Who died between a change and the end of its sockets leaves them to the next."""
    with make(scene, pin_root) as balancer:
        balancer.upsert(scene.service("TCP", 1))
        client = Client(scene.client, "IPv4").connect()
        assert balancer._terminator is not None
        balancer._terminator.close()
        balancer.upsert(scene.service("TCP", 2))
        balancer.keep()
    with client, reopen(scene, pin_root) as balancer:
        wait_for(lambda: balancer.ended == 1)
        with pytest.raises(ConnectionAbortedError):
            client.sock.recv(1)


def test_together(scene: Scene, pin_root: Path) -> None:
    """Both outlive the process, each at a pin root of its own."""
    config = LoadBalancerConfig("maglev", "dsr", "ipip", acceleration="generic", table_size=251)
    other = root()
    web = Service("web", [f"{VIP[4]}:8080"], [f"{pod.ip4}:8080" for pod in scene.backends])
    node = scene.node
    with node.call(lambda: LoadBalancer("eth0", config=config, sizes=SIZES, pin_root=other)) as lb:
        with node.call(lambda: SocketBalancer(scene.cgroup, share=lb, pin_root=pin_root)) as first:
            first.upsert(web)
            client = Client(scene.client, "IPv4").connect(VIP[4], 8080)
            first.keep()
        lb.keep()
    with client, node.call(lambda: LoadBalancer.open(other)) as lb:
        with pytest.raises(errors.StateError, match="reads other services"):
            reopen(scene, pin_root)
        with reopen(scene, pin_root, share=lb) as second:
            assert list(map(str, second.services)) == ["default/web"]
            assert client.peer == (VIP[4], 8080)
            assert client.ask() in ("b1", "b2", "b3")
            assert {one.backend for one in second.connections()} <= set(web.backends)


def test_close_leaves_nothing(scene: Scene, pin_root: Path) -> None:
    """Unlike `keep()`: pins and hooks are gone, and the next one begins anew."""
    with make(scene, pin_root) as balancer:
        balancer.upsert(scene.service())
        assert len(list(pin_root.glob("*/links/*"))) == 11
    assert not pin_root.exists()
    with pytest.raises(errors.NotFoundError, match="SocketBalancer"):
        reopen(scene, pin_root)
    with Client(scene.client, "IPv4") as client, contextlib.suppress(OSError):
        client.sock.settimeout(0.3)
        client.connect()
        pytest.fail("the service was still there")


def test_who_may_take_it_over(scene: Scene, pin_root: Path) -> None:
    """Not another cgroup's, another namespace's or a second one; then all is as it was."""
    with make(scene, pin_root) as balancer:
        balancer.upsert(scene.service())
        with pytest.raises(errors.LockedError, match="SocketBalancer"):
            reopen(scene, pin_root)
        balancer.keep()
    with pytest.raises(errors.StateError, match="network namespace"):
        scene.client.call(lambda: SocketBalancer.open(pin_root))
    with cgroups.cgroup() as other, pytest.raises(errors.StateError, match="another pin_root"):
        scene.node.call(lambda: SocketBalancer(other, pin_root=pin_root))
    with Client(scene.client, "IPv4").connect() as client:
        assert client.ask() in ("b1", "b2", "b3")
    with reopen(scene, pin_root) as balancer:
        assert not balancer.drift()


def test_what_is_shared_must_be_kept(scene: Scene, pin_root: Path) -> None:
    """Programs that go on need services that go on."""
    with scene.balancer() as balancer, pytest.raises(errors.InvalidError, match="pin_root as well"):
        SocketBalancer(scene.cgroup, share=balancer, pin_root=pin_root)


def test_hooks_that_somebody_took_away(scene: Scene, pin_root: Path) -> None:
    """Drift names them; the next process puts them back."""
    with make(scene, pin_root) as balancer:
        balancer.upsert(scene.service())
        balancer._links["connect4"].detach()
        balancer._links.pop("connect4")
        balancer.keep()
    with reopen(scene, pin_root), Client(scene.client, "IPv4").connect() as client:
        assert client.ask() in ("b1", "b2", "b3")
