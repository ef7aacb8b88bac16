"""`LoadBalancer` and `DSRBackend` with real packets: who answers, and what a change does."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve, frozen

from pyciliumlib import errors
from pyciliumlib.flow import DropReason
from pyciliumlib.kernel.xdp import attached_xdp
from pyciliumlib.loadbalancer import Backend, Client, LoadBalancerConfig, Service, ServiceKey, Why
from pyciliumlib.loadbalancer.connections import Connection
from pyciliumlib.loadbalancer.program import DSRBackend, LoadBalancer, Sizes
from pyciliumlib.loadbalancer.program.loading import Hook
from pyciliumlib.net import Netlink, write_sysctls
from tests.bpf.sockets import at
from tests.lab import balancer_scene
from tests.lab.balancer_scene import CLIENT, DIRECTOR, VIP, Scene, backend_address, dns, exchange

VERSIONS = pytest.mark.parametrize("version", [4, 6], ids=["IPv4", "IPv6"])
AT_TC = LoadBalancerConfig("maglev", "dsr", "ipip", acceleration="disabled")
SIZES = Sizes(services=64, frontends=64, backends=64, slots=1 << 18, flows=4096)


def web(
    version: int, numbers: tuple[int, ...] = (1, 2, 3), port: int = 80, **options: Any
) -> Service:
    served = [at(backend_address(number, version), port) for number in numbers]
    return Service(f"web-{version}", [at(VIP[version], port)], served, **options)


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
                self.ping(version, number)

    def ping(self, version: int, number: int) -> None:
        """A connection that is refused knows the way all the same."""
        family = socket.AF_INET if version == 4 else socket.AF_INET6
        with self.scene.director.socket(family, socket.SOCK_STREAM) as tcp:
            tcp.settimeout(3)
            with contextlib.suppress(ConnectionRefusedError):
                tcp.connect((backend_address(number, version), 9))


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


@pytest.fixture(autouse=True)
def _hush(scene: Scene) -> None:
    scene.hush()


@pytest.fixture
def place(scene: Scene) -> Iterator[Place]:
    with scene.director.call(lambda: LoadBalancer("eth0", sizes=SIZES)) as balancer:
        yield Place(scene, balancer)
    assert scene.director.call(lambda: attached_xdp("eth0")) == {}


@VERSIONS
@pytest.mark.smoke
def test_tcp_and_udp(place: Place, version: int) -> None:
    """Every backend answers in the service's name and sees the client's own address."""
    place.serve(web(version), dns(version))
    seen = {place.scene.ask(version) for _ in range(60)}
    assert {answer.split()[0] for answer in seen} == {"b1", "b2", "b3"}
    assert {answer.split()[1] for answer in seen} == {CLIENT[version]}
    assert place.scene.ask_udp(version).split()[1] == CLIENT[version]


@VERSIONS
def test_where_says_who_answers(place: Place, version: int) -> None:
    """Before the connection, by the model; afterwards, by the kernel."""
    place.serve(web(version))
    for port in range(20000, 20010):
        client = at(CLIENT[version], port).partition("/")[0]
        before = place.balancer.where(client, at(VIP[version], 80))
        answered = place.scene.ask(version, source=port).split()[0]
        after = place.balancer.where(client, at(VIP[version], 80))
        assert (before.why, after.why) == (Why.MAGLEV, Why.CONNECTION)
        assert before.backend == after.backend
        assert str(after.backend.address) == backend_address(int(answered[1]), version)


@VERSIONS
def test_where_knows_the_clients(place: Place, version: int) -> None:
    """With session affinity a client meets its backend again, from any port."""
    place.serve(web(version, affinity_timeout=60))
    met = {place.scene.ask(version).split()[0] for _ in range(5)}
    placed = place.balancer.where(at(CLIENT[version], 1).partition("/")[0], at(VIP[version], 80))
    assert (placed.why, len(met)) == (Why.AFFINITY, 1)
    assert str(placed.backend.address) == backend_address(int(met.pop()[1]), version)
    place.balancer.quarantine(placed.backend)
    other = place.balancer.where(at(CLIENT[version], 1).partition("/")[0], at(VIP[version], 80))
    assert other.why is Why.MAGLEV and other.backend.key != placed.backend.key


@VERSIONS
def test_two_directors_agree(place: Place, version: int) -> None:
    """Without its flows, as on another node, the balancer sends an open connection on as before."""
    place.serve(web(version))
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    with place.scene.client.socket(family, socket.SOCK_STREAM) as tcp:
        tcp.settimeout(3)
        tcp.connect((VIP[version], 80))
        first = exchange(tcp)
        place.balancer.close()
        with place.scene.director.call(lambda: LoadBalancer("eth0", sizes=SIZES)) as second:
            second.upsert(web(version))
            assert exchange(tcp) == first
            assert len(list(second.connections())) == 1


@VERSIONS
def test_changes_under_connections(place: Place, version: int) -> None:
    """Two hundred changes of the other backends: no exchange of an open connection fails."""
    place.serve(web(version))
    failed: list[Exception] = []
    ending = threading.Event()
    exchanged = [0] * 4

    def talk(index: int) -> None:
        family = socket.AF_INET if version == 4 else socket.AF_INET6
        try:
            with place.scene.client.socket(family, socket.SOCK_STREAM) as tcp:
                tcp.settimeout(3)
                tcp.connect((VIP[version], 80))
                home = exchange(tcp)
                kept.append(home)
                ready.wait(5)
                while not ending.is_set():
                    assert exchange(tcp) == home
                    exchanged[index] += 1
        except (OSError, AssertionError) as error:
            failed.append(error)

    kept: list[str] = []
    ready = threading.Event()
    place.balancer.apply([web(version, (1,))])
    talkers = [threading.Thread(target=talk, args=(index,)) for index in range(4)]
    for talker in talkers:
        talker.start()
    wait_for(lambda: len(kept) == 4 or bool(failed))
    ready.set()
    sets = [(1, 2), (1, 3), (1,), (1, 2, 3)]
    for number in range(200):
        algorithm = ("maglev", "random")[number // 4 % 2]
        place.balancer.upsert(web(version, sets[number % 4], algorithm=algorithm))
    ending.set()
    for talker in talkers:
        talker.join()
    assert failed == []
    assert min(exchanged) > 10
    assert kept == ["b1"] * 4


def wait_for(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@VERSIONS
def test_drain(place: Place, version: int) -> None:
    """No new connections for it; the one that it has goes on."""
    place.serve(web(version))
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    with place.scene.client.socket(family, socket.SOCK_STREAM) as tcp:
        tcp.settimeout(3)
        tcp.connect((VIP[version], 80))
        home = exchange(tcp)
        address = at(backend_address(int(home[1]), version), 80)
        plan = place.balancer.drain(address)
        assert "active to terminating" in str(plan)
        assert home not in place.scene.who(version, 30)
        assert exchange(tcp) == home
    with pytest.raises(errors.NotFoundError, match=r"10\.0\.0\.9"):
        place.balancer.drain("10.0.0.9:80")


@VERSIONS
def test_source_ranges(place: Place, version: int) -> None:
    """Another client's range: dropped and counted. Opened again: served again."""
    other = "198.18.0.0/15" if version == 4 else "2001:db8:ff::/48"
    place.serve(web(version, source_ranges=[other]))
    with pytest.raises(TimeoutError):
        place.scene.ask(version)
    assert place.balancer.metrics().packets(DropReason.LB_SOURCE_RANGE) >= 1
    place.balancer.upsert(web(version))
    assert place.scene.ask(version)


