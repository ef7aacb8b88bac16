"""Policy changes under load: what both policies allow goes on, what neither allows never passes."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import pytest

from pyciliumlib.lab import Host, Lab, Pod
from tests.lab import scenes
from tests.lab.scenes import VERSIONS, Scene, apps, at, ports

ALWAYS, NEVER, MIXED = 4000, 4001, 4002
REVISIONS = 150


@pytest.fixture(scope="module")
def shared() -> Iterator[Scene]:
    with Lab() as lab, scenes.scene(lab) as made:
        yield made


@pytest.fixture
def scene(shared: Scene) -> Iterator[Scene]:
    yield shared
    shared.no_policy()


def web_to_api(*, egress: bool, ingress: bool, filler: str) -> list[dict[str, object]]:
    """Both documents: `ALWAYS` is open, and `MIXED` on the one side, the other, or none."""
    way_out = [f"{ALWAYS}/UDP", filler] + [f"{MIXED}/UDP"] * egress
    way_in = [f"{ALWAYS}/UDP", filler] + [f"{MIXED}/UDP"] * ingress
    return [
        scenes.policy("web", {"app": "web"}, egress=[{**apps("to", "api"), **ports(*way_out)}]),
        scenes.policy("api", {"app": "api"}, ingress=[{**apps("from", "web"), **ports(*way_in)}]),
    ]


ONLY_OUT = web_to_api(egress=True, ingress=False, filler="1/TCP")
ONLY_IN = web_to_api(egress=False, ingress=True, filler="2/TCP")


def udp(host: Host, version: int, port: int = 0) -> socket.socket:
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    sock = host.netns.socket(family, socket.SOCK_DGRAM)
    sock.bind((str(at(host, version)), port))
    return sock


class Worker:
    """Calls `step` in a thread of its own until `stop`, which raises what that raised."""

    def __init__(self, step: Callable[[], None], pool: ThreadPoolExecutor) -> None:
        self.rounds = 0
        self._step = step
        self._stop_asked = threading.Event()
        self._done = pool.submit(self._run)

    def _run(self) -> None:
        while not self._stop_asked.is_set():
            self._step()
            self.rounds += 1

    @property
    def started(self) -> bool:
        return bool(self.rounds) or self._done.done()

    def stop(self) -> None:
        self._stop_asked.set()
        self._done.result()


@contextmanager
def working(*steps: Callable[[], None]) -> Iterator[list[Worker]]:
    """The steps, each again and again, until the end of the block."""
    with ThreadPoolExecutor(len(steps)) as pool, ExitStack() as stack:
        workers = [Worker(step, pool) for step in steps]
        for worker in workers:
            stack.callback(worker.stop)
        assert scenes.eventually(lambda: all(worker.started for worker in workers))
        yield workers


@contextmanager
def answering(server: Pod, version: int) -> Iterator[None]:
    """The server sends every datagram to `ALWAYS` back."""
    with udp(server, version, ALWAYS) as sock:
        sock.settimeout(0.2)

        def answer() -> None:
            try:
                data, peer = sock.recvfrom(2048)
            except TimeoutError:
                return
            sock.sendto(data, peer)

        with working(answer):
            yield


@VERSIONS
@pytest.mark.parametrize("new_flows", [False, True], ids=["one-flow", "new-flows"])
def test_what_both_policies_allow_is_never_lost(
    scene: Scene, new_flows: bool, version: int
) -> None:
    """Exchanges go on, without one packet lost, over many changes of both ends' policies."""
    scene.dp.policy.apply(ONLY_OUT)
    target = (str(at(scene.api, version)), ALWAYS)
    kept = udp(scene.web, version)

    def exchange(sock: socket.socket) -> None:
        sock.settimeout(2)
        sock.sendto(b"x", target)
        assert sock.recv(100) == b"x"  # TimeoutError: it was lost

    def step() -> None:
        if not new_flows:
            exchange(kept)
            return
        with udp(scene.web, version) as fresh:
            exchange(fresh)

    with kept, answering(scene.api, version):
        with working(step) as (worker,):
            for _ in range(REVISIONS // 2):
                scene.dp.policy.apply(ONLY_IN)
                scene.dp.policy.apply(ONLY_OUT)
        assert worker.rounds > REVISIONS
    assert not scene.dp.drift()


@VERSIONS
def test_what_neither_policy_allows_never_passes(scene: Scene, version: int) -> None:
    """Not at one port that is closed throughout, and not at one that is open at the client only
    before the change and at the server only after it: no packet meets half of each."""
    scene.dp.policy.apply(ONLY_OUT)
    address = str(at(scene.api, version))
    with udp(scene.api, version, NEVER) as closed, udp(scene.api, version, MIXED) as mixed:

        def step() -> None:
            with udp(scene.web, version) as fresh:
                for port in (MIXED, NEVER, MIXED, MIXED):
                    fresh.sendto(b"x", (address, port))

        with working(step, step) as workers:
            for _ in range(REVISIONS // 2):
                scene.dp.policy.apply(ONLY_IN)
                scene.dp.policy.apply(ONLY_OUT)
        assert sum(worker.rounds for worker in workers) > REVISIONS
        for sock in (closed, mixed):
            assert not scenes.comes(sock, 0.1)
        # the same two documents one by one: the mix is really open between them
        scene.dp.policy.apply(ONLY_IN[1])
        with udp(scene.web, version) as fresh:
            fresh.sendto(b"x", (address, MIXED))
        assert scenes.comes(mixed, 1.0)


@VERSIONS
def test_a_withdrawal_is_complete_when_apply_returns(scene: Scene, version: int) -> None:
    """At full speed: not one packet that is sent after `apply` returned is decided by the old
    rules."""
    target = (str(at(scene.api, version)), ALWAYS)
    open_, closed = (
        web_to_api(egress=True, ingress=True, filler="1/TCP"),
        [scenes.policy("api", {"app": "api"}, ingress=[apps("from", "nobody")])],
    )
    with udp(scene.api, version, ALWAYS) as receiver, udp(scene.web, version) as sender:
        receiver.setblocking(False)
        for _ in range(40):
            scene.dp.policy.apply(open_)
            sender.sendto(b"before", target)
            assert receiver.recv(100) == b"before"  # a veth delivers within the call
            scene.dp.policy.apply(closed)
            for _ in range(5):
                sender.sendto(b"after", target)
            with pytest.raises(BlockingIOError):
                receiver.recv(100)
