"""DSR over time: backends that change, directors that follow one another, sides that end."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pyciliumlib import errors
from pyciliumlib.flow import DropReason
from pyciliumlib.kernel.tc import attached_tc
from pyciliumlib.kernel.xdp import attached_xdp
from pyciliumlib.loadbalancer.program import DSRBackend
from pyciliumlib.loadbalancer.program.loading import Hook
from pyciliumlib.net import Netlink, NetNS
from tests.lab import balancer_scene
from tests.lab.balancer_scene import DIRECTOR, VIP, Scene, exchange
from tests.lab.test_dsr import AT, TELLING, VERSIONS, Sides, web
from tests.lab.test_load_balancer import wait_for

HOOKS = pytest.mark.parametrize("hook", [Hook.NATIVE, Hook.TC], ids=str)
_serial = itertools.count()


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with balancer_scene.scene(tmp_path_factory.mktemp("life")) as made:
        yield made


@pytest.fixture
def sides(scene: Scene, hook: Hook) -> Iterator[Sides]:
    """The backends' sides but that of the first, which is the test's own."""
    with contextlib.ExitStack() as stack:
        made = [
            stack.enter_context(netns.call(lambda: DSRBackend("eth0", VIP.values(),
                                                              acceleration=AT[hook])))
            for netns in scene.backends[1:]
        ]  # fmt: skip
        yield Sides(scene, hook, tuple(made))


@pytest.fixture
def pin_root() -> Path:
    return Path(f"/sys/fs/bpf/pcl-dsr-{os.getpid()}-{next(_serial)}")


def side(scene: Scene, hook: Hook, **options: Any) -> DSRBackend:
    """That of the first backend."""
    made = scene.backends[0].call(
        lambda: DSRBackend("eth0", VIP.values(), acceleration=AT[hook], **options)
    )
    assert made.hook is hook
    return made


def connect(scene: Scene, version: int, patience: float = 3.0) -> socket.socket:
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    tcp = scene.client.socket(family, socket.SOCK_STREAM)
    try:
        tcp.settimeout(patience)
        tcp.connect((VIP[version], 80))
    except OSError:
        tcp.close()
        raise
    return tcp


# ---------------------------------------------------------------------- connections


@HOOKS
@TELLING
@VERSIONS
def test_backends_come_and_go(sides: Sides, dispatch: str, version: int, hook: Hook) -> None:
    """A connection stays where it is, though its backend heard of the service but once."""
    scene = sides.scene
    with side(scene, hook), sides.balancing(dispatch) as there:
        there.serve(web(version, dispatch, (1,)))
        with connect(scene, version) as tcp:
            assert exchange(tcp) == "b1"
            for numbers in [(1, 2), (1, 3), (1, 2, 3), (1,)] * 10:
                there.balancer.upsert(web(version, dispatch, numbers))
                assert exchange(tcp) == "b1"
            assert len(list(there.balancer.connections())) == 1


@HOOKS
@TELLING
@VERSIONS
def test_another_director(sides: Sides, dispatch: str, version: int, hook: Hook) -> None:
    """One that knows no flow goes on with them: both choose alike, and the backend remembers."""
    scene = sides.scene
    with side(scene, hook), contextlib.ExitStack() as stack:
        with sides.balancing(dispatch) as there:
            there.serve(web(version, dispatch))
            open_ones = [stack.enter_context(connect(scene, version)) for _ in range(24)]
            homes = [exchange(tcp) for tcp in open_ones]
        assert set(homes) == {"b1", "b2", "b3"}
        with sides.balancing(dispatch) as there:
            there.serve(web(version, dispatch))
            assert [exchange(tcp) for tcp in open_ones] == homes


# ---------------------------------------------------------------------- the backend's side ends


@HOOKS
@TELLING
@VERSIONS
def test_what_is_forgotten(sides: Sides, dispatch: str, version: int, hook: Hook) -> None:
    """Answers of connections from before do not reach their clients; new ones are served."""
    scene = sides.scene
    with sides.balancing(dispatch) as there:
        there.serve(web(version, dispatch, (1,)))
        with side(scene, hook):
            tcp = connect(scene, version)
            assert exchange(tcp) == "b1"
        with side(scene, hook), tcp:
            tcp.settimeout(1)
            with pytest.raises(OSError):
                exchange(tcp)
            assert scene.ask(version).startswith("b1")


@HOOKS
@TELLING
@VERSIONS
def test_kept(sides: Sides, dispatch: str, version: int, hook: Hook, pin_root: Path) -> None:
    """Nothing is forgotten where all is pinned: whoever goes on with it, and while nobody does."""
    scene = sides.scene
    with sides.balancing(dispatch) as there:
        there.serve(web(version, dispatch, (1,)))
        side(scene, hook, pin_root=pin_root).keep()
        with connect(scene, version) as tcp:
            assert exchange(tcp) == "b1"
            before = side(scene, hook, pin_root=pin_root)
            taken = before.metrics().packets()
            assert taken > 1
            assert exchange(tcp) == "b1"
            before.keep()
            assert exchange(tcp) == "b1"
            with side(scene, hook, pin_root=pin_root) as after:
                assert exchange(tcp) == "b1"
                assert after.metrics().packets() > taken
    assert not pin_root.exists()
    assert_nothing_left(scene.backends[0])


def assert_nothing_left(netns: NetNS) -> None:
    """No program at the device, no service's address at the loopback device."""
    assert netns.call(lambda: attached_xdp("eth0")) == {}
    for direction in ("ingress", "egress"):
        assert netns.call(lambda direction=direction: attached_tc("eth0", direction)) == []
    assert loopback(netns).isdisjoint(VIP.values())


