"""Real servers and clients: one stream by iperf3, and HTTP by wrk."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TypeAlias

from attrs import frozen

from pyciliumlib.lab import Host
from pyciliumlib.net import write_sysctls
from pyciliumlib.types import AddressLike
from tests.lab import nginx as web

STREAM_PORT: Final = 5201
WEB_PORT: Final = web.PORT
_STREAM_SECONDS: Final = 1
#: wrk itself counts in whole seconds, but stops and tells when it is interrupted.
_WRK_SECONDS: Final = 0.6
_CONNECTIONS: Final = 16
_DONE: Final = re.compile(r"^ +([0-9]+) requests in .*\nRequests/sec: +([0-9.]+)$", re.MULTILINE)
_FAILED: Final = re.compile(r"^ +Socket errors: .*|^ +Non-2xx .*", re.MULTILINE)


@frozen
class Work:
    """How much was done, and in how many seconds."""

    amount: float
    seconds: float

    @property
    def rate(self) -> float:
        return self.amount / self.seconds


def serve_streams(host: Host, *addresses: str) -> None:
    """Take streams and datagrams at `STREAM_PORT`, of all addresses or of each of these.

    Datagrams of a service are answered from its address by a server that has that alone.
    """
    argv = ["iperf3", "--server", "--port", STREAM_PORT, "--logfile", "/dev/null"]
    for address in addresses or ("",):
        host.popen([*argv, "--bind", address] if address else argv)
        wait_for_listener(host, STREAM_PORT, address)


@contextmanager
def serving_web(host: Host) -> Iterator[None]:
    """Answer HTTP at `WEB_PORT`, by one nginx.

    It closes first, and forgets at once: where the same client's port comes by one way and then by
    another, its timestamps are not in order, and a connection in TIME_WAIT would keep it out.
    """
    write_sysctls(host.netns, {"ipv4/tcp_max_tw_buckets": 0})
    with (
        tempfile.TemporaryDirectory() as folder,
        web.nginx(host.lab.spawner, host.netns, host.name, Path(folder) / "nginx"),
    ):
        yield


def wait_for_listener(host: Host, port: int, address: str = "") -> None:
    """A probe by connecting would be taken for a client."""
    argv = ["ss", "-Hltn", f"sport = :{port}", *(["src", address] if address else [])]
    while not host.run(argv, check=True).stdout:
        time.sleep(0.05)


def stream(client: Host, address: AddressLike) -> Work:
    """Gigabits of one TCP stream."""
    received = _iperf3(client, address, "--time", _STREAM_SECONDS)["sum_received"]
    return Work(received["bytes"] * 8e-9, received["seconds"])


def datagrams(client: Host, server: Host, address: AddressLike) -> Work:
    """UDP packets of 64 bytes that reach the server's device, of all that there can be.

    Not those that the server reads: it is slower than what is between.
    """
    options = ("--udp", "--bitrate", 0, "--length", 64, "--time", _STREAM_SECONDS)
    before = _received(server)
    seconds = _iperf3(client, address, *options)["sum"]["seconds"]
    return Work(_received(server) - before, seconds)


def _received(host: Host) -> int:
    argv = ["ip", "-json", "-statistics", "link", "show", "eth0"]
    (link,) = json.loads(host.run(argv, check=True).stdout)
    return int(link["stats64"]["rx"]["packets"])


def _iperf3(client: Host, address: AddressLike, *options: object) -> dict[str, Any]:
    argv = ["iperf3", "--client", address, "--port", STREAM_PORT, "--json", *options]
    said: dict[str, Any] = json.loads(client.run(argv, check=True, timeout=10).stdout)["end"]
    return said


def connections(client: Host, address: AddressLike) -> Work:
    """HTTP requests, each over a connection of its own."""
    return _wrk(client, address, "--header", "Connection: close")


def requests(client: Host, address: AddressLike) -> Work:
    """HTTP requests over a few connections."""
    return _wrk(client, address)


def _wrk(client: Host, address: AddressLike, *options: object) -> Work:
    """AssertionError where a request went wrong: what is refused is fast."""
    argv = ["wrk", "--threads", 1, "--connections", _CONNECTIONS, "--duration", "30s", *options]
    process = client.popen(
        [*argv, f"http://{address}:{WEB_PORT}/"], stdout=subprocess.PIPE, text=True
    )
    time.sleep(_WRK_SECONDS)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=10)
    done = _DONE.search(said)
    assert done and not _FAILED.search(said), said
    return Work(int(done[1]), int(done[1]) / float(done[2]))


Measure: TypeAlias = Callable[[Host, str], Work]
#: What is measured of each way to a server, and its unit.
MEASURES: Final[tuple[tuple[str, str, Measure], ...]] = (
    ("iperf3", "Gbit", stream),
    ("new connections", "1", connections),
    ("requests", "1", requests),
)
