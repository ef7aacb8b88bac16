"""The flow table over real connections: what is there, in whose direction, and for how long."""

from __future__ import annotations

import errno
import time
from collections.abc import Iterator

import pytest

from pyciliumlib.conntrack import FlowEntry, FlowKey
from pyciliumlib.datapath import DatapathConfig
from pyciliumlib.errors import KernelError
from pyciliumlib.lab import ConnectResult, Lab
from pyciliumlib.types import Protocol
from tests.lab import scenes
from tests.lab.scenes import VERSIONS, Scene, at

#: Seconds by which the clock that is read here may be behind the programs' (a tick of 100 Hz).
TICK = 0.01

CONFIG = DatapathConfig(timeout_tcp_fin=3, timeout_any=2, timeout_tcp_syn=3, flows=1024)


@pytest.fixture(scope="module")
def shared() -> Iterator[Scene]:
    with Lab() as lab, scenes.scene(lab, config=CONFIG) as made:
        yield made


@pytest.fixture
def scene(shared: Scene) -> Iterator[Scene]:
    shared.dp.conntrack.flush()
    yield shared
    shared.no_policy()


def entries(scene: Scene, protocol: Protocol) -> list[FlowEntry]:
    return [entry for entry in scene.dp.conntrack if entry.protocol == protocol]


@VERSIONS
@pytest.mark.smoke
def test_a_connection_is_one_entry(scene: Scene, version: int) -> None:
    """Seen from who opened it, whatever the order of the addresses, with both sides counted."""
    for client, server in ((scene.web, scene.api), (scene.api, scene.web)):
        scene.dp.conntrack.flush()
        with scenes.tcp_pair(client, server, version) as (near, far):
            assert scenes.arrives(near, far) and scenes.arrives(far, near)
            (entry,) = entries(scene, Protocol.TCP)
            port = near.getsockname()[1]
            assert (entry.src, entry.sport) == (at(client, version), port)
            assert (entry.dst, entry.dport) == (at(server, version), 8000)
            ids = [scene.dp.endpoints[host.name].identity for host in (client, server)]
            assert [entry.src_identity, entry.dst_identity] == ids
            assert entry.replied and not entry.closing
            assert min(entry.packets) >= 2 and min(entry.bytes) > 100
            assert 7990 < entry.expires_in <= 8005 + TICK
            key = FlowKey.of(entry.dst, entry.src, entry.dport, entry.sport, Protocol.TCP)
            assert scene.dp.conntrack.get(key) == entry or scene.dp.conntrack.get(key)


@VERSIONS
def test_counters_are_exact(scene: Scene, version: int) -> None:
    """One packet there, one back: as many bytes as the frames have."""
    header = 14 + (20 if version == 4 else 40) + 8
    with scene.web.dial(at(scene.api, version), "53/UDP") as connection:
        for number in range(1, 6):
            assert connection.exchange(bytes(100)).reply == b"api\n"
            (entry,) = entries(scene, Protocol.UDP)
            assert entry.packets == (number, number)
            assert entry.bytes == (number * (header + 100), number * (header + 4))


@VERSIONS
def test_a_flow_without_an_answer_is_pending(scene: Scene, version: int) -> None:
    """Not replied to, it lives in the small table, and dies there."""
    with scene.web.dial(at(scene.world, version), "53/UDP") as connection:
        assert connection.exchange().ok
    with scene.api.serve("99/UDP", reply=lambda _: None):
        assert not scene.web.connect(at(scene.api, version), "99/UDP", timeout=0.05)
        seen = {entry.dport: entry.replied for entry in entries(scene, Protocol.UDP)}
        assert seen == {53: True, 99: False}


@VERSIONS
def test_the_end_of_a_connection(scene: Scene, version: int) -> None:
    """Closed by both it is kept a moment, then gone; then it can be collected."""

    def kept() -> list[FlowEntry]:
        # the stacks may still say something of the other family's connections
        return [entry for entry in entries(scene, Protocol.TCP) if entry.src.version == version]

    assert scene.web.connect(at(scene.api, version), "80/TCP", source_port=45678).ok
    assert scenes.eventually(lambda: [entry.closing for entry in kept()] == [True])
    (entry,) = kept()
    assert entry.expires_in <= 3.0
    assert scenes.eventually(lambda: not kept(), timeout=6)
    assert scene.dp.conntrack.collect() >= 1
    assert scene.dp.conntrack.collect() == 0
    assert scene.web.connect(at(scene.api, version), "80/TCP", source_port=45678).ok


@VERSIONS
def test_a_port_that_is_used_again(scene: Scene, version: int) -> None:
    """A connection from the port of one that just ended starts anew, with its own verdict."""

    def connect(timeout: float = 1.0) -> ConnectResult:
        while True:
            try:
                return scene.web.connect(
                    at(scene.api, version), "80/TCP", source_port=45679, timeout=timeout
                )
            except KernelError as error:  # the server has not ended the one before yet
                assert error.errno == errno.EADDRNOTAVAIL

    assert all(connect().ok for _ in range(3))
    scene.dp.policy.apply(
        scenes.policy("api", {"app": "api"}, ingress=[scenes.apps("from", "nobody")])
    )
    assert connect(scenes.SILENCE).error == "timeout"


@VERSIONS
def test_an_idle_flow_ends_and_is_opened_again(scene: Scene, version: int) -> None:
    """After its time it is not used any more: the next packet is decided as a first one."""
    with scene.web.dial(at(scene.api, version), "53/UDP") as connection:
        assert connection.exchange().ok
        time.sleep(2.4)  # a flow may live an eighth of its timeout longer
        assert not entries(scene, Protocol.UDP)
        scene.drain()
        assert connection.exchange().ok
        assert [flow.is_new for flow in scene.dp.flows() if not flow.is_reply][-1]
        (entry,) = entries(scene, Protocol.UDP)
        assert entry.packets == (1, 1)


@VERSIONS
def test_flush(scene: Scene, version: int) -> None:
    """A connection goes on over a flush: its next packet is decided afresh."""
    with scenes.tcp_pair(scene.web, scene.api, version) as (near, far):
        assert scenes.arrives(near, far) and scene.dp.conntrack.flush() >= 1
        assert not entries(scene, Protocol.TCP)
        assert scenes.arrives(near, far) and scenes.arrives(far, near)
        assert len(entries(scene, Protocol.TCP)) == 1