@VERSIONS
def test_large_requests(place: Place, version: int) -> None:
    """Full segments arrive whole: a megabyte, answered at its end."""
    place.serve(web(version))
    send_megabyte(place.scene, version)


def send_megabyte(scene: Scene, version: int) -> None:
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    with scene.client.socket(family, socket.SOCK_STREAM) as tcp:
        tcp.settimeout(10)
        tcp.connect((VIP[version], 80))
        sender = threading.Thread(target=tcp.sendall, args=(b"x" * (1 << 20) + b"\0",))
        sender.start()
        answer = b""
        while not answer.endswith(b"got it"):
            answer += tcp.recv(65536)
        sender.join()


def test_senders_learn_what_fits(tmp_path: Path) -> None:
    """Where the outer header does not fit, the client hears of it and sends less at a time."""
    with contextlib.ExitStack() as stack:
        scene = stack.enter_context(balancer_scene.scene(tmp_path, backends=1, inside_mtu=1500))
        serve = scene.backends[0].call(lambda: DSRBackend("eth0", VIP.values()))
        stack.callback(serve.close)
        balancer = scene.director.call(lambda: LoadBalancer("eth0", sizes=SIZES))
        stack.callback(balancer.close)
        balancer.apply([web(4, (1,)), web(6, (1,))])
        for version in (4, 6):
            before = balancer.metrics().packets(DropReason.FRAG_NEEDED)
            send_megabyte(scene, version)
            assert 1 <= balancer.metrics().packets(DropReason.FRAG_NEEDED) - before < 50


