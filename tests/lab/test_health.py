"""Health checks of real servers: nginx that dies and comes back, or answers with another status."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
from attrs import define, field

from pyciliumlib.flow import DropReason
from pyciliumlib.lab.processes import Spawner, terminate
from pyciliumlib.loadbalancer import Backend, LocalNode, Service
from pyciliumlib.loadbalancer.health import (
    Check,
    Dialer,
    HealthChecks,
    HealthEvent,
    HealthNodePorts,
    HealthSettings,
    HTTPCheck,
    TCPCheck,
)
from pyciliumlib.loadbalancer.program import DSRBackend, LoadBalancer, NamespaceSockets
from pyciliumlib.net import Netlink, NetNS
from tests.bpf.sockets import at
from tests.lab import balancer_scene
from tests.lab.balancer_scene import DIRECTOR, VIP, Scene, backend_address
from tests.lab.test_load_balancer import SIZES, VERSIONS
from tests.unit.test_health import FakeBalancer

T = TypeVar("T")
PORT, HEALTH_PORT = 8088, 32100
OFTEN = HealthSettings(interval=0.2, timeout=0.5, rise=2, fall=2, concurrency=64)
PATIENCE = 20.0
_CONFIG = """
daemon off; user root; worker_processes 1; pid {folder}/pid; error_log {folder}/error.log;
events {{}}
http {{
  access_log off; client_body_temp_path {folder}/body; keepalive_timeout 60;
  proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u;
  scgi_temp_path {folder}/s;
  server {{
    listen {port}; listen [::]:{port};
    location / {{ return 200 "{name}\\n"; }}
    location /healthz {{ return {status} "health\\n"; }}
  }}
}}
"""


@define(eq=False)
class Nginx:
    """One nginx in a namespace."""

    name: str
    netns: NetNS
    folder: Path
    spawner: Spawner
    status: int = 200
    process: Any = field(default=None)

    def start(self) -> None:
        self.folder.mkdir(exist_ok=True)
        self._configure()
        self.process = self.spawner.spawn(
            self.netns,
            ["nginx", "-e", self.folder / "error.log", "-c", self.folder / "nginx.conf"],
        )
        deadline = time.monotonic() + PATIENCE
        while not (self.folder / "pid").exists():
            assert self.process.poll() is None, (self.folder / "error.log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def answer(self, status: int) -> None:
        """From now on the health check is answered with this status."""
        self.status = status
        self._configure()
        os.kill(self.process.pid, signal.SIGHUP)

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        (self.folder / "pid").unlink()

    def stop(self) -> None:
        terminate([self.process])

    def _configure(self) -> None:
        (self.folder / "nginx.conf").write_text(
            _CONFIG.format(folder=self.folder, port=PORT, name=self.name, status=self.status)
        )


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with (
        balancer_scene.scene(tmp_path_factory.mktemp("scene")) as made,
        contextlib.ExitStack() as stack,
    ):
        for netns in made.backends:
            backend = netns.call(
                lambda: DSRBackend("eth0", VIP.values(), directors=DIRECTOR.values())
            )
            stack.callback(backend.close)
        yield made


@pytest.fixture
def servers(scene: Scene, tmp_path: Path) -> Iterator[list[Nginx]]:
    """An nginx in each backend."""
    spawner, made = Spawner(), []
    with contextlib.ExitStack() as stack:
        stack.callback(spawner.close)
        for number, netns in enumerate(scene.backends, 1):
            made.append(Nginx(f"b{number}", netns, tmp_path / f"b{number}", spawner))
            made[-1].start()
            stack.callback(made[-1].stop)
        yield made


@pytest.fixture
def balancer(scene: Scene) -> Iterator[LoadBalancer]:
    node = LocalNode("n1", DIRECTOR.values())
    with scene.director.call(lambda: LoadBalancer("eth0", sizes=SIZES, node=node)) as made:
        made.apply([web(4), web(6)])
        yield made


def web(version: int, **options: Any) -> Service:
    served = [Backend(backend_address(n, version), PORT, node="n1") for n in (1, 2, 3)]
    return Service(f"web-{version}", [at(VIP[version], PORT)], served, **options)


@contextlib.asynccontextmanager
async def checking(
    scene: Scene, balancer: LoadBalancer, check: Check
) -> AsyncIterator[tuple[HealthChecks, AsyncIterator[HealthEvent]]]:
    """Checks from the director's namespace, while this thread is in another."""
    with NamespaceSockets(scene.director) as make_socket:
        async with HealthChecks(balancer, check, OFTEN, make_socket=make_socket) as health:
            yield health, health.events()


