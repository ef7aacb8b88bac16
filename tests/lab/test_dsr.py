"""DSR in each of its forms with real packets, in XDP and at tc, where packets come as they come."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from attrs import frozen

from pyciliumlib.loadbalancer import LoadBalancerConfig, Service
from pyciliumlib.loadbalancer.program import DSRBackend, LoadBalancer
from pyciliumlib.loadbalancer.program.loading import Hook
from tests.lab import balancer_scene
from tests.lab.balancer_scene import CLIENT, VIP, Scene, backend_address
from tests.lab.test_load_balancer import SIZES, Place, at, send_megabyte

VERSIONS = pytest.mark.parametrize("version", [4, 6], ids=["IPv4", "IPv6"])
DISPATCHES = pytest.mark.parametrize("dispatch", ["ipip", "opt", "geneve"])
TELLING = pytest.mark.parametrize("dispatch", ["opt", "geneve"])
#: Where both sides run, and what acceleration that is.
AT = {Hook.NATIVE: "native", Hook.TC: "disabled"}
UDP_SEGMENT = 103


def web(version: int, dispatch: str, numbers: tuple[int, ...] = (1, 2, 3)) -> Service:
    """TCP at port 80, which the backends have at 8080 where that can be."""
    port = 80 if dispatch == "ipip" else 8080
    served = [at(backend_address(number, version), port) for number in numbers]
    return Service(f"web-{version}", [at(VIP[version], 80)], served)


def dns(version: int, dispatch: str, numbers: tuple[int, ...] = (1, 2, 3)) -> Service:
    port = 53 if dispatch == "ipip" else 5353
    served = [at(backend_address(number, version), port, "UDP") for number in numbers]
    return Service(f"dns-{version}", [at(VIP[version], 53, "UDP")], served)


@frozen
class Sides:
    """The scene and the backends' sides, at one hook."""

    scene: Scene
    hook: Hook
    backends: tuple[DSRBackend, ...]

    def config(self, dispatch: str) -> LoadBalancerConfig:
        return LoadBalancerConfig("maglev", "dsr", dispatch, acceleration=AT[self.hook])

    @contextlib.contextmanager
    def balancing(self, dispatch: str) -> Iterator[Place]:
        director = self.scene.director
        config = self.config(dispatch)
        with director.call(lambda: LoadBalancer("eth0", config=config, sizes=SIZES)) as balancer:
            yield Place(self.scene, balancer)


@contextlib.contextmanager
def sides(folder: Path, hook: Hook, **options: int) -> Iterator[Sides]:
    """A scene in which packets come to the programs as they do at that hook."""
    with contextlib.ExitStack() as stack:
        offloads = hook is Hook.TC
        scene = stack.enter_context(balancer_scene.scene(folder, offloads=offloads, **options))
        made = []
        for netns in scene.backends:
            made.append(netns.call(
                lambda: DSRBackend("eth0", VIP.values(), acceleration=AT[hook])
            ))  # fmt: skip
            stack.callback(made[-1].close)
            assert made[-1].hook is hook
        yield Sides(scene, hook, tuple(made))


@pytest.fixture(scope="module", params=[Hook.NATIVE, Hook.TC], ids=str)
def place(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Sides]:
    with sides(tmp_path_factory.mktemp("dsr"), request.param) as made:
        yield made


@VERSIONS
@DISPATCHES
@pytest.mark.smoke
def test_who_answers(place: Sides, dispatch: str, version: int) -> None:
    """Every backend, in the service's name and by its port; they see the client's own address."""
    with place.balancing(dispatch) as there:
        there.serve(web(version, dispatch), dns(version, dispatch))
        seen = {there.scene.ask(version) for _ in range(60)}
        assert {answer.split()[0] for answer in seen} == {"b1", "b2", "b3"}
        assert {answer.split()[1] for answer in seen} == {CLIENT[version]}
        asked = {there.scene.ask_udp(version).split()[1] for _ in range(20)}
        assert asked == {CLIENT[version]}


@VERSIONS
@DISPATCHES
def test_large_both_ways(place: Sides, dispatch: str, version: int) -> None:
    """A megabyte there and one back, whole."""
    with place.balancing(dispatch) as there:
        there.serve(web(version, dispatch))
        send_megabyte(there.scene, version)
        assert len(download(there.scene, version, 1 << 20)) == 1 << 20


def download(scene: Scene, version: int, size: int) -> bytes:
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    with scene.client.socket(family, socket.SOCK_STREAM) as tcp:
        tcp.settimeout(10)
        tcp.connect((VIP[version], 80))
        tcp.sendall(f"send {size}".encode())
        got = bytearray()
        while len(got) < size:
            part = tcp.recv(65536)
            assert part
            got += part
        assert set(got) == {ord("y")}
        return bytes(got)


@VERSIONS
@DISPATCHES
def test_datagrams_in_fragments(place: Sides, dispatch: str, version: int) -> None:
    """Larger than the way, both in the question and in the answer.

    Backends' own links are larger than the client's, and IPv6's routers cut nothing up: the answer
    that is lost makes the router tell the backend, by way of the balancer.
    """
    with place.balancing(dispatch) as there:
        there.serve(dns(version, dispatch, (1,)))
        question = b"q" * 4000
        if version == 6 and dispatch != "ipip":
            with contextlib.suppress(TimeoutError):
                there.scene.ask_udp(version, question=question)
        answer = there.scene.ask_udp(version, question=question)
        assert answer.split()[1] == CLIENT[version]
        assert len(answer) == 4000 or dispatch == "ipip"  # whose servers answer shortly