def loopback(netns: NetNS) -> set[str]:
    with Netlink(netns) as netlink:
        return {str(interface.ip) for interface in netlink.addresses("lo")}


CONTROLLER = """
import sys, time
from pyciliumlib.loadbalancer.program import DSRBackend
DSRBackend("eth0", sys.argv[3:], acceleration=sys.argv[1], pin_root=sys.argv[2])
print("ready", flush=True)
time.sleep(60)
"""


@HOOKS
def test_killed(sides: Sides, hook: Hook, pin_root: Path) -> None:
    """The process is killed while clients talk; not one exchange fails, then or afterwards."""
    scene, version = sides.scene, 4
    command = [sys.executable, "-c", CONTROLLER, AT[hook], str(pin_root), *VIP.values()]
    with sides.balancing("opt") as there:
        there.serve(web(version, "opt", (1,)))
        killed = scene.backends[0].call(lambda: subprocess.Popen(command, stdout=subprocess.PIPE))
        assert killed.stdout is not None
        with killed.stdout as said:
            assert said.readline() == b"ready\n"
        talk = Talk(scene, version)
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        talk.goes_on()
        with side(scene, hook, pin_root=pin_root):
            talk.goes_on()
            talk.end()
    assert_nothing_left(scene.backends[0])


class Talk:
    """Clients that go on asking: by a connection that is open, and by new ones."""

    def __init__(self, scene: Scene, version: int) -> None:
        self._scene, self._version = scene, version
        self._ending = threading.Event()
        self._count = [0, 0]
        self._failed: list[BaseException] = []
        self._threads = [threading.Thread(target=self._run, args=(n,)) for n in (0, 1)]
        for thread in self._threads:
            thread.start()
        self.goes_on()

    def _run(self, number: int) -> None:
        try:
            with connect(self._scene, self._version) as tcp:
                while not self._ending.is_set():
                    if number == 0:
                        assert exchange(tcp) == "b1"
                    else:
                        assert self._scene.ask(self._version).startswith("b1")
                    self._count[number] += 1
        except (OSError, AssertionError) as error:
            self._failed.append(error)

    def goes_on(self) -> None:
        """Wait until both have asked a few times more."""
        wanted = [count + 20 for count in self._count]
        wait_for(
            lambda: (
                bool(self._failed) or all(a >= b for a, b in zip(self._count, wanted, strict=True))
            )
        )
        assert self._failed == []

    def end(self) -> None:
        self._ending.set()
        for thread in self._threads:
            thread.join()
        assert self._failed == []


# ---------------------------------------------------------------------- addresses, refusals