async def expect(events: AsyncIterator[HealthEvent], count: int) -> set[tuple[str, bool, str]]:
    """The next events, of whichever backends."""

    async def gather() -> set[tuple[str, bool, str]]:
        seen = set()
        while len(seen) < count:
            event = await events.__anext__()
            seen.add((str(event.backend.address), event.healthy, event.reason))
        return seen

    return await asyncio.wait_for(gather(), PATIENCE)


async def elsewhere(fn: Callable[..., T], *args: Any, **options: Any) -> T:
    """Not in the loop's thread: the checks go on."""
    return await asyncio.to_thread(fn, *args, **options)


def ask(scene: Scene, version: int, times: int = 30) -> Counter[str]:
    """Which backends answered so many requests."""
    return Counter(get(scene.client, VIP[version], PORT, "/")[1].strip() for _ in range(times))


def get(netns: NetNS, address: str, port: int, path: str) -> tuple[int, str, str]:
    """Status, body and head of one HTTP request."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with netns.socket(family, socket.SOCK_STREAM) as tcp:
        tcp.settimeout(3)
        tcp.connect((address, port))
        tcp.sendall(f"GET {path} HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n".encode())
        data = b""
        while part := tcp.recv(65536):
            data += part
    head, _, body = data.decode().partition("\r\n\r\n")
    return int(head.split()[1]), body, head


def states(balancer: LoadBalancer) -> set[str]:
    return {
        f"{backend.address} {backend.state}"
        for service in balancer.in_force.values()
        for backend in service.backends
        if str(backend.state) != "active"
    }


def test_http_by_status(scene: Scene, servers: list[Nginx], balancer: LoadBalancer) -> None:
    """One that answers 503 serves nobody new, over both families, until it answers 200 again."""

    async def main() -> None:
        async with checking(scene, balancer, HTTPCheck("/healthz")) as (health, events):
            servers[1].answer(503)
            sick = {backend_address(2, version) for version in (4, 6)}
            assert await expect(events, 2) == {(a, False, "HTTP status 503") for a in sick}
            assert {str(backend.address) for backend in health.unhealthy} == sick
            assert states(balancer) == {f"{address} quarantined" for address in sick}
            for version in (4, 6):
                assert (await elsewhere(ask, scene, version)).keys() == {"b1", "b3"}
            servers[1].answer(200)
            assert await expect(events, 2) == {(a, True, "it answers") for a in sick}
            for version in (4, 6):
                assert (await elsewhere(ask, scene, version, 60)).keys() == {"b1", "b2", "b3"}

    asyncio.run(main())


@VERSIONS
def test_tcp_of_one_that_dies(
    scene: Scene, servers: list[Nginx], balancer: LoadBalancer, version: int
) -> None:
    """Killed: refused, and quarantined; started again: restored. Connections of others go on."""
    balancer.apply([web(version)])

    async def main() -> None:
        async with checking(scene, balancer, TCPCheck()) as (_, events):
            with keep_alive(scene, version) as exchange:
                home = await elsewhere(exchange)
                victim = next(one for one in servers if one.name != home)
                sick = backend_address(int(victim.name[1]), version)
                await elsewhere(victim.kill)
                assert await expect(events, 1) == {(sick, False, "Connection refused")}
                assert victim.name not in await elsewhere(ask, scene, version)
                assert await elsewhere(exchange) == home
                await elsewhere(victim.start)
                assert await expect(events, 1) == {(sick, True, "it answers")}
                assert victim.name in await elsewhere(ask, scene, version, 60)
                assert await elsewhere(exchange) == home

    asyncio.run(main())


@contextlib.contextmanager
def keep_alive(scene: Scene, version: int) -> Iterator[Callable[[], str]]:
    """One connection for many requests, and who answers the next of them."""
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    with scene.client.socket(family, socket.SOCK_STREAM) as tcp:
        tcp.settimeout(3)
        tcp.connect((VIP[version], PORT))

        def exchange() -> str:
            tcp.sendall(b"GET / HTTP/1.1\r\nHost: web\r\n\r\n")
            answer = tcp.recv(4096).decode()
            assert answer.startswith("HTTP/1.1 200 OK")
            return answer.split()[-1]

        yield exchange


def test_one_that_falls_silent(scene: Scene, servers: list[Nginx], balancer: LoadBalancer) -> None:
    """No answer is a failure, whatever the kernel calls it."""
    balancer.apply([web(4)])

    async def main() -> None:
        async with checking(scene, balancer, TCPCheck()) as (_, events):
            await elsewhere(set_link, scene.backends[2], up=False)
            try:
                ((address, healthy, reason),) = await expect(events, 1)
            finally:
                await elsewhere(set_link, scene.backends[2], up=True)
            assert (address, healthy) == (backend_address(3, 4), False)
            assert reason in ("no answer within 0.5 s", "No route to host")
            assert await expect(events, 1) == {(address, True, "it answers")}

    asyncio.run(main())


def set_link(netns: NetNS, up: bool) -> None:
    with Netlink(netns) as netlink:
        netlink.set_link("eth0", up=up)
        if up:
            netlink.wait_operational("eth0")


def test_none_is_left(scene: Scene, servers: list[Nginx], balancer: LoadBalancer) -> None:
    """All unhealthy: new connections are refused and counted, and served again by the first."""
    balancer.apply([web(4)])

    async def main() -> None:
        async with checking(scene, balancer, HTTPCheck("/healthz")) as (_, events):
            for one in servers:
                one.answer(500)
            await expect(events, 3)
            with pytest.raises(ConnectionRefusedError):
                await elsewhere(ask, scene, 4, 1)
            assert balancer.metrics().packets(DropReason.NO_SERVICE_BACKEND) > 0
            servers[0].answer(204)
            await expect(events, 1)
            assert await elsewhere(ask, scene, 4, 5) == {"b1": 5}
        assert states(balancer) == set()  # nobody would restore them later

    asyncio.run(main())


async def _body(backend: Backend, dial: Dialer) -> bool:
    """A check of one's own: the first line that the service says."""
    connection = await dial(backend.address, backend.port)
    with contextlib.closing(connection):
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(connection, b"GET / HTTP/1.0\r\n\r\n")
        return b"b1" not in await loop.sock_recv(connection, 4096)


