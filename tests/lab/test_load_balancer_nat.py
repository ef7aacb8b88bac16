"""`LoadBalancer` that translates, with real packets: backends that know nothing of it."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import json
import os
import shutil
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve, frozen

from pyciliumlib import errors
from pyciliumlib.flow import DropReason
from pyciliumlib.loadbalancer import LoadBalancerConfig, Service
from pyciliumlib.loadbalancer.program import LoadBalancer, Sizes
from pyciliumlib.net import Netlink, NetNS, read_sysctl, write_sysctls
from tests.bpf.sockets import at
from tests.lab import balancer_scene
from tests.lab.balancer_scene import (
    DIRECTOR,
    LENGTH,
    OTHER_PORT,
    VIP,
    Scene,
    Server,
    backend_address,
    dns,
    exchange,
)

VERSIONS = pytest.mark.parametrize("version", [4, 6], ids=["IPv4", "IPv6"])
SIZES = Sizes(services=64, frontends=64, backends=64, slots=1 << 18, flows=8192, translated=8192)
IN_XDP = LoadBalancerConfig("maglev", "snat", acceleration="native")
AT_TC = evolve(IN_XDP, acceleration="disabled")
FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}


def web(version: int, numbers: tuple[int, ...] = (1, 2, 3), **options: Any) -> Service:
    """Port 80 of the service is 8080 of its backends."""
    served = [at(backend_address(number, version), OTHER_PORT) for number in numbers]
    return Service(f"web-{version}", [at(VIP[version], 80)], served, **options)


@frozen
class Place:
    """The scene, with the balancer at its director."""

    scene: Scene
    balancer: LoadBalancer

    def serve(self, *services: Service) -> None:
        """Hold these services, and wait until their backends' neighbours are known."""
        self.balancer.apply(services)
        for version in (4, 6):
            for number in (1, 2, 3):
                with self.scene.director.socket(FAMILY[version], socket.SOCK_STREAM) as tcp:
                    tcp.settimeout(3)
                    with contextlib.suppress(ConnectionRefusedError):
                        tcp.connect((backend_address(number, version), 9))

    def dropped(self, reason: DropReason) -> int:
        return self.balancer.metrics().packets(reason)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with balancer_scene.scene(tmp_path_factory.mktemp("scene")) as made:
        yield made


@pytest.fixture(autouse=True)
def _hush(scene: Scene) -> None:
    scene.hush()


