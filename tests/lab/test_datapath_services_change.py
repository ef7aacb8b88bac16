"""Services change, backends go, processes die; connections that can go on do."""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pyciliumlib.datapath import Datapath
from pyciliumlib.flow import DropReason
from pyciliumlib.lab import Lab, Node, Pod
from pyciliumlib.loadbalancer import BackendState
from tests.lab import scenes
from tests.lab.controller import controlled
from tests.lab.scenes import SILENCE, VERSIONS, Scene, at
from tests.lab.test_datapath_services import VIP, By
from tests.scale import examples

_serial = itertools.count()


@pytest.fixture(scope="module")
def shared() -> Iterator[Scene]:
    with Lab() as lab, scenes.scene(lab) as made:
        yield made


@pytest.fixture
def scene(shared: Scene) -> Iterator[Scene]:
    """No services, no flows; everything is allowed."""
    shared.dp.services.apply([])
    shared.dp.conntrack.flush()
    shared.drain()
    yield shared
    shared.no_policy()


# ---------------------------------------------------------------------- one change


@VERSIONS
@pytest.mark.smoke
def test_a_backend_that_is_removed(scene: Scene, version: int) -> None:
    """Its connections are over, new ones go elsewhere, and those of others go on."""
    by = By(version)
    scene.dp.services.upsert(by.service(scene.api))
    with scene.web.dial(by.vip, by.port) as lost:
        assert lost.exchange().reply == b"api\n"
        scene.dp.services.upsert(by.service(scene.db))
        with scene.web.dial(by.vip, by.port) as kept:
            assert kept.exchange().reply == b"db\n"
            # what the old connection says comes to the new backend, which does not know it
            assert lost.exchange(timeout=2).error == "reset"
            assert by.who(scene.web, 10) == {"db": 10}
            assert kept.exchange().reply == b"db\n"


@VERSIONS
def test_what_the_removed_backend_says(scene: Scene, version: int) -> None:
    """Nothing of it reaches the client, neither as the service nor as itself."""
    by = By(version)
    with scenes.tcp_pair(scene.db, scene.api, version, 80 + 8000) as _:
        pass
    server = scene.api.serve("8081/TCP", lambda _: None)
    backend = by.backends(scene.api)[0]
    scene.dp.services.upsert(
        by.service().with_backends([type(backend)(backend.address, 8081, "TCP")])
    )
    with scene.web.dial(by.vip, by.port) as connection:
        assert connection.exchange(timeout=SILENCE).error == "timeout"
        scene.dp.services.upsert(by.service())
        scene.drain()
        (transport,) = server._transports
        scene.lab.servers._loop.call_soon_threadsafe(transport.write, b"late")
        assert connection.exchange(timeout=SILENCE).error in ("timeout", "refused")
        assert {flow.drop_reason for flow in scene.drops()} == {DropReason.NO_SERVICE_BACKEND}
    server.close()


@VERSIONS
def test_draining(scene: Scene, version: int) -> None:
    """The connection stays as long as it likes; no other comes."""
    by = By(version)
    scene.dp.services.upsert(by.service(scene.api))
    with scene.web.dial(by.vip, by.port) as connection:
        scene.dp.services.upsert(by.service(scene.api, scene.db))
        plan = scene.dp.services.drain(by.backends(scene.api)[0])
        assert "active to terminating" in str(plan)
        assert by.who(scene.web, 20) == {"db": 20}
        for _ in range(5):
            assert connection.exchange().reply == b"api\n"
        (service,) = scene.dp.services.in_force.values()
        assert service.backends[0].state is BackendState.TERMINATING


@VERSIONS
def test_quarantine(scene: Scene, version: int) -> None:
    """The same for a while; afterwards both are asked again."""
    by = By(version)
    scene.dp.services.upsert(by.service(scene.api, scene.db))
    scene.dp.services.quarantine(by.backends(scene.api)[0])
    assert by.who(scene.web, 20) == {"db": 20}
    scene.dp.services.restore(by.backends(scene.api)[0])
    assert set(by.who(scene.web, 30)) == {"api", "db"}


