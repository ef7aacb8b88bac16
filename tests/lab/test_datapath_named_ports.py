"""Ports of peers by name: each pod says which port a name is, and policies follow."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pyciliumlib.datapath import Datapath
from pyciliumlib.lab import Lab, Node, Pod
from tests.lab import scenes
from tests.lab.scenes import DENY, OPEN, POLICY, VERSIONS, Scene, arrives

TO_WEB = scenes.policy("out", {"app": "client"}, egress=[
    {**scenes.apps("to", "web"), **scenes.ports("http/TCP")},
])  # fmt: skip
NOT_TO_WEB = scenes.policy(
    "out",
    {"app": "client"},
    egress=[scenes.apps("to", "web")],
    egressDeny=[{**scenes.apps("to", "web"), **scenes.ports("http/TCP")}],
)


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    """A client, and two pods of one identity whose `http` is another port."""
    with Lab() as lab:
        node = lab.node()
        world = lab.outside("world", of=node)
        with Datapath(node) as dp:
            pods = [_pod(node, dp, "client", "client", None)]
            pods += [_pod(node, dp, f"web{n}", "web", f"808{n}/TCP") for n in (1, 2)]
            for pod in pods[1:]:
                for port in ("8081/TCP", "8082/TCP", "8083/TCP"):
                    pod.serve(port)
            yield Scene(lab, node, dp, *pods, world)


def _pod(node: Node, dp: Datapath, name: str, app: str, http: str | None) -> Pod:
    pod = node.pod(name)
    dp.add_endpoint(name, {"app": app}, pod=pod, ports={"http": http} if http else None)
    return pod


def seen(scene: Scene, version: int, *ports: int) -> list[int]:
    """What becomes of connections to these ports of web1."""
    return [scene.verdict("client", "web1", f"{port}/TCP", version) for port in ports]


@VERSIONS
def test_a_name_is_every_port_that_a_pod_of_the_identity_gives(scene: Scene, version: int) -> None:
    """Policies know identities and not pods, so the numbers of all of them are meant."""
    scene.dp.policy.apply(TO_WEB)
    assert seen(scene, version, 8081, 8082, 8083) == [OPEN, OPEN, POLICY]
    scene.dp.policy.apply(NOT_TO_WEB)
    assert seen(scene, version, 8081, 8082, 8083) == [DENY, DENY, OPEN]
    assert not scene.dp.drift()


@VERSIONS
def test_policies_follow_pods_that_come_and_go(scene: Scene, version: int) -> None:
    """A new pod's number is added, also to denials under a connection; it goes with the pod."""
    dp = scene.dp
    dp.policy.apply(NOT_TO_WEB)
    with scenes.tcp_pair(scene.web, scene.api, version, 8000) as (near, far):
        assert arrives(near, far)
        more = _pod(scene.node, dp, f"more{version}", "web", "8000/TCP")
        assert not arrives(near, far)
        dp.remove_endpoint(f"more{version}")
        more.close()  # so that nothing of it is dropped below
        assert scenes.comes(far, 3.0)
    assert seen(scene, version, 8081, 8083) == [DENY, OPEN]
    assert not dp.drift()


@VERSIONS
def test_a_pod_that_is_relabelled_takes_its_names_along(scene: Scene, version: int) -> None:
    """Its numbers are no longer those of its old identity, and are again when it is back."""
    scene.dp.policy.apply(TO_WEB)
    scene.dp.endpoints.relabel("web2", {"app": "other"})
    assert seen(scene, version, 8081, 8082) == [OPEN, POLICY]
    scene.dp.endpoints.relabel("web2", {"app": "web"})
    assert seen(scene, version, 8081, 8082) == [OPEN, OPEN]
    assert not scene.dp.drift()


def test_the_next_process_knows_the_names(tmp_path: Path) -> None:
    """A takeover finds the tries as they should be, names included, and replaces none of them."""
    root = Path("/sys/fs/bpf") / tmp_path.name
    with Lab() as lab:
        node = lab.node()
        with Datapath(node, pin_root=root) as dp:
            client, web = (
                _pod(node, dp, name, name, http)
                for name, http in (("client", None), ("web", "80/TCP"))
            )
            dp.policy.apply(TO_WEB)
            web.serve("80/TCP")
            before = dp.policy.repository.policy(dp.endpoints["client"].id).entries()
            replaced = dp.policy._tries.generation
            dp.keep()
        with Datapath.open(root, node) as dp:
            assert dp.policy._tries.generation == replaced
            after = dp.policy.repository.policy(dp.endpoints["client"].id).entries()
            assert {row[:2] for row in before.rows()} == {row[:2] for row in after.rows()}
            assert client.connect(web.ip4, "80/TCP").ok
            assert not dp.drift()
