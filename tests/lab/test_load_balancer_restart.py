"""A balancer outlives its process: killed under load, in the middle of a change, and taken over."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import re
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from pyciliumlib import errors
from pyciliumlib.datapath import Datapath
from pyciliumlib.kernel.xdp import attached_xdp
from pyciliumlib.lab.processes import Spawner
from pyciliumlib.loadbalancer import Backend, LoadBalancerConfig, Service
from pyciliumlib.loadbalancer.program import LoadBalancer
from pyciliumlib.loadbalancer.program.load_balancer import DEFAULTS
from pyciliumlib.net import Netlink, NetNS, read_sysctl, write_sysctls
from tests.lab.balancer_controller import controlled
from tests.lab.balancer_scene import VIP, Scene, backend_address, exchange
from tests.lab.http_load import load
from tests.lab.nginx import PORT, web_scene
from tests.lab.test_load_balancer import AT_TC, SIZES, web

_serial = itertools.count()
HOOKS = pytest.mark.parametrize("config", [DEFAULTS, AT_TC], ids=["XDP", "tc"])


@pytest.fixture(scope="module")
def spawner() -> Iterator[Spawner]:
    made = Spawner()
    yield made
    made.close()


@pytest.fixture(scope="module")
def scene(spawner: Spawner, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with web_scene(spawner, tmp_path_factory.mktemp("scene")) as made:
        yield made


@pytest.fixture(autouse=True)
def _hush(scene: Scene) -> None:
    scene.hush()


@pytest.fixture
def pin_root() -> Iterator[Path]:
    """A root of this test alone, gone afterwards."""
    path = Path(f"/sys/fs/bpf/pcl-balancer-{os.getpid()}-{next(_serial)}")
    yield path
    left = path.exists()
    shutil.rmtree(path, ignore_errors=True)
    assert not left


def make(scene: Scene, pin_root: Path, **options: Any) -> LoadBalancer:
    options = {"sizes": SIZES, **options}
    return scene.director.call(lambda: LoadBalancer("eth0", pin_root=pin_root, **options))


def reopen(scene: Scene, pin_root: Path, **options: Any) -> LoadBalancer:
    return scene.director.call(lambda: LoadBalancer.open(pin_root, **options))


# ---------------------------------------------------------------------- under load


@pytest.mark.parametrize(
    ("config", "version"),
    [(DEFAULTS, 4), (AT_TC, 6), (evolve(DEFAULTS, mode="snat"), 4)],
    ids=["XDP-IPv4", "tc-IPv6", "SNAT-IPv4"],
)
def test_killed_and_taken_over(
    scene: Scene, spawner: Spawner, pin_root: Path, config: LoadBalancerConfig, version: int
) -> None:
    """No request fails and no connection breaks: while nobody is there, nor at the takeover."""
    services = [web(4, port=PORT), web(6, port=PORT)]
    reserved = read_sysctl(scene.director, "ipv4/ip_local_reserved_ports")
    with (
        controlled(spawner, scene.director, pin_root, config, SIZES) as controller,
        load(spawner, scene.client, (VIP[version], PORT), hold=100) as clients,
    ):
        controller.hold(services)
        clients.wait_until_held()
        controller.kill()
        time.sleep(1)
        with reopen(scene, pin_root) as balancer:
            assert list(balancer.services.values()) == services
            assert not balancer.drift(), str(balancer.drift())
            assert sum(one.known for one in balancer.connections()) >= 100
            before = sum(count.packets for count in balancer.service_counts().values())
            time.sleep(0.5)
            assert sum(count.packets for count in balancer.service_counts().values()) > before > 300
            result = clients.end()
    assert read_sysctl(scene.director, "ipv4/ip_local_reserved_ports") == reserved
    assert (result.held, result.failed) == (100, [])
    assert result.exchanges > 500 and result.new > 20
    assert set(result.homes) == {"b1", "b2", "b3"}


def test_killed_while_it_changes(scene: Scene, spawner: Spawner, pin_root: Path) -> None:
    """Wherever it ends, the next one finds the old services or the new ones, whole."""
    others = [
        Service(f"other-{number}", [f"203.0.113.20:{number}"],
                [f"192.0.2.{11 + (number + step) % 3}:{number}" for step in range(1 + number % 3)],
                source_ranges=["198.51.100.0/24", "10.0.0.0/8"][: number % 3], algorithm="random")
        for number in range(1, 30)
    ]  # fmt: skip
    steps = [
        [web(4, port=PORT), *others[:20]],
        [web(4, port=PORT, algorithm="random"), *others[10:]],
        [web(4, port=PORT, affinity_timeout=60), *others[::2]],
    ]
    chance = random.Random(4)
    with make(scene, pin_root) as first:
        first.apply(steps[0])
        first.keep()
    with load(spawner, scene.client, (VIP[4], PORT), hold=60) as clients:
        clients.wait_until_held()
        for _ in range(4):
            with controlled(spawner, scene.director, pin_root, DEFAULTS, SIZES) as controller:
                controller.change_without_end(steps)
                time.sleep(chance.uniform(0.1, 0.4))
                controller.kill()
            with reopen(scene, pin_root) as balancer:
                assert list_of(balancer) in [sorted(step, key=str) for step in steps]
                assert not balancer.drift(), str(balancer.drift())
                balancer.keep()
        result = clients.end()
        reopen(scene, pin_root).close()
    assert (result.held, result.failed) == (60, [])


def list_of(balancer: LoadBalancer) -> list[Service]:
    return sorted(balancer.services.values(), key=str)


# ---------------------------------------------------------------------- what goes on


@HOOKS
def test_keep_and_open(scene: Scene, pin_root: Path, config: LoadBalancerConfig) -> None:
    """Services, quarantine, numbers, counts and connections are as they were; so are settings."""
    with make(scene, pin_root, config=config) as first:
        first.apply([web(4), web(6)])
        first.quarantine(at_80(1))
        assert scene.who(4, 20).keys() == {"b2", "b3"}
        hook, counts = first.hook, first.service_counts()
        numbers = dict(first._held.table.backends)
        clients = {one.client for one in first.connections()}
        first.keep()
    with pytest.raises(errors.ClosedError):
        first.keep()
    assert scene.who(4, 20).keys() == {"b2", "b3"}
    with reopen(scene, pin_root) as second:
        assert (second.config, second.hook, second.device) == (config, hook, "eth0")
        assert list(second.services.values()) == [web(4), web(6)]
        assert dict(second._held.table.backends) == numbers
        key = web(4).key
        assert second.service_counts()[key].packets >= counts[key].packets + 60
        known = {one.client for one in second.connections()}
        assert clients < known and len(known) >= 40  # some of an earlier test may still be closing
        assert scene.who(4, 20).keys() == {"b2", "b3"}
        second.restore(at_80(1))
        assert scene.who(4, 30).keys() == {"b1", "b2", "b3"}
        second.delete("default/web-4")
        second.upsert(Service("new", ["203.0.113.10:80"], [at_80(3)]))
        assert second.service_counts()[web(6).key].packets == 0
        assert scene.who(4, 5).keys() == {"b3"}
        assert not second.drift()
    assert scene.director.call(lambda: attached_xdp("eth0")) == {}


def at_80(number: int) -> str:
    return f"{backend_address(number, 4)}:80"


def test_the_constructor_takes_over_too(scene: Scene, pin_root: Path) -> None:
    """As `open` does, with the settings that it is given."""
    with make(scene, pin_root) as first:
        first.apply([web(4)])
        first.keep()
    with make(scene, pin_root) as second:
        assert list(second.services.values()) == [web(4)]


def test_other_settings(scene: Scene, pin_root: Path) -> None:
    """Another table size or seed is another table; connections that are known stay."""
    with make(scene, pin_root) as first:
        first.apply([web(4)])
        before = {port: scene.ask(4, source=port).split()[0] for port in range(21000, 21020)}
        first.keep()
    config = evolve(DEFAULTS, table_size=65521, hash_seed="AAECAwQFBgcICQoL")
    with reopen(scene, pin_root, config=config) as second:
        assert second.config == config
        assert not second.drift()
        by_port = {one.client.port: str(one.backend.address) for one in second.connections()}
        # another test's client may still be closing
        kept = {port: by_port.get(port) for port in before}
        assert {port: backend_address(int(name[1]), 4) for port, name in before.items()} == kept
        for port in range(22000, 22010):
            placed = second.where(f"198.51.100.7:{port}", "203.0.113.10:80")
            assert placed.backend is not None
            answered = scene.ask(4, source=port).split()[0]
            assert str(placed.backend.address) == backend_address(int(answered[1]), 4)
        second.keep()
    with reopen(scene, pin_root) as third:
        assert third.config == config


def test_a_start_that_was_cut_short(scene: Scene, pin_root: Path) -> None:
    """Maps without anything that says how they were made are made anew."""
    with make(scene, pin_root) as first:
        assert first._kept is not None
        first._kept._store.delete("settings")
        first.keep()
    with pytest.raises(errors.NotFoundError, match=pin_root.name):
        reopen(scene, pin_root)
    with make(scene, pin_root, sizes=evolve(SIZES, flows=2048)) as second:
        assert second._object.maps["lb_flows"].max_entries == 2048


def test_neighbours_stay_known(scene: Scene, pin_root: Path) -> None:
    """The kernel looks after those that are used, until the balancer is closed."""
    with make(scene, pin_root) as first:
        first.apply([web(4), web(6)])
        used = {scene.ask(v).split()[0] for v in (4, 6) for _ in range(20)}
        assert used == {"b1", "b2", "b3"}
        first.keep()
    backends = {backend_address(n, v) for n in (1, 2, 3) for v in (4, 6)}
    assert managed(scene) >= backends
    with reopen(scene, pin_root):
        assert managed(scene) >= backends
    assert managed(scene) == set()


def managed(scene: Scene) -> set[str]:
    with Netlink(scene.director) as netlink:
        return {str(found.address) for found in netlink.neighbours() if found.managed}


def test_a_backend_with_another_mac_while_nobody_looks(scene: Scene, pin_root: Path) -> None:
    """The kernel notices by itself, though neither its stack nor a process uses the neighbour."""
    soon = {"base_reachable_time_ms": 500, "interval_probe_time_ms": 1000,
            "delay_first_probe_time": 1, "retrans_time_ms": 200}  # fmt: skip
    write_sysctls(scene.director, {f"ipv4/neigh/eth0/{name}": n for name, n in soon.items()})
    with make(scene, pin_root) as balancer:
        balancer.apply([web(4, (1,))])
        assert scene.ask(4)
        balancer.keep()
    with Netlink(scene.backends[0]) as netlink:
        before = netlink.link("eth0").mac
        netlink.set_link("eth0", mac="02:00:00:00:00:77")
        try:
            deadline = time.monotonic() + 20
            while not asks(scene):
                assert time.monotonic() < deadline
        finally:
            netlink.set_link("eth0", mac=before)
            with Netlink(scene.director) as at_director:
                at_director.delete_neighbour("eth0", backend_address(1, 4))
    reopen(scene, pin_root).close()


def asks(scene: Scene) -> bool:
    with contextlib.suppress(OSError):
        return bool(scene.ask(4))
    return False


# ---------------------------------------------------------------------- drift


def delete_entry(maps: Any) -> None:
    maps["lb_services"].delete(next(iter(maps["lb_services"])))


def change_slots(maps: Any) -> None:
    maps["lb_slots"].update(3, {"backend": [7] * 16})


def delete_member(maps: Any) -> None:
    maps["lb_members"].delete(next(iter(maps["lb_members"])))


def kill_backend(maps: Any) -> None:
    row = maps["lb_backends"].lookup(1)._asdict()
    maps["lb_backends"].update(1, {**row, "revision": row["revision"] + 1})


def clear_filter(maps: Any) -> None:
    for cell, word in list(maps["lb_filter"].items()):
        if word:
            maps["lb_filter"].update(cell, 0)


def open_range(maps: Any) -> None:
    maps["lb_ranges"].clear()


def add_entry(maps: Any) -> None:
    key, value = next(iter(maps["lb_services"].items()))
    maps["lb_services"].update({**key._asdict(), "port": 4711}, value)


DRIFT: dict[str, tuple[Callable[[Any], None], str]] = {
    "entry": (delete_entry, "is missing"),
    "slots": (change_slots, "name other backends"),
    "member": (delete_member, "backends of services.*is missing"),
    "backend": (kill_backend, "backends: 1 is .*revision 2"),
    "filter": (clear_filter, "filter: cell"),
    "range": (open_range, "source ranges.*198.51.100.0.*is missing"),
    "stray": (add_entry, "port 4711.*should not be there"),
}


DRIFTING = [web(4, source_ranges=["198.51.100.0/24"]), web(6, algorithm="random")]


@pytest.mark.parametrize(("break_it", "said"), DRIFT.values(), ids=DRIFT)
def test_drift(scene: Scene, pin_root: Path, break_it: Callable[[Any], None], said: str) -> None:
    """Whatever somebody else wrote is told in words, and mended; connections stay."""
    with make(scene, pin_root) as balancer, contextlib.ExitStack() as stack:
        balancer.apply(DRIFTING)
        tcp = stack.enter_context(scene.client.socket(socket.AF_INET, socket.SOCK_STREAM))
        tcp.settimeout(3)
        tcp.connect((VIP[4], 80))
        home = exchange(tcp)
        assert not balancer.drift()
        break_it(balancer._held.maps)
        drift = balancer.drift()
        assert re.search(said, str(drift)), str(drift)
        assert balancer.mend() == drift
        assert not balancer.drift(), str(balancer.drift())
        assert exchange(tcp) == home
        assert scene.ask(4) and scene.ask(6)
        balancer.apply([])
        assert not balancer.drift(), str(balancer.drift())


def test_drift_is_mended_by_the_next(scene: Scene, pin_root: Path) -> None:
    """All of it at once."""
    with make(scene, pin_root) as balancer:
        balancer.apply(DRIFTING)
        for break_it, _ in DRIFT.values():
            break_it(balancer._held.maps)
        assert len(balancer.drift().differences) >= len(DRIFT)
        balancer.keep()
    with reopen(scene, pin_root) as balancer:
        assert not balancer.drift(), str(balancer.drift())
        assert scene.ask(4) and scene.ask(6)


# ---------------------------------------------------------------------- what cannot be opened


def test_nothing_to_keep_by(scene: Scene) -> None:
    """Without a pin root it says so, and goes on."""
    with scene.director.call(lambda: LoadBalancer("eth0", sizes=SIZES)) as balancer:
        with pytest.raises(errors.StateError, match="pin_root"):
            balancer.keep()
        balancer.apply([web(4)])


def test_nothing_is_pinned(scene: Scene, pin_root: Path, tmp_path: Path) -> None:
    """`open` makes nothing; a root that is no BPF file system's is refused."""
    with pytest.raises(errors.NotFoundError, match=pin_root.name):
        reopen(scene, pin_root)
    with pytest.raises(errors.InvalidError, match="BPF file system"):
        make(scene, tmp_path / "root")
    assert not (tmp_path / "root").exists()