@VERSIONS
def test_affinity(scene: Scene, version: int) -> None:
    """Each pod meets one backend, until it has been silent for long enough."""
    by = By(version)
    scene.dp.services.upsert(by.service(scene.api, scene.db, affinity_timeout=1))
    met = by.who(scene.web, 20)
    assert len(met) == 1
    others = set()
    deadline = time.monotonic() + 60
    while not others - set(met) and time.monotonic() < deadline:
        time.sleep(1.1)
        others.add(by.ask(scene.web))
    assert others - set(met)


@VERSIONS
def test_affinity_of_a_connection_in_use(scene: Scene, version: int) -> None:
    """A client is not silent while a connection of its is used."""
    by = By(version)
    scene.dp.services.upsert(by.service(scene.api, scene.db, affinity_timeout=2))
    with scene.web.dial(by.vip, by.port) as connection:
        name = connection.exchange().reply
        for _ in range(20):
            time.sleep(0.2)
            assert connection.exchange().reply == name
        assert set(by.who(scene.web, 10)) == {name.decode().strip()}


# ---------------------------------------------------------------------- under load


class Clients:
    """Threads that ask without end; what they were told, and what went wrong."""

    def __init__(self, *jobs: Callable[[], str]) -> None:
        self._stop = threading.Event()
        self.told: Counter[str] = Counter()
        self._threads = [threading.Thread(target=self._run, args=(job,)) for job in jobs]

    def _run(self, job: Callable[[], str]) -> None:
        while not self._stop.is_set():
            self.told[job()] += 1

    def __enter__(self) -> Clients:
        for thread in self._threads:
            thread.start()
        assert scenes.eventually(lambda: self.told.total() > 20)
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


@VERSIONS
def test_a_thousand_changes_under_load(scene: Scene, version: int) -> None:
    """Backends come and go; no request to one that stays is lost, on old or new connections."""
    by = By(version)
    scene.dp.services.upsert(by.service(scene.api))
    with scene.web.dial(by.vip, by.port) as connection:

        def kept() -> str:
            result = connection.exchange(timeout=3)
            return "kept " + (result.reply.decode().strip() or result.error)

        def fresh() -> str:
            return by.ask(scene.web, timeout=3)

        with Clients(kept, fresh, fresh) as clients:
            for _ in range(examples(150)):
                scene.dp.services.upsert(by.service(scene.api, scene.db))
                scene.dp.services.drain(by.backends(scene.db)[0])
                time.sleep(0.01)  # whom it was just chosen for is answered
                scene.dp.services.upsert(by.service(scene.api, scene.world))
                scene.dp.services.drain(by.backends(scene.world)[0])
                time.sleep(0.01)
    assert set(clients.told) <= {"kept api", "api", "db", "world"}, clients.told
    assert min(clients.told[name] for name in ("kept api", "api")) > 50
    assert not scene.dp.drift()


@VERSIONS
def test_other_things_change_under_load(scene: Scene, version: int) -> None:
    """Identities, endpoints and policies come and go beside an established connection."""
    by = By(version)
    scene.dp.services.upsert(by.service(scene.api))
    with scene.web.dial(by.vip, by.port) as connection:
        with Clients(lambda: connection.exchange(timeout=3).error) as clients:
            for number in range(20):
                scene.dp.assign(f"198.51.100.{number}/32", labels={"number": str(number)})
                scene.dp.policy.apply(
                    scenes.policy("db", {"app": "db"}, ingress=[scenes.apps("from", f"x{number}")])
                )
            for number in range(20):
                scene.dp.unassign(f"198.51.100.{number}/32")
    assert set(clients.told) == {""}


# ---------------------------------------------------------------------- another process


@pytest.fixture
def pin_root() -> Iterator[Path]:
    """A root of this test alone, gone afterwards."""
    path = Path(f"/sys/fs/bpf/pcl-services-{os.getpid()}-{next(_serial)}")
    yield path
    assert not path.exists()


