"""Real clients of a service without backends: told at once, or not at all."""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Iterator

import pytest
from attrs import evolve

from pyciliumlib.flow import DropReason
from pyciliumlib.loadbalancer import LoadBalancerConfig, Service
from pyciliumlib.loadbalancer.program import LoadBalancer
from pyciliumlib.net import NetNS
from tests.bpf.sockets import at
from tests.lab import balancer_scene
from tests.lab.balancer_scene import DIRECTOR, VIP, Scene
from tests.lab.test_load_balancer import SIZES

VERSIONS = pytest.mark.parametrize("version", [4, 6], ids=["IPv4", "IPv6"])
FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
#: The hook, and where checksums are written: before the director, behind it, or nowhere.
PLACES = {
    "XDP": ("native", "before"),
    "tc": ("disabled", "nowhere"),
    "tc, and a device that sums up": ("disabled", "behind"),
}
#: Between namespaces the answer is there before connect() has let go of its socket. Then Linux's
#: IPv6 (as LockDroppedIcmps counts) believes that to the SYN which it sends again a second later.
AT_ONCE = {(6, socket.SOCK_STREAM): 2.0}
MODES = {"dsr": ("dsr", "ipip"), "snat": ("snat", "opt")}


@pytest.fixture(scope="module", params=PLACES)
def place(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Scene, str]]:
    acceleration, sums = PLACES[request.param]
    folder, offloads = tmp_path_factory.mktemp("scene"), sums != "before"
    with balancer_scene.scene(folder, backends=1, offloads=offloads) as made:
        if sums == "behind":
            balancer_scene.fill_in_checksums(made.router, "up0")
        for version in (4, 6):  # so that neighbours are known, which may take a second
            with made.client.socket(FAMILY[version], socket.SOCK_STREAM) as tcp:
                tcp.settimeout(5)
                with pytest.raises(ConnectionRefusedError):
                    tcp.connect((DIRECTOR[version], 9))
        yield made, acceleration


def shut(version: int) -> list[Service]:
    return [
        Service(f"{protocol}-{version}", [at(VIP[version], port, protocol)], [])
        for protocol, port in (("TCP", 80), ("UDP", 53))
    ]


def failure(
    client: NetNS, version: int, kind: socket.SocketKind, patience: float
) -> tuple[int, float]:
    """The error of a client that connects, or asks, and how long it took."""
    port = 80 if kind == socket.SOCK_STREAM else 53
    began = time.monotonic()
    with client.socket(FAMILY[version], kind) as asking:
        asking.settimeout(patience)
        try:
            asking.connect((VIP[version], port))
            asking.send(b"who?")
            asking.recv(100)
        except TimeoutError:
            return errno.ETIMEDOUT, time.monotonic() - began
        except OSError as error:
            return error.errno or 0, time.monotonic() - began
    raise AssertionError("somebody answered")


@VERSIONS
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.smoke
def test_refused_at_once(place: tuple[Scene, str], mode: str, version: int) -> None:
    """TCP and UDP; each packet is a drop, and with `drop` the client hears nothing."""
    scene, acceleration = place
    config = LoadBalancerConfig("maglev", *MODES[mode], acceleration=acceleration)
    for response, heard, patience in (
        ("reject", errno.ECONNREFUSED, 3.0),
        ("drop", errno.ETIMEDOUT, 0.5),
    ):
        told = evolve(config, no_backend_response=response)
        with scene.director.call(
            lambda told=told: LoadBalancer("eth0", config=told, sizes=SIZES)
        ) as balancer:
            balancer.apply(shut(version))
            for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                error, seconds = failure(scene.client, version, kind, patience)
                assert error == heard
                assert heard != errno.ECONNREFUSED or seconds < AT_ONCE.get((version, kind), 0.5)
            assert balancer.metrics().packets(DropReason.NO_SERVICE_BACKEND) >= 2