def test_a_start_that_fails_leaves_nothing(scene: Scene, pin_root: Path) -> None:
    """No pin, no state."""
    for device, error in (("lo", errors.FeatureError), ("none0", errors.DeviceError)):
        with pytest.raises(error):
            scene.director.call(lambda d=device: LoadBalancer(d, pin_root=pin_root))
        assert not pin_root.exists()


def test_locked(scene: Scene, pin_root: Path) -> None:
    """One owner at a time; the second leaves the first as it is."""
    with make(scene, pin_root) as balancer:
        balancer.apply([web(4)])
        for second in (make, reopen):
            with pytest.raises(errors.LockedError, match=pin_root.name):
                second(scene, pin_root)
        assert not balancer.drift()
        assert scene.ask(4)


def in_client(scene: Scene, pin_root: Path) -> None:
    scene.client.call(lambda: LoadBalancer.open(pin_root))


def other_device(scene: Scene, pin_root: Path) -> None:
    scene.director.call(lambda: LoadBalancer("lo", pin_root=pin_root, sizes=SIZES))


def at_tc(scene: Scene, pin_root: Path) -> None:
    reopen(scene, pin_root, config=AT_TC)


def other_sizes(scene: Scene, pin_root: Path) -> None:
    reopen(scene, pin_root, sizes=evolve(SIZES, flows=8192))