@pytest.fixture
def place() -> Iterator[tuple[Node, Pod, Pod, Pod]]:
    """A node with three pods, of which two serve."""
    with Lab() as lab, lab.node() as node:
        web, api, db = (node.pod(name) for name in ("web", "api", "db"))
        for pod in (api, db):
            pod.serve("80/TCP")
        yield node, web, api, db


def texts(version: int, *pods: Pod) -> dict[str, list[str]]:
    """A service of both pods, as text."""
    host = {4: "{}", 6: "[{}]"}[version]
    return {
        f"{host.format(VIP[version])}:8080": [f"{host.format(at(pod, version))}:80" for pod in pods]
    }


@VERSIONS
@pytest.mark.smoke
def test_killed_under_load(place: tuple[Node, Pod, Pod, Pod], pin_root: Path, version: int) -> None:
    """Old and new connections go on without a process, while the next one adopts, and after it."""
    node, web, api, db = place
    by = By(version)
    with controlled(pin_root, node, [web, api, db], [], services=texts(version, api, db)) as first:
        connections = [web.dial(by.vip, by.port) for _ in range(6)]
        names = [connection.exchange().reply.decode().strip() for connection in connections]

        def ask(number: int) -> Callable[[], str]:
            def job() -> str:
                result = connections[number].exchange(timeout=3)
                good = result.reply.decode().strip() == names[number]
                return "kept" if good else f"lost {result}"

            return job

        jobs = [*map(ask, range(6)), lambda: by.ask(web, timeout=3)]
        with Clients(*jobs) as clients:
            first.kill()
            seen = clients.told.total()
            assert scenes.eventually(lambda: clients.told.total() > seen + 50)
            dp = Datapath.open(pin_root, node)
            seen = clients.told.total()
            assert scenes.eventually(lambda: clients.told.total() > seen + 50)
        assert set(clients.told) == {"kept", "api", "db"}, clients.told
        try:
            assert not dp.drift(), str(dp.drift())
            (service,) = dp.services.services.values()
            assert len(service.backends) == 2
            assert dp.services.service_counts()[service.key].packets > clients.told.total()
            entries = [entry for entry in dp.conntrack if entry.service]
            assert len(entries) >= 6
            # and its changes bite on the same connections
            dp.services.upsert(service.with_backends([service.backends[0]]))
            for connection, name in zip(connections, names, strict=True):
                result = connection.exchange(timeout=2)
                assert (result.reply == b"api\n") is (name == "api"), (name, result)
            assert by.who(web, 8) == {"api": 8}
        finally:
            for connection in connections:
                connection.close()
            dp.close()


@VERSIONS
def test_kept_and_opened_again(
    place: tuple[Node, Pod, Pod, Pod], pin_root: Path, version: int
) -> None:
    """`keep()` and `open()`: services, their numbers, quarantine and connections are the same."""
    node, web, api, db = place
    by = By(version)
    with Datapath(node, pin_root=pin_root) as dp:
        for pod in (web, api, db):
            dp.add_endpoint(pod.name, {"app": pod.name}, pod=pod)
        dp.services.upsert(by.service(api, db))
        dp.services.quarantine(by.backends(db)[0])
        connection = web.dial(by.vip, by.port)
        numbers = dict(dp.services._held.table.backends)
        dp.keep()
    assert connection.exchange().reply == b"api\n"
    with Datapath.open(pin_root, node) as dp:
        assert not dp.drift()
        assert dict(dp.services._held.table.backends) == numbers
        assert connection.exchange().reply == b"api\n"
        assert by.who(web, 10) == {"api": 10}
        dp.services.restore(by.backends(db)[0])
        assert set(by.who(web, 30)) == {"api", "db"}
        dp.services.delete("default/web")
        dp.keep()
    with Datapath.open(pin_root, node) as dp:
        assert not dp.services.services and not dp.drift()
    connection.close()