@pytest.mark.parametrize(
    ("check", "reason"),
    [
        (_body, "the check says no"),
        (HTTPCheck("/healthz", statuses=[204]), "HTTP status 200"),
        (HTTPCheck("/healthz", port=80), "no HTTP answer: b'b1 "),
        (TCPCheck(port=81), "Connection refused"),
    ],
    ids=["coroutine", "status", "another protocol", "another port"],
)
def test_kinds(
    scene: Scene, servers: list[Nginx], balancer: LoadBalancer, check: Check, reason: str
) -> None:
    """What each of them says of the first backend."""
    balancer.apply([web(4)])

    async def main() -> None:
        async with checking(scene, balancer, check) as (health, _):
            first = Backend(backend_address(1, 4), PORT, node="n1")
            deadline = time.monotonic() + PATIENCE
            while first not in health.unhealthy:
                assert time.monotonic() < deadline
                await asyncio.sleep(0.05)
            assert health.unhealthy[first].startswith(reason)

    asyncio.run(main())


# asyncio leaves the transport of a handshake that is under way when its loop ends
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    ("host", "trusted", "reason"),
    [
        ("web.test", True, ""),
        ("other.test", True, "Hostname mismatch"),
        ("web.test", False, "self-signed|self signed"),
    ],
    ids=["trusted", "another name", "nobody's"],
)
def test_https(tmp_path: Path, host: str, trusted: bool, reason: str) -> None:
    """With a context, the certificate has to be right, for the name that is asked for."""
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-keyout", key,
         "-out", certificate, "-subj", "/CN=web.test", "-addext", "subjectAltName=DNS:web.test"],
        check=True, capture_output=True,
    )  # fmt: skip
    server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_side.load_cert_chain(certificate, key)
    client_side = ssl.create_default_context(cafile=certificate if trusted else None)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert f"Host: {host}".encode() in await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        writer.close()

    async def main() -> None:
        async with await asyncio.start_server(answer, "127.0.0.1", 0, ssl=server_side) as server:
            port = server.sockets[0].getsockname()[1]
            fake = FakeBalancer(Service("web", [at(VIP[4], 443)], [f"127.0.0.1:{port}"]))
            check = HTTPCheck("/", host=host, tls=client_side)
            async with HealthChecks(fake, check, HealthSettings(interval=0.1, fall=1)) as health:
                await asyncio.sleep(1)
                (said,) = health.unhealthy.values() or [""]
                assert re.search(reason, said) if reason else not said

    asyncio.run(main())