def without_forwarding(scene: Scene, pin_root: Path) -> None:
    write_sysctls(scene.director, {"ipv4/conf/eth0/forwarding": 0})
    try:
        reopen(scene, pin_root)
    finally:
        write_sysctls(scene.director, {"ipv4/conf/eth0/forwarding": 1})


def as_datapath(scene: Scene, pin_root: Path) -> None:
    Datapath.open(pin_root)


REFUSED: dict[str, tuple[Callable[[Scene, Path], None], type[Exception], str]] = {
    "another namespace": (in_client, errors.StateError, "namespace"),
    "another device": (other_device, errors.StateError, "of eth0, not of lo"),
    "another hook": (at_tc, errors.StateError, "native"),
    "other sizes": (other_sizes, errors.MismatchError, "lb_flows"),
    "no forwarding": (without_forwarding, errors.ServiceError, "sysctl -w"),
    "another class": (as_datapath, errors.LayoutError, "loadbalancer-v1"),
}


@pytest.mark.parametrize(("attempt", "error", "said"), REFUSED.values(), ids=REFUSED)
def test_refused(
    scene: Scene,
    pin_root: Path,
    attempt: Callable[[Scene, Path], None],
    error: type[Exception],
    said: str,
) -> None:
    """A typed error; what is kept stays as it is, goes on, and can be opened."""
    with make(scene, pin_root) as balancer:
        balancer.apply([web(4)])
        before = scene.director.call(lambda: attached_xdp("eth0"))
        balancer.keep()
    pinned = sorted(pin_root.rglob("*"))
    with pytest.raises(error, match=said):
        attempt(scene, pin_root)
    assert sorted(pin_root.rglob("*")) == pinned
    assert scene.director.call(lambda: attached_xdp("eth0")) == before
    assert scene.ask(4)
    with reopen(scene, pin_root) as again:
        assert not again.drift()
        assert again.config == DEFAULTS