@pytest.fixture(scope="module")
def offloading(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("offloading")
    with balancer_scene.scene(folder, inside_mtu=1500, offloads=True) as made:
        yield made


def balancer_at(scene: Scene, config: LoadBalancerConfig) -> LoadBalancer:
    return scene.director.call(lambda: LoadBalancer("eth0", config=config, sizes=SIZES))


@pytest.fixture(params=["XDP", "tc"])
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    """In XDP, and at tc with all offloads on."""
    in_xdp = request.param == "XDP"
    scene = request.getfixturevalue("scene" if in_xdp else "offloading")
    with balancer_at(scene, IN_XDP if in_xdp else AT_TC) as balancer:
        yield Place(scene, balancer)


def wait_for(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@VERSIONS
@pytest.mark.smoke
def test_tcp_and_udp(place: Place, version: int) -> None:
    """Every backend answers in the service's name, from another port, and sees the balancer."""
    place.serve(web(version), dns(version))
    seen = {place.scene.ask(version) for _ in range(60)}
    assert {answer.split()[0] for answer in seen} == {"b1", "b2", "b3"}
    assert {answer.split()[1] for answer in seen} == {DIRECTOR[version]}
    assert place.scene.ask_udp(version).split()[1] == DIRECTOR[version]


@VERSIONS
def test_connections(place: Place, version: int) -> None:
    """What the backend sees of a client is told; FINs of both sides end it."""
    place.serve(web(version))
    with place.scene.client.socket(FAMILY[version], socket.SOCK_STREAM) as tcp:
        tcp.connect((VIP[version], 80))
        exchange(tcp)
        (one,) = place.balancer.connections()
        assert (one.known, one.closing) == (True, False)
        port = tcp.getsockname()[1]
        assert one.nat is not None
        assert str(one.nat.address) == DIRECTOR[version]
        assert 36864 <= one.nat.port <= 65535
        assert port < 36864 or one.nat.port == port
    wait_for(lambda: [c.closing for c in place.balancer.connections()] == [True])


@VERSIONS
def test_many_connections_at_once(place: Place, version: int) -> None:
    """1,200 of one client, of which every one is asked again when all are open."""
    place.serve(web(version))
    with contextlib.ExitStack() as stack:
        opened = []
        for _ in range(1200):
            tcp = stack.enter_context(place.scene.client.socket(FAMILY[version], 1))
            tcp.settimeout(5)
            tcp.connect((VIP[version], 80))
            opened.append(tcp)
        homes = [exchange(tcp) for tcp in opened]
        assert [exchange(tcp) for tcp in opened] == homes
        assert set(homes) == {"b1", "b2", "b3"}
        assert sum(one.known for one in place.balancer.connections()) == 1200
    assert place.balancer.metrics().dropped == 0


class _Hello(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = self.client_address[0].encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def http_servers(scene: Scene, version: int) -> Iterator[None]:
    """An HTTP server on port 8000 of each backend."""
    with contextlib.ExitStack() as stack:
        for netns in scene.backends:
            server = http.server.ThreadingHTTPServer(("", 0), _Hello, bind_and_activate=False)
            server.daemon_threads = True
            server.socket.close()
            server.socket = netns.socket(FAMILY[version], socket.SOCK_STREAM)
            server.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            server.socket.bind(("", 8000))
            server.server_activate()
            thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
            thread.start()
            stack.callback(server.server_close)
            stack.callback(thread.join)
            stack.callback(server.shutdown)
        yield


@VERSIONS
def test_keep_alive_through_changes(place: Place, version: int) -> None:
    """A hundred changes of backends: every request of connections to one that stays is answered."""

    def backends(*numbers: int) -> Service:
        served = [at(backend_address(n, version), 8000) for n in numbers]
        return Service("http", [at(VIP[version], 80)], served)

    failed: list[Exception] = []
    ending = threading.Event()
    requests = [0] * 4

    def talk(index: int) -> None:
        try:
            connection = http.client.HTTPConnection(VIP[version], 80, timeout=3)
            connection.sock = place.scene.client.socket(FAMILY[version], socket.SOCK_STREAM)
            connection.sock.settimeout(3)
            connection.sock.connect((VIP[version], 80))
            while not ending.is_set():
                connection.request("GET", "/")
                assert connection.getresponse().read().decode().endswith(DIRECTOR[version])
                requests[index] += 1
            connection.close()
        except (OSError, AssertionError, http.client.HTTPException) as error:
            failed.append(error)

    with http_servers(place.scene, version):
        place.serve(backends(1))
        talkers = [threading.Thread(target=talk, args=(index,)) for index in range(4)]
        for talker in talkers:
            talker.start()
        wait_for(lambda: min(requests) > 0 or bool(failed))
        for number in range(100):
            place.balancer.upsert(backends(1, *((2,), (3,), (2, 3), ())[number % 4]))
        ending.set()
        for talker in talkers:
            talker.join()
    assert failed == []
    assert min(requests) > 10


@VERSIONS
def test_ports_run_out_and_come_back(scene: Scene, version: int) -> None:
    """Four ports are four connections to a backend; the next is let in when one has ended."""
    with balancer_at(scene, evolve(IN_XDP, nat_ports="61000-61003")) as balancer:
        place = Place(scene, balancer)
        place.serve(web(version, (1,)))
        with contextlib.ExitStack() as stack:
            opened = []
            for _ in range(4):
                tcp = stack.enter_context(scene.client.socket(FAMILY[version], 1))
                tcp.settimeout(3)
                tcp.connect((VIP[version], 80))
                exchange(tcp)
                opened.append(tcp)
            with scene.client.socket(FAMILY[version], socket.SOCK_STREAM) as late:
                late.settimeout(0.5)
                with pytest.raises(TimeoutError):
                    late.connect((VIP[version], 80))
            assert place.dropped(DropReason.NAT_NO_MAPPING) >= 1
            assert [exchange(tcp) for tcp in opened] == ["b1"] * 4
            opened[0].close()
            wait_for(lambda: bool(asked(scene, version)), seconds=20)
            assert [exchange(tcp) for tcp in opened[1:]] == ["b1"] * 3


def asked(scene: Scene, version: int) -> str:
    with contextlib.suppress(OSError):
        return scene.ask(version)
    return ""


@VERSIONS
def test_the_nodes_own_connections(place: Place, version: int) -> None:
    """A thousand of the node's own to the very backends, beside the clients': none is disturbed."""
    place.serve(web(version))
    with contextlib.ExitStack() as stack:
        opened = []
        for _ in range(500):
            tcp = stack.enter_context(place.scene.client.socket(FAMILY[version], 1))
            tcp.settimeout(5)
            tcp.connect((VIP[version], 80))
            opened.append(tcp)
        homes = [exchange(tcp) for tcp in opened]
        ports = set()
        for number in range(1000):
            with place.scene.director.socket(FAMILY[version], socket.SOCK_STREAM) as own:
                own.settimeout(3)
                own.connect((backend_address(1 + number % 3, version), OTHER_PORT))
                assert exchange(own) == f"b{1 + number % 3}"
                ports.add(own.getsockname()[1])
        assert [exchange(tcp) for tcp in opened] == homes
    assert max(ports) < 36864


def test_ports_are_protected(scene: Scene) -> None:
    """From the first service that is translated on, until the balancer is closed."""
    name = "ipv4/ip_local_reserved_ports"
    write_sysctls(scene.director, {name: "8080,40000-40010"})
    try:
        with balancer_at(scene, IN_XDP) as balancer:
            balancer.upsert(web(4, (1,), forwarding="dsr", dispatch="ipip")
                            .with_backends([at(backend_address(1, 4), 80)]))  # fmt: skip
            too_many = web(6).with_backends([f"[2001:db8:b::{n:x}]:80" for n in range(1, 80)])
            for refused in (web(6, proxy_delegation="delegate-if-local"), too_many):
                with pytest.raises((errors.ServiceError, errors.MapFullError)):
                    balancer.upsert(refused)
            assert read_sysctl(scene.director, name) == "8080,40000-40010"
            balancer.upsert(web(6))
            assert read_sysctl(scene.director, name) == "8080,36864-60999"
        assert read_sysctl(scene.director, name) == "8080,40000-40010"
    finally:
        write_sysctls(scene.director, {name: ""})


def test_ports_that_may_not_be_protected(scene: Scene) -> None:
    """The service is refused, with what to do about it, and nothing is applied."""
    with balancer_at(scene, evolve(IN_XDP, auto_protect_ports=False)) as balancer:
        with pytest.raises(errors.ServiceError, match="ip_local_reserved_ports=36864-60999"):
            balancer.upsert(web(4))
        assert not balancer.services
        write_sysctls(scene.director, {"ipv4/ip_local_reserved_ports": "36864-60999"})
        try:
            balancer.upsert(web(4))
        finally:
            write_sysctls(scene.director, {"ipv4/ip_local_reserved_ports": ""})
    with balancer_at(scene, evolve(IN_XDP, nat_ports="30000-65535")) as balancer:
        with pytest.raises(errors.ServiceError, match="own sockets 0 of the ports"):
            balancer.upsert(web(4))


@pytest.fixture
def pin_root() -> Iterator[Path]:
    path = Path(f"/sys/fs/bpf/pcl-nat-{os.getpid()}")
    yield path
    left = path.exists()
    shutil.rmtree(path, ignore_errors=True)
    assert not left


@VERSIONS
@pytest.mark.parametrize("config", [IN_XDP, AT_TC], ids=["XDP", "tc"])
def test_taken_over(scene: Scene, pin_root: Path, version: int, config: LoadBalancerConfig) -> None:
    """Connections go on while nobody is there and afterwards, and the ports stay protected."""
    name = "ipv4/ip_local_reserved_ports"
    config = evolve(config, nat_ports="50000-60000")

    def begin() -> LoadBalancer:
        return scene.director.call(
            lambda: LoadBalancer("eth0", config=config, sizes=SIZES, pin_root=pin_root)
        )

    with scene.client.socket(FAMILY[version], socket.SOCK_STREAM) as tcp:
        tcp.settimeout(3)
        with begin() as balancer:
            Place(scene, balancer).serve(web(version))
            tcp.connect((VIP[version], 80))
            home = exchange(tcp)
            (before,) = balancer.connections()
            balancer.keep()
        assert exchange(tcp) == home
        assert read_sysctl(scene.director, name) == "50000-60000"
        with scene.director.call(lambda: LoadBalancer.open(pin_root)) as balancer:
            assert balancer.config == config
            assert exchange(tcp) == home
            (after,) = balancer.connections()
            assert after.nat == before.nat
            assert read_sysctl(scene.director, name) == "50000-60000"
    assert read_sysctl(scene.director, name) == ""


@VERSIONS
def test_a_backend_that_is_a_client(place: Place, version: int) -> None:
    """Even where it is its own backend: it sees the balancer, and not itself."""
    place.serve(web(version))
    first = place.scene.backends[0]
    with Netlink(first) as netlink:
        netlink.add_route(VIP[version], via=DIRECTOR[version], dev="eth0")
        try:
            seen = set()
            for _ in range(40):
                with first.socket(FAMILY[version], socket.SOCK_STREAM) as tcp:
                    tcp.settimeout(3)
                    tcp.connect((VIP[version], 80))
                    tcp.sendall(b"who?")
                    seen.add(tcp.recv(200).decode().strip())
        finally:
            netlink.delete_route(VIP[version], via=DIRECTOR[version], dev="eth0")
    assert seen == {f"b{n} {DIRECTOR[version]}" for n in (1, 2, 3)}


# ---------------------------------------------------------------------- ICMP


FAR = {4: "10.1.0.1", 6: "fd01::1"}
NEAR = {4: "10.1.0.254", 6: "fd01::254"}
NARROW = 1300


@contextlib.contextmanager
def far_backend(scene: Scene) -> Iterator[None]:
    """A backend behind the third one, by a link that fits less."""
    hop = scene.backends[2]
    far = NetNS.create(f"{hop.name}f")
    with contextlib.ExitStack() as stack:
        stack.callback(far.delete)
        with Netlink(far) as netlink, Netlink(hop) as inner, Netlink(scene.director) as director:
            netlink.set_link("lo", up=True)
            inner.add_veth("far0", "eth0", peer_netns=far)
            inner.set_link("far0", up=True, mtu=NARROW)
            netlink.set_link("eth0", up=True)
            for version in (4, 6):
                inner.add_address("far0", f"{NEAR[version]}/{LENGTH[version]}")
                netlink.add_address("eth0", f"{FAR[version]}/{LENGTH[version]}")
            for version in (4, 6):
                inner.wait_usable("far0", NEAR[version])
                netlink.wait_usable("eth0", FAR[version])
                netlink.add_route(f"default{version}", via=NEAR[version], dev="eth0")
                net = {4: "10.1.0.0/24", 6: "fd01::/64"}[version]
                hop_address = backend_address(3, version)
                director.add_route(net, via=hop_address, dev="eth0")
                stack.callback(_forget, scene.director, net, hop_address)
            stack.callback(_delete_link, hop, "far0")
        server = Server.start("far", far)
        stack.callback(server.stop)
        yield


def _forget(netns: NetNS, net: str, via: str) -> None:
    with Netlink(netns) as netlink:
        netlink.delete_route(net, via=via, dev="eth0")


def _delete_link(netns: NetNS, name: str) -> None:
    with Netlink(netns) as netlink:
        netlink.delete_link(name)


@VERSIONS
def test_a_narrow_hop(place: Place, version: int) -> None:
    """A router on the way to the backend says what fits, and the client sends that much."""
    with far_backend(place.scene):
        place.serve(Service("far", [at(VIP[version], 80)], [at(FAR[version], OTHER_PORT)]))
        wait_for(lambda: bool(asked(place.scene, version)))
        with place.scene.client.socket(FAMILY[version], socket.SOCK_STREAM) as tcp:
            tcp.settimeout(10)
            tcp.connect((VIP[version], 80))
            sender = threading.Thread(target=tcp.sendall, args=(b"x" * (1 << 20) + b"\0",))
            sender.start()
            answer = b""
            while not answer.endswith(b"got it"):
                answer += tcp.recv(65536)
            sender.join()
            level, option = (socket.IPPROTO_IP, 14) if version == 4 else (socket.IPPROTO_IPV6, 24)
            assert tcp.getsockopt(level, option) == NARROW  # IP_MTU, IPV6_MTU


@VERSIONS
def test_a_trace_of_the_way(place: Place, version: int) -> None:
    """Hop by hop, as traceroute asks: what lies behind the balancer answers as the service."""
    with far_backend(place.scene):
        place.serve(
            Service("far", [at(VIP[version], 33434, "UDP")], [at(FAR[version], 33434, "UDP")])
        )
        told = {hops: probe(place.scene.client, version, hops) for hops in (1, 2, 3, 4)}
    gateway = balancer_scene.UPLINK[version]
    expired, unreachable = {4: (11, 3), 6: (3, 1)}[version]
    assert told == {
        1: (gateway, expired),
        2: None,  # the balancer is not heard of
        3: (VIP[version], expired),
        4: (VIP[version], unreachable),
    }


def probe(client: NetNS, version: int, hops: int) -> tuple[str, int] | None:
    """Who told what ICMP type about a datagram with so many hops to live, by its socket's queue."""
    v4 = version == 4
    level = socket.IPPROTO_IP if v4 else socket.IPPROTO_IPV6
    with client.socket(FAMILY[version], socket.SOCK_DGRAM) as udp:
        udp.setsockopt(level, socket.IP_TTL if v4 else socket.IPV6_UNICAST_HOPS, hops)
        udp.setsockopt(level, 11 if v4 else 25, 1)  # IP_RECVERR, IPV6_RECVERR
        udp.connect((VIP[version], 33434))
        for _ in range(4):
            udp.send(b"probe")
            time.sleep(0.25)
            try:
                _, ancillary, _, _ = udp.recvmsg(512, 512, socket.MSG_ERRQUEUE)
            except BlockingIOError:
                continue
            except OSError:
                continue
            data = ancillary[0][2]
            _, _, kind, _ = struct.unpack_from("IBBB", data)
            offender = data[16 + 4 : 16 + 8] if v4 else data[16 + 8 : 16 + 24]
            return socket.inet_ntop(FAMILY[version], offender), kind
    return None


# ---------------------------------------------------------------------- speed


@VERSIONS
@pytest.mark.parametrize("reverse", [False, True], ids=["up", "down"])
def test_bulk_with_offloads(offloading: Scene, version: int, reverse: bool) -> None:
    """At tc segments of 64 KiB with partial checksums pass whole, in both directions."""
    with balancer_at(offloading, AT_TC) as balancer:
        place = Place(offloading, balancer)
        served = [at(backend_address(1, version), 5201)]
        place.serve(Service("bulk", [at(VIP[version], 5201)], served))
        rate = iperf(offloading.client, offloading.backends[0], VIP[version], reverse)
        direct = iperf(offloading.client, offloading.backends[0], backend_address(1, version),
                       reverse)  # fmt: skip
        packets = balancer.metrics().packets()
    assert place_size(rate, packets) > 10_000  # bytes a packet, on average of both directions
    assert rate > direct / 4


def place_size(rate: float, packets: int) -> float:
    return rate / 8 * IPERF_SECONDS / packets


IPERF_SECONDS = 2


def iperf(client: NetNS, server: NetNS, address: str, reverse: bool) -> float:
    """Bits a second of one TCP stream."""
    listening = server.call(
        lambda: subprocess.Popen(["iperf3", "-s", "-1"], stdout=subprocess.DEVNULL)
    )
    try:
        time.sleep(0.3)
        command = ["iperf3", "-J", "-t", str(IPERF_SECONDS), "-c", address]
        command += ["-R"] if reverse else []
        told = client.call(lambda: subprocess.run(command, capture_output=True, check=False))
        result = json.loads(told.stdout)
        assert "error" not in result, result["error"]
        return float(result["end"]["sum_received"]["bits_per_second"])
    finally:
        listening.terminate()
        listening.wait()
