"""The ways that older kernels need, forced on this one: clsact, delivery without redirect_peer."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pyciliumlib.datapath import Datapath, DatapathConfig
from pyciliumlib.lab import Lab
from tests.lab import scenes
from tests.lab.scenes import OPEN, POLICY, VERSIONS, Scene, apps, arrives, comes, ports

MODES: dict[str, dict[str, Any]] = {
    "clsact": {"tc": "clsact"},
    "no-peer": {"redirect_peer": False},
    "clsact-no-peer": {"tc": "clsact", "redirect_peer": False},
}
_serial = itertools.count()


@pytest.fixture(scope="module", params=MODES)
def scene(request: pytest.FixtureRequest) -> Iterator[Scene]:
    with Lab() as lab, scenes.scene(lab, config=DatapathConfig(**MODES[request.param])) as made:
        yield made


@VERSIONS
@pytest.mark.smoke
def test_all_ways(scene: Scene, version: int) -> None:
    """Open, then policed, for every way, protocol and verdict."""
    ways = [("web", "api"), ("web", "node"), ("node", "web"), ("web", "world"), ("world", "web")]
    for way in ways:
        for port in ("80/TCP", "53/UDP", "echo"):
            assert scene.verdict(*way, port, version) == OPEN, (way, port)
    scene.dp.policy.apply(
        scenes.policy("api", {"app": "api"}, ingress=[{**apps("from", "web"), **ports("80/TCP")}])
    )
    assert scene.verdict("web", "api", "80/TCP", version) == OPEN
    assert scene.verdict("web", "api", "81/TCP", version) == POLICY
    assert scene.verdict("db", "api", "80/TCP", version) == POLICY
    assert scene.verdict("world", "api", "80/TCP", version) == POLICY
    scene.no_policy()
    assert not scene.dp.drift()


@VERSIONS
def test_changes_under_a_connection(scene: Scene, version: int) -> None:
    """Withdrawn, removed and back: as with the newest kernel."""
    allow = scenes.policy("api", {"app": "api"}, ingress=[apps("from", "web")])
    nobody = scenes.policy("api", {"app": "api"}, ingress=[apps("from", "nobody")])
    scene.dp.policy.apply(allow)
    with scenes.tcp_pair(scene.web, scene.api, version) as (near, far):
        assert arrives(near, far) and arrives(far, near)
        scene.dp.policy.apply(nobody)
        assert not arrives(far, near) and not arrives(near, far)
        scene.dp.policy.apply(allow)
        assert comes(near, 3.0) and comes(far, 3.0)
        scene.dp.remove_endpoint("web")
        assert not arrives(far, near) and not arrives(near, far)
        scene.dp.add_endpoint("web", {"app": "web"}, pod=scene.web)
        assert comes(near, 5.0) and comes(far, 5.0)
    scene.no_policy()
    assert not scene.dp.drift()


@VERSIONS
def test_a_mark_does_not_open_the_way(scene: Scene, version: int) -> None:
    """A pod's packets carry no mark of ours, whatever the pod sets on its sockets."""
    scene.dp.policy.apply(scenes.policy("api", {"app": "api"}, ingress=[apps("from", "nobody")]))
    family = 2 if version == 4 else 10
    with scene.web.netns.socket(family, 2) as sock, scene.api.netns.socket(family, 2) as receiver:
        receiver.bind((str(scenes.at(scene.api, version)), 4000))
        for mark in range(0, 0x1000, 0x100):
            sock.setsockopt(1, 36, mark)  # SOL_SOCKET, SO_MARK
            sock.sendto(b"x", (str(scenes.at(scene.api, version)), 4000))
        assert not comes(receiver, 0.1)
    scene.no_policy()


@pytest.mark.parametrize("mode", MODES)
def test_kept_and_adopted(mode: str) -> None:
    """Filters are found again after a restart, whatever holds them, and go at the end."""
    root = Path(f"/sys/fs/bpf/pcl-modes-{os.getpid()}-{next(_serial)}")
    config = DatapathConfig(**MODES[mode])
    with Lab() as lab:
        node = lab.node()
        pods = [node.pod(name) for name in ("web", "api")]
        with Datapath(node, pin_root=root, config=config) as dp:
            for pod in pods:
                dp.add_endpoint(pod.name, {"app": pod.name}, pod=pod)
            dp.policy.apply(scenes.policy("api", {"app": "api"}, ingress=[apps("from", "web")]))
            dp.keep()
        with scenes.tcp_pair(*pods, 6) as (near, far):
            assert arrives(near, far)
            with Datapath.open(root, node, config=config) as dp:
                assert not dp.drift(), str(dp.drift())
                assert arrives(near, far)
                dp.endpoints.relabel("web", {"app": "other"})
                assert not arrives(far, near)
        assert not root.exists()
        for pod in pods:
            listed = node.run(["tc", "filter", "show", "dev", pod.host_ifname, "ingress"])
            assert "bpf" not in listed.stdout
