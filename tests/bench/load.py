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
from typing import Any, Final

from pyciliumlib.lab import Host
from pyciliumlib.net import write_sysctls
from pyciliumlib.types import AddressLike
from tests.lab.nginx import PORT as WEB_PORT
from tests.lab.nginx import nginx

STREAM_PORT: Final = 5201
_STREAM_SECONDS: Final = 1
#: wrk itself counts in whole seconds, but stops and tells when it is interrupted.
_WRK_SECONDS: Final = 0.6
_CONNECTIONS: Final = 16
_RATE: Final = re.compile(r"^Requests/sec: +([0-9.]+)$", re.MULTILINE)
_FAILED: Final = re.compile(r"^ +Socket errors: .*|^ +Non-2xx .*", re.MULTILINE)


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
        nginx(host.lab.spawner, host.netns, host.name, Path(folder) / "nginx"),
    ):
        yield


def wait_for_listener(host: Host, port: int, address: str = "") -> None:
    """A probe by connecting would be taken for a client."""
    argv = ["ss", "-Hltn", f"sport = :{port}", *(["src", address] if address else [])]
    while not host.run(argv, check=True).stdout:
        time.sleep(0.05)


def stream(client: Host, address: AddressLike, port: int = STREAM_PORT) -> float:
    """Gbit/s of one TCP stream."""
    said = _iperf3(client, address, port, "--time", _STREAM_SECONDS)
    return float(said["end"]["sum_received"]["bits_per_second"]) / 1e9


def datagrams(client: Host, server: Host, address: AddressLike) -> float:
    """UDP packets of 64 bytes that reach the server's device in a second, of all there can be.

    Not those that the server reads: it is slower than what is between.
    """
    options = ("--udp", "--bitrate", 0, "--length", 64, "--time", _STREAM_SECONDS)
    before = _received(server)
    said = _iperf3(client, address, STREAM_PORT, *options)
    return (_received(server) - before) / float(said["end"]["sum"]["seconds"])


def _received(host: Host) -> int:
    argv = ["ip", "-json", "-statistics", "link", "show", "eth0"]
    (link,) = json.loads(host.run(argv, check=True).stdout)
    return int(link["stats64"]["rx"]["packets"])


def _iperf3(client: Host, address: AddressLike, port: int, *options: object) -> dict[str, Any]:
    argv = ["iperf3", "--client", address, "--port", port, "--json", *options]
    said: dict[str, Any] = json.loads(client.run(argv, check=True, timeout=10).stdout)
    return said


def connections(client: Host, address: AddressLike) -> float:
    """HTTP requests a second, each over a connection of its own."""
    return _wrk(client, address, "--header", "Connection: close")


def requests(client: Host, address: AddressLike) -> float:
    """HTTP requests a second over a few connections."""
    return _wrk(client, address)


def _wrk(client: Host, address: AddressLike, *options: object) -> float:
    """AssertionError where a request went wrong: what is refused is fast."""
    argv = ["wrk", "--threads", 1, "--connections", _CONNECTIONS, "--duration", "30s", *options]
    process = client.popen(
        [*argv, f"http://{address}:{WEB_PORT}/"], stdout=subprocess.PIPE, text=True
    )
    time.sleep(_WRK_SECONDS)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=10)
    failed, rate = _FAILED.search(said), _RATE.search(said)
    assert rate and not failed, said
    return float(rate[1])


#: What is measured of each way to a server, and its unit.
MEASURES: Final[tuple[tuple[str, str, Callable[[Host, str], float]], ...]] = (
    ("iperf3", "Gbit/s", stream),
    ("new connections", "1/s", connections),
    ("requests", "1/s", requests),
)