def test_ten_thousand() -> None:
    """As many backends as that, without a thread or a socket for each, found dead when they are."""
    backends = [f"127.1.{n // 250}.{1 + n % 250}:{PORT}" for n in range(10_000)]
    fake = FakeBalancer(Service("many", [at(VIP[4], PORT)], backends))
    settings = HealthSettings(interval=4, timeout=5, rise=1, fall=1, concurrency=200)
    threads, most_open = threading.active_count(), 0

    async def main(netns: NetNS) -> None:
        nonlocal most_open
        listener = netns.socket(socket.AF_INET, socket.SOCK_STREAM)
        listener.bind(("0.0.0.0", PORT))
        server = await asyncio.start_server(lambda _, w: w.close(), sock=listener, backlog=4096)
        with NamespaceSockets(netns) as make_socket:
            async with HealthChecks(fake, TCPCheck(), settings, make_socket=make_socket) as health:
                deadline = time.monotonic() + 120
                await asyncio.sleep(5)
                assert health.checked == 10_000
                assert health.unhealthy == {}
                server.close()
                while len(fake.out) < 10_000:
                    open_now = sum(1 for _ in Path("/proc/self/fd").iterdir())
                    most_open = max(most_open, open_now)
                    assert time.monotonic() < deadline, len(fake.out)
                    await asyncio.sleep(0.1)
                assert threading.active_count() - threads <= 2 + (os.cpu_count() or 1) + 4

    with NetNS.create(f"pclH{os.getpid()}") as netns:
        try:
            with Netlink(netns) as netlink:
                netlink.set_link("lo", up=True)
            asyncio.run(main(netns))
        finally:
            netns.delete()
    assert fake.out == set()
    assert most_open < 1000


# ---------------------------------------------------------------------- health check node ports


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not await condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)


def test_health_check_node_ports(scene: Scene, balancer: LoadBalancer) -> None:
    """200 while a backend of the service is on this node and not quarantined, else 503."""
    local = {"external_policy": "Local", "health_port": HEALTH_PORT}

    def asked(version: int) -> tuple[int, str, str]:
        return get(scene.client, DIRECTOR[version], HEALTH_PORT, "/healthz")

    async def main(make_socket: NamespaceSockets) -> None:
        async with HealthNodePorts(balancer, balancer.node, make_socket=make_socket) as ports:
            balancer.apply([web(4, **local), web(6)])
            await until(lambda: settled(lambda: HEALTH_PORT in ports.answers))
            for version in (4, 6):
                status, body, head = await elsewhere(asked, version)
                assert status == 200
                assert json.loads(body) == {
                    "service": {"namespace": "default", "name": "web-4"},
                    "localEndpoints": 3,
                    "serviceProxyHealthy": True,
                }
                assert "Content-Type: application/json" in head
                assert "X-Load-Balancing-Endpoint-Weight: 3" in head
            balancer.quarantine(*web(4).backends)
            await until(lambda: settled(lambda: ports.answers[HEALTH_PORT].count == 0))
            assert (await elsewhere(asked, 4))[0] == 503
            balancer.delete("default/web-4")
            await until(lambda: settled(lambda: not ports.answers))
            with pytest.raises(ConnectionRefusedError):
                await elsewhere(asked, 4)

    with NamespaceSockets(scene.director) as make_socket:
        asyncio.run(main(make_socket))


async def settled(condition: Callable[[], bool]) -> bool:
    return condition()


def test_a_health_check_node_port_that_is_taken(scene: Scene, balancer: LoadBalancer) -> None:
    """Said, and opened as soon as it is free; the others are open meanwhile."""
    local = {"external_policy": "Local"}
    services = [web(4, health_port=32101, **local), web(6, health_port=32102, **local)]
    taken = scene.director.socket(socket.AF_INET, socket.SOCK_STREAM)
    taken.bind(("0.0.0.0", 32101))
    taken.listen()
    balancer.apply(services)

    async def main(make_socket: NamespaceSockets) -> None:
        async with HealthNodePorts(balancer, balancer.node, make_socket=make_socket) as ports:
            await until(lambda: settled(lambda: 32102 in ports.answers))
            assert list(ports.failed) == [32101]
            taken.close()
            await until(lambda: settled(lambda: 32101 in ports.answers))
            assert ports.failed == {}

    with taken, NamespaceSockets(scene.director) as make_socket:
        asyncio.run(main(make_socket))
