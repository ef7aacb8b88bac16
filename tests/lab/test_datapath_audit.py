"""An audit on the wire: what policy denies passes, and is told; policy is learnt from it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyciliumlib.datapath import Datapath
from pyciliumlib.flow import Flow, FlowType, Verdict
from pyciliumlib.lab import Lab
from pyciliumlib.policy import PolicySettings
from tests.lab import scenes
from tests.lab.scenes import OPEN, POLICY, VERSIONS, Scene, apps, at, ports

ONLY_WEB = scenes.policy(
    "api", {"app": "api"}, ingress=[{**apps("from", "web"), **ports("80/TCP")}]
)


@pytest.fixture(scope="module")
def shared() -> Iterator[Scene]:
    with Lab() as lab, scenes.scene(lab) as made:
        yield made


@pytest.fixture
def scene(shared: Scene) -> Iterator[Scene]:
    yield shared
    shared.dp.endpoints.audit("api", False)
    shared.no_policy()


def audited(scene: Scene) -> list[Flow]:
    """Flows so far that only the audit let pass."""
    return [flow for flow in scene.dp.flows() if flow.verdict is Verdict.AUDIT]


@VERSIONS
@pytest.mark.smoke
def test_an_audited_endpoint(scene: Scene, version: int) -> None:
    """What it denies passes with a verdict of its own; with the audit's end it is denied again."""
    dp = scene.dp
    dp.policy.apply(ONLY_WEB)
    assert scene.verdict("db", "api", "80/TCP", version) == POLICY
    assert dp.endpoints.audit("api").audit and dp.endpoints["api"].audit
    scene.drain()
    assert scene.db.connect(at(scene.api, version), "80/TCP").ok
    (told,) = audited(scene)
    assert told.type is FlowType.VERDICT and not told.dropped
    assert (told.dport, told.dst) == (80, at(scene.api, version))
    assert scene.web.connect(at(scene.api, version), "80/TCP").ok
    assert not audited(scene)
    said = dp.policy.explain("db", "api", "80/TCP")
    assert said.ingress is not None and said.ingress.audited
    with scenes.tcp_pair(scene.db, scene.api, version, 81 + 1) as (near, far):
        assert scenes.arrives(near, far)
        dp.endpoints.audit("api", False)
        assert not scenes.arrives(near, far)
    assert scene.verdict("db", "api", "80/TCP", version) == POLICY
    assert scene.verdict("web", "api", "80/TCP", version) == OPEN
    assert not dp.drift()


@VERSIONS
def test_policy_is_learnt_from_an_audit(scene: Scene, version: int) -> None:
    """What passed for the audit is what the suggested rules allow without one."""
    dp = scene.dp
    dp.policy.apply(scenes.policy("api", {"app": "api"}, ingress=[{}]))
    dp.endpoints.audit("api")
    scene.drain()
    assert scene.db.connect(at(scene.api, version), "53/UDP").ok
    dp.policy.apply(dp.policy.repository.suggest(audited(scene)).documents)
    dp.endpoints.audit("api", False)
    assert scene.verdict("db", "api", "53/UDP", version) == OPEN
    assert scene.verdict("db", "api", "80/TCP", version) == POLICY


@VERSIONS
def test_the_whole_node_is_audited(version: int) -> None:
    """The setting audits every endpoint, both ways."""
    with Lab() as lab, scenes.scene(lab, policy=PolicySettings(audit=True)) as scene:
        scene.dp.policy.apply(scenes.policy("closed", {}, ingress=[{}], egress=[{}]))
        for ends in (("web", "api"), ("world", "web"), ("web", "world")):
            assert scene.verdict(*ends, "80/TCP", version) == OPEN
        # pod to pod is denied twice
        assert len(audited(scene)) == 1
        assert scene.verdict("web", "api", "81/TCP", version) == OPEN
        assert [flow.direction.name for flow in audited(scene)] == ["EGRESS", "INGRESS"]


def test_an_audit_outlives_the_process() -> None:
    """It is part of what the next process finds."""
    root = Path(f"/sys/fs/bpf/pcl-audit-{os.getpid()}")
    with Lab() as lab:
        node = lab.node()
        web, api = node.pod("web"), node.pod("api")
        api.serve("80/TCP")
        with Datapath(node, pin_root=root) as dp:
            dp.add_endpoint("web", {"app": "web"}, pod=web)
            dp.add_endpoint("api", {"app": "api"}, pod=api, audit=True)
            dp.policy.apply(scenes.policy("closed", {}, ingress=[{}]))
            dp.keep()
        assert web.connect(api.ip4, "80/TCP").ok
        with Datapath.open(root, node) as dp:
            assert dp.endpoints["api"].audit and not dp.endpoints["web"].audit
            assert not dp.drift(), str(dp.drift())
            assert web.connect(api.ip4, "80/TCP").ok
            dp.endpoints.audit("api", False)
            assert not web.connect(api.ip4, "80/TCP", timeout=scenes.SILENCE).ok