@VERSIONS
def test_a_neighbour_that_changes(place: Place, version: int) -> None:
    """A backend that comes back with another MAC is found again, though only XDP sends to it."""
    place.serve(web(version, (1,)))
    assert place.scene.ask(version)
    director = place.scene.director
    with Netlink(director) as netlink:
        netlink.delete_neighbour("eth0", backend_address(1, version))
    time.sleep(1.1)  # as long as the program keeps what it knows
    wait_for(lambda: asks(place.scene, version), seconds=10)


def asks(scene: Scene, version: int) -> bool:
    with contextlib.suppress(OSError):
        return bool(scene.ask(version))
    return False


def by_client(balancer: LoadBalancer, address: str) -> list[Connection]:
    """The connections of one client: another's may still be closing from the test before."""
    return [one for one in balancer.connections() if str(one.client.address) == address]


@VERSIONS
def test_a_connection_that_is_silent_through_a_change(place: Place, version: int) -> None:
    """It shows with its backend although nothing was decided since, until that is removed."""
    place.serve(web(version))
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    with place.scene.client.socket(family, socket.SOCK_STREAM) as tcp:
        tcp.settimeout(3)
        tcp.connect((VIP[version], 80))
        assert exchange(tcp)
        source = Client.parse(at(CLIENT[version], tcp.getsockname()[1]))
        (before,) = by_client(place.balancer, CLIENT[version])
        place.balancer.drain(before.backend)
        others = [
            n for n in (1, 2, 3) if backend_address(n, version) != str(before.backend.address)
        ]
        mine = ({1, 2, 3} - set(others)).pop()
        place.balancer.upsert(web(version, (mine, others[0])))
        (after,) = by_client(place.balancer, CLIENT[version])
        assert (after.client, after.backend.key) == (source, before.backend.key) and after.known
        placed = place.balancer.where(source, at(VIP[version], 80))
        assert (placed.why, placed.backend) == (Why.CONNECTION, after.backend)
        place.balancer.upsert(web(version, tuple(others)))
        assert not by_client(place.balancer, CLIENT[version])


def test_counts_and_connections(place: Place) -> None:
    """What the balancer tells of its services, and that it begins anew for new ones."""
    place.serve(web(4), web(6))
    for _ in range(5):
        place.scene.ask(4)
    counts = place.balancer.service_counts()
    assert counts[ServiceKey("default", "web-4")].packets >= 15
    assert counts[ServiceKey("default", "web-6")].packets == 0
    by_backend = place.balancer.backend_counts()
    assert sum(c.packets for c in by_backend.values()) == sum(c.packets for c in counts.values())
    seen = by_client(place.balancer, CLIENT[4])
    assert len(seen) == 5
    assert all(one.known and one.closing for one in seen)
    time.sleep(0.3)  # the clients' last acknowledgements are under way
    place.balancer.delete("default/web-4")
    assert not by_client(place.balancer, CLIENT[4])
    place.balancer.upsert(web(4))
    assert place.balancer.service_counts()[ServiceKey("default", "web-4")].packets == 0


