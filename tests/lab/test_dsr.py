"""DSR in each of its forms with real packets, in XDP and at tc, where packets come as they come."""

from __future__ import annotations

import contextlib
import errno
import json
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from attrs import frozen

from pyciliumlib.flow import DropReason
from pyciliumlib.flow.metrics import Metrics
from pyciliumlib.loadbalancer import LoadBalancerConfig, Service
from pyciliumlib.loadbalancer.program import DSRBackend, LoadBalancer
from pyciliumlib.loadbalancer.program.loading import Hook
from pyciliumlib.net import NetNS
from pyciliumlib.types import Direction
from tests.bpf.sockets import at
from tests.lab import balancer_scene
from tests.lab.balancer_scene import CLIENT, VIP, Scene, backend_address
from tests.lab.test_load_balancer import SIZES, Place, send_megabyte, wait_for

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
def sides(
    folder: Path, hook: Hook, *, offloads: bool | None = None, **options: int
) -> Iterator[Sides]:
    """A scene in which packets come to the programs as they do at that hook, unless told."""
    with contextlib.ExitStack() as stack:
        if offloads is None:
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


# ---------------------------------------------------------------------- as packets come at tc


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sides]:
    """Both sides at tc, with everything that the devices leave to each other."""
    with sides(tmp_path_factory.mktemp("whole"), Hook.TC) as made:
        yield made


@VERSIONS
@DISPATCHES
def test_segments_are_not_cut(whole: Sides, dispatch: str, version: int) -> None:
    """TCP's data come and go in packets larger than the links: nobody cut them up on the way."""
    with whole.balancing(dispatch) as there:
        there.serve(web(version, dispatch, (1,)))
        before = whole.backends[0].metrics()
        send_megabyte(there.scene, version)
        (count,) = there.balancer.service_counts().values()
        assert count.bytes > 1 << 20
        assert count.bytes / count.packets > 4000
        taken = whole.backends[0].metrics()
        if dispatch != "opt":  # which takes something off the first packet alone
            size = _bytes(taken, Direction.INGRESS) - _bytes(before, Direction.INGRESS)
            assert size > 1 << 20
            assert size / (_packets(taken) - _packets(before)) > 4000


def _bytes(metrics: Metrics, direction: Direction) -> int:
    return sum(row.bytes for row in metrics if row.direction is direction and not row.reason)


def _packets(metrics: Metrics) -> int:
    return metrics.packets(direction=Direction.INGRESS)


@VERSIONS
@DISPATCHES
def test_bulk(whole: Sides, dispatch: str, version: int) -> None:
    """iperf3 both ways, and its datagrams where a server that answers as itself can be asked."""
    port = IPERF_PORT if dispatch == "ipip" else IPERF_PORT + 1
    services = [
        Service(
            f"iperf-{protocol}",
            [at(VIP[version], IPERF_PORT, protocol)],
            [at(backend_address(1, version), port, protocol)],
        )
        for protocol in ("TCP", "UDP")
    ]
    with whole.balancing(dispatch) as there:
        there.serve(*services)
        runs = [(), ("-R",)]
        if dispatch != "ipip":
            runs += [("-u", "-b", "40M", "-l", "1200"), ("-u", "-b", "40M", "-l", "1200", "-R")]
        for options in runs:
            total = iperf(there.scene, version, port, *options)
            assert total["bits_per_second"] > 2e7, (options, total)


IPERF_PORT = 5201


def iperf(scene: Scene, version: int, port: int, *options: str) -> dict[str, float]:
    """What the receiver got within a second."""
    serve = ["iperf3", "-s", "-1", "--forceflush", "-p", str(port)]
    ask = ["iperf3", "-c", VIP[version], "-p", str(IPERF_PORT), "-t", "1", "-J", *options]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    server = scene.backends[0].call(lambda: subprocess.Popen(serve, **pipes))
    try:
        assert server.stdout is not None
        while "listening" not in server.stdout.readline():
            assert server.poll() is None
        client = scene.client.call(lambda: subprocess.run(ask, **pipes, timeout=20))
        end = json.loads(client.stdout)["end"]
        found: dict[str, float] = end.get("sum_received") or end["sum"]
        return found
    finally:
        server.terminate()
        server.communicate()


@VERSIONS
@pytest.mark.parametrize("dispatch", ["ipip", "opt"])
def test_datagrams_in_one(whole: Sides, dispatch: str, version: int) -> None:
    """Datagrams that the client hands over as one (UDP_SEGMENT) arrive each for itself."""
    with whole.balancing(dispatch) as there:
        there.serve(dns(version, dispatch, (1,)))
        answers = ask_at_once(there.scene, version)
        (count,) = there.balancer.service_counts().values()
        assert count.packets == 1
        assert {answer.split()[1].decode() for answer in answers} == {CLIENT[version]}
        if dispatch != "ipip":
            assert sorted(map(len, answers)) == [500, *[1000] * 9]


def ask_at_once(scene: Scene, version: int) -> list[bytes]:
    """Ten questions in one packet, of 1000 bytes but the last, and their answers."""
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    with scene.client.socket(family, socket.SOCK_DGRAM) as udp:
        udp.settimeout(1)
        udp.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 1000)
        udp.connect((VIP[version], 53))
        udp.send(b"q" * 9500)
        return [udp.recv(65536) for _ in range(10)]