def test_addresses_on_the_loopback_device(scene: Scene, pin_root: Path) -> None:
    """Put on and taken off, also by another process than the one that put them on."""
    netns = scene.backends[0]
    with Netlink(netns) as netlink:
        netlink.add_address("lo", f"{VIP[4]}/32")
    try:
        options = {"acceleration": "disabled", "pin_root": pin_root}
        netns.call(lambda: DSRBackend("eth0", [VIP[4], "203.0.113.77"], **options)).keep()
        assert {VIP[4], "203.0.113.77"} <= loopback(netns)
        netns.call(lambda: DSRBackend("eth0", [VIP[4], "203.0.113.78"], **options)).keep()
        assert "203.0.113.77" not in loopback(netns)
        netns.call(lambda: DSRBackend("eth0", [VIP[4], "203.0.113.78"], **options)).close()
        assert "203.0.113.78" not in loopback(netns)
        assert VIP[4] in loopback(netns)
    finally:
        with Netlink(netns) as netlink:
            netlink.delete_address("lo", f"{VIP[4]}/32")
    options = {"acceleration": "disabled", "on_loopback": False}
    with netns.call(lambda: DSRBackend("eth0", VIP.values(), **options)):
        assert loopback(netns).isdisjoint(VIP.values())


BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "no such device": ({"device": "none0"}, errors.DeviceError, "none0"),
    "no XDP in the driver": ({"device": "lo"}, errors.FeatureError, "generic"),
    "a text": ({"addresses": "203.0.113.10"}, errors.InvalidError, "write a list"),
    "no address": ({"addresses": ["web"]}, errors.UnitError, "web"),
    "a port": ({"geneve_port": 70000}, errors.InvalidError, "geneve_port"),
    "flows": ({"flows": 0}, errors.InvalidError, "flows"),
    "acceleration": ({"acceleration": "fast"}, errors.InvalidError, "best-effort"),
}


@pytest.mark.parametrize(("options", "error", "said"), BAD.values(), ids=BAD)
def test_refused(scene: Scene, options: dict[str, Any], error: type[Exception], said: str) -> None:
    """A typed error, and nothing is left behind."""
    arguments = {"device": "eth0", "addresses": VIP.values(), **options}
    with pytest.raises(error, match=said):
        scene.backends[0].call(lambda: DSRBackend(**arguments))
    assert_nothing_left(scene.backends[0])


@HOOKS
def test_one_for_a_device(scene: Scene, hook: Hook, pin_root: Path) -> None:
    """The second is refused, and the first goes on; so is one that goes on elsewhere."""
    with side(scene, hook, pin_root=pin_root) as first:
        with pytest.raises(errors.ExistsError):
            side(scene, hook)
        with pytest.raises(errors.LockedError):
            side(scene, hook, pin_root=pin_root)
        assert VIP[4] in loopback(scene.backends[0])
        first.keep()
    other = Hook.TC if hook is Hook.NATIVE else Hook.NATIVE
    with pytest.raises(errors.StateError, match="close it first"):
        side(scene, other, pin_root=pin_root)
    with pytest.raises(errors.MismatchError, match="dsr_flows"):
        side(scene, hook, pin_root=pin_root, flows=4096)
    with pytest.raises(errors.StateError, match="another device"):
        scene.backends[0].call(
            lambda: DSRBackend("lo", VIP.values(), acceleration=AT[hook], pin_root=pin_root)
        )
    side(scene, hook, pin_root=pin_root).close()
    assert_nothing_left(scene.backends[0])


def test_best_effort(scene: Scene) -> None:
    """In the driver where it can, else at tc."""
    for device, hook in (("eth0", Hook.NATIVE), ("lo", Hook.TC)):
        with scene.backends[0].call(
            lambda device=device: DSRBackend(device, VIP.values(), acceleration="best-effort")
        ) as made:
            assert made.hook is hook


@HOOKS
@VERSIONS
def test_directors(sides: Sides, version: int, hook: Hook) -> None:
    """Geneve of a director is taken, of another node not, and an option from nobody."""
    scene = sides.scene
    for dispatch, allowed, answered in (
        ("geneve", DIRECTOR[version], True),
        ("geneve", "192.0.2.77", False),
        ("opt", DIRECTOR[version], False),
    ):
        with side(scene, hook, directors=[allowed]) as made, sides.balancing(dispatch) as there:
            there.serve(web(version, dispatch, (1,)))
            if answered:
                assert scene.ask(version).startswith("b1")
            else:
                with pytest.raises(TimeoutError):
                    connect(scene, version, patience=0.5)
                assert made.metrics().packets(DropReason.INVALID_SOURCE) > 0