BAD: dict[str, tuple[Any, type[Exception], str]] = {
    "another port": (
        Service("a", [at(VIP[4], 80)], ["10.0.0.1:8080"], dispatch="ipip"), errors.ServiceError,
        "cannot change a port",
    ),
    "delegation": (
        web(4, proxy_delegation="delegate-if-local"), errors.ServiceError, "delegation",
    ),
    "somebody's frontend": (
        Service("other", [at(VIP[6], 80)], []), errors.ExistsError, "web-6's already",
    ),
    "too many backends": (
        Service("many", [at(VIP[4], 81)], [f"10.1.0.{n}:81" for n in range(1, 80)]),
        errors.MapFullError, "backends",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("service", "error", "said"), BAD.values(), ids=BAD)
def test_refused(place: Place, service: Service, error: type[Exception], said: str) -> None:
    """Told with the reason, and nothing is applied, of the others in the call neither."""
    place.serve(web(6))
    with pytest.raises(error, match=said):
        place.balancer.upsert(dns(4), service)
    assert list(place.balancer.services) == [web(6).key]
    assert place.scene.ask(6)


def test_a_device_runs_one_balancer(place: Place) -> None:
    """The second is told of the first, in XDP and at tc."""
    with pytest.raises(errors.ExistsError, match="loadbalancer"):
        place.scene.director.call(lambda: LoadBalancer("eth0"))
    with place.scene.client.call(lambda: LoadBalancer("eth0", config=AT_TC)):
        with pytest.raises(errors.ExistsError, match="loadbalancer_tc"):
            place.scene.client.call(lambda: LoadBalancer("eth0", config=AT_TC))


@VERSIONS
def test_at_tc(scene: Scene, version: int) -> None:
    """A device whose driver has no XDP: the same answers."""
    with scene.director.call(lambda: LoadBalancer("eth0", config=AT_TC)) as balancer:
        place = Place(scene, balancer)
        place.serve(web(version), dns(version))
        assert balancer.hook is Hook.TC
        assert len(scene.who(version, 20)) == 3
        assert scene.ask_udp(version).split()[1] == CLIENT[version]


def test_best_effort(scene: Scene) -> None:
    """The driver where it can, tc where it cannot."""
    config = evolve(AT_TC, acceleration="best-effort")
    for device, hook in (("eth0", Hook.NATIVE), ("lo", Hook.TC)):
        with scene.client.call(lambda device=device: LoadBalancer(device, config=config)) as made:
            assert made.hook is hook


@pytest.mark.parametrize(
    ("device", "config", "error", "said"),
    [
        ("none0", {}, errors.DeviceError, "none0"),
        ("lo", {}, errors.FeatureError, "generic"),
    ],
)
def test_devices_that_cannot(
    scene: Scene, device: str, config: dict[str, Any], error: type[Exception], said: str
) -> None:
    """A typed error that says the mend."""
    settings = LoadBalancerConfig("maglev", "dsr", "ipip", **{"acceleration": "native", **config})
    with pytest.raises(error, match=said):
        scene.client.call(lambda: LoadBalancer(device, config=settings))


def test_forwarding_has_to_be_on(place: Place) -> None:
    """Else the kernel tells the program no way; the error says what to run."""
    name = "ipv4/conf/eth0/forwarding"
    write_sysctls(place.scene.director, {name: 0})
    try:
        with pytest.raises(errors.ServiceError, match=r"sysctl -w net\.ipv4\.conf\.eth0"):
            place.balancer.upsert(web(4))
    finally:
        write_sysctls(place.scene.director, {name: 1})


def test_closed(place: Place) -> None:
    """Every question afterwards is a ClosedError; closing again is none."""
    place.balancer.close()
    place.balancer.close()
    for ask in (
        place.balancer.metrics,
        place.balancer.connections,
        lambda: place.balancer.upsert(web(4)),
        lambda: place.balancer.where("192.0.2.7:1", "203.0.113.10:80"),
    ):
        with pytest.raises(errors.ClosedError):
            ask()


def test_html(place: Place) -> None:
    """For notebooks: a row for each service, with the states of its backends and its packets."""
    place.serve(web(4), web(6))
    place.balancer.quarantine(web(4).backends[0])
    place.scene.ask(4)

    def packets_are_told() -> bool:
        """The client's last packets are under way, and may come between the two."""
        packets = place.balancer.service_counts()[web(4).key].packets
        return packets > 0 and f"{packets} packets" in place.balancer._repr_html_()

    wait_for(packets_are_told)
    page = place.balancer._repr_html_()
    assert page.count("<tr><td>") == 2
    assert "default/web-4" in page and "2 active, 1 quarantined" in page
    place.balancer.close()
    assert "closed" in place.balancer._repr_html_()


def test_plan_is_what_apply_does(place: Place) -> None:
    """Shown first, done afterwards, and nothing to do the second time."""
    place.serve(web(4))
    wanted = [web(4, (1, 2)), web(6)]
    plan = place.balancer.plan(wanted)
    assert str(plan).splitlines() == [
        f"~ default/web-4: -{Backend(backend_address(3, 4), 80)}",
        "+ default/web-6: 1 frontend(s), 3 backend(s)",
    ]
    assert place.balancer.apply(wanted) == plan
    assert not place.balancer.plan(wanted)