@VERSIONS
def test_datagrams_in_one_in_geneve(whole: Sides, version: int) -> None:
    """The kernel would lose them behind the backend's side, so they are dropped with a reason.

    They arrive if the director's device cuts them up.
    """
    director, side = whole.scene.director, whole.backends[0]
    with whole.balancing("geneve") as there:
        there.serve(dns(version, "geneve", (1,)))
        with pytest.raises(TimeoutError):
            ask_at_once(there.scene, version)
        assert side.metrics().packets(DropReason.DSR_UNSUPPORTED) > 0
        director.call(lambda: offload("eth0", "tx-udp_tnl-segmentation", "off"))
        try:
            answers = ask_at_once(there.scene, version)
        finally:
            director.call(lambda: offload("eth0", "tx-udp_tnl-segmentation", "on"))
        assert sorted(map(len, answers)) == [500, *[1000] * 9]


def offload(device: str, feature: str, state: str) -> None:
    subprocess.run(["ethtool", "-K", device, feature, state], check=True, capture_output=True)


# ---------------------------------------------------------------------- what does not fit

GROWTH = {
    ("ipip", 4): 20, ("ipip", 6): 40,
    ("opt", 4): 8, ("opt", 6): 24,
    ("geneve", 4): 62, ("geneve", 6): 94,
}  # fmt: skip


NARROW = {
    "XDP": (Hook.NATIVE, True),
    "checksums left out": (Hook.TC, False),
    "checksums filled in": (Hook.TC, True),
}


@pytest.fixture(scope="module", params=NARROW)
def narrow(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Sides]:
    """Links that are no larger behind the router than before it.

    What is quoted in an answer may be without its checksum at tc. Then that is written into the
    quote by a device on the way to the client, or by none.
    """
    hook, filled_in = NARROW[request.param]
    with sides(tmp_path_factory.mktemp("narrow"), hook, inside_mtu=1500) as made:
        if filled_in:
            balancer_scene.fill_in_checksums(made.scene.router, "up0")
        yield made


@VERSIONS
@DISPATCHES
def test_a_size_that_fits_is_learnt(narrow: Sides, dispatch: str, version: int) -> None:
    """A datagram that is too large with what is added is answered, and the client believes it."""
    with narrow.balancing(dispatch) as there:
        there.serve(dns(version, dispatch))
        family = socket.AF_INET if version == 4 else socket.AF_INET6
        level, discover, mtu, always = MTU_OPTIONS[version]
        forget_routes(narrow.scene.client)
        with there.scene.client.socket(family, socket.SOCK_DGRAM) as udp:
            udp.setsockopt(level, discover, always)
            udp.connect((VIP[version], 53))
            headers = 28 if version == 4 else 48
            udp.send(b"q" * (1500 - headers))
            fits = 1500 - GROWTH[dispatch, version]
            wait_for(lambda: udp.getsockopt(level, mtu) == fits)
            assert udp.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.EMSGSIZE
            udp.settimeout(3)
            udp.send(b"q" * (fits - headers))
            assert udp.recv(65536)
        assert there.balancer.metrics().packets(DropReason.FRAG_NEEDED) == 1


@VERSIONS
@DISPATCHES
def test_connections_learn_what_fits(narrow: Sides, dispatch: str, version: int) -> None:
    """A megabyte there: the client adapts at once, and does not run into the wall again."""
    with narrow.balancing(dispatch) as there:
        there.serve(web(version, dispatch))
        forget_routes(narrow.scene.client)
        send_megabyte(there.scene, version)
        dropped = there.balancer.metrics().packets(DropReason.FRAG_NEEDED)
        # with an option, none but the first packet grows; what is cut at tc is cut smaller
        enough = 0 if dispatch == "opt" or narrow.hook is Hook.TC else 1
        assert enough <= dropped < 50


#: Level, IP_MTU_DISCOVER, IP_MTU and IP_PMTUDISC_DO, which Python has no names for.
MTU_OPTIONS = {4: (socket.IPPROTO_IP, 10, 14, 2), 6: (socket.IPPROTO_IPV6, 23, 24, 2)}


def forget_routes(netns: NetNS) -> None:
    """What was learnt of other sizes before."""
    for version in ("-4", "-6"):
        command = ["ip", version, "route", "flush", "cache"]
        netns.call(lambda command=command: subprocess.run(command, check=True))


@pytest.fixture(scope="module", params=[Hook.NATIVE, Hook.TC], ids=str)
def far(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Sides]:
    """A client behind a link that is smaller than the backends', of which they do not know."""
    with sides(tmp_path_factory.mktemp("far"), request.param, uplink_mtu=1300) as made:
        yield made


@VERSIONS
@DISPATCHES
def test_backends_learn_what_fits(far: Sides, dispatch: str, version: int) -> None:
    """The router's errors are for the service; the balancer gives them to the backend they concern.

    It knows what they quote, so the transfer goes on at once, in segments that fit.
    """
    with far.balancing(dispatch) as there:
        there.serve(web(version, dispatch))
        for netns in far.scene.backends:
            forget_routes(netns)
        began = time.monotonic()
        download(there.scene, version, 1 << 20)
        assert time.monotonic() - began < 2
        learnt = [netns.call(lambda: learnt_sizes(version)) for netns in far.scene.backends]
        assert "mtu 1300" in "".join(learnt)


def learnt_sizes(version: int) -> str:
    command = ["ip", f"-{version}", "route", "get", CLIENT[version]]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@VERSIONS
@TELLING
def test_nobody_listens(place: Sides, dispatch: str, version: int) -> None:
    """The backend's error is about a packet for the service, so the client understands it."""
    port = at(backend_address(1, version), 9999, "UDP")
    shut = Service("shut", [at(VIP[version], 53, "UDP")], [port])
    with place.balancing(dispatch) as there:
        there.serve(shut)
        with pytest.raises(ConnectionRefusedError):
            ask_connected(there.scene, version)


def ask_connected(scene: Scene, version: int) -> bytes:
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    with scene.client.socket(family, socket.SOCK_DGRAM) as udp:
        udp.settimeout(3)
        udp.connect((VIP[version], 53))
        udp.send(b"who?")
        return udp.recv(100)