@HOOKS
def test_a_device_that_went(tmp_path: Path, pin_root: Path, config: LoadBalancerConfig) -> None:
    """Made anew under its name it gets the program again; without it, that is told."""
    with contextlib.ExitStack() as stack:
        netns = stack.enter_context(NetNS.create(f"pclG{os.getpid()}-{next(_serial)}"))
        stack.callback(netns.delete)
        netlink = stack.enter_context(Netlink(netns))

        def add_device() -> None:
            netlink.add_veth("eth0", "wire")
            netlink.add_address("eth0", "192.0.2.1/24")
            write_sysctls(netns, {"ipv4/conf/eth0/forwarding": 1})

        add_device()
        service = Service("web", ["203.0.113.10:80"], [Backend("192.0.2.7", 80)])
        with netns.call(
            lambda: LoadBalancer("eth0", config=config, sizes=SIZES, pin_root=pin_root)
        ) as first:
            first.upsert(service)
            netlink.delete_link("eth0")
            assert "the program is not there" in str(first.drift())
            first.keep()
        with pytest.raises(errors.DeviceError, match="eth0"):
            netns.call(lambda: LoadBalancer.open(pin_root))
        add_device()
        with netns.call(lambda: LoadBalancer.open(pin_root)) as second:
            assert list(second.services.values()) == [service]
            assert not second.drift()
