"""The manifests of `examples/policies` against real traffic; zero trust has a demo of its own.

Where there is no proxy, what goes to one is dropped for that reason, so that a request which no
rule was asked about never passes.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from attrs import frozen

from pyciliumlib.datapath import Datapath
from pyciliumlib.flow import DropReason
from pyciliumlib.lab import Lab
from pyciliumlib.policy import BandwidthLimit
from tests.lab.examples import EXAMPLES
from tests.lab.scenes import OPEN, POLICY, VERSIONS, Scene

NO_PROXY = int(DropReason.NO_PROXY)
POLICIES = EXAMPLES / "policies"
#: Pod, namespace, labels, and what it serves beside 80/TCP.
PODS = (
    ("frontend", "production", {"app": "frontend"}, ()),
    ("api-server", "production", {"app": "api-server"}, ("81/TCP",)),
    ("grpc-server", "production", {"app": "grpc-server"}, ("50051/TCP",)),
    ("grpc-client", "production", {"app": "grpc-client"}, ()),
    ("kafka", "streaming", {"app": "kafka"}, ("9092/TCP",)),
    ("producer", "streaming", {"role": "producer"}, ()),
    ("consumer", "streaming", {"role": "consumer"}, ()),
    ("stranger", "streaming", {"app": "frontend"}, ()),
    ("prod-backend", "a", {"env": "production", "team": "backend"}, ()),
    ("prod-db", "b", {"env": "production"}, ("443/TCP", "53/UDP")),
    ("staging-backend", "a", {"env": "staging", "team": "backend"}, ()),
    ("staging-web", "b", {"env": "staging"}, ()),
    ("video", "default", {"app": "video-streaming"}, ()),
)


@frozen
class Expected:
    """What becomes of connections, (from, to, port), while the manifest is in force."""

    manifest: str
    cells: dict[tuple[str, str, str], int]


TABLE = (
    Expected("http.yaml", {
        ("frontend", "api-server", "80/TCP"): NO_PROXY,
        ("frontend", "api-server", "81/TCP"): POLICY,
        ("frontend", "api-server", "echo"): POLICY,
        ("grpc-client", "api-server", "80/TCP"): POLICY,
        ("stranger", "api-server", "80/TCP"): POLICY,  # the same app of another namespace
        ("world", "api-server", "80/TCP"): POLICY,
        ("node", "api-server", "81/TCP"): OPEN,
        ("api-server", "frontend", "80/TCP"): OPEN,
    }),
    Expected("kafka.yaml", {
        ("producer", "kafka", "9092/TCP"): NO_PROXY,
        ("consumer", "kafka", "9092/TCP"): NO_PROXY,
        ("producer", "kafka", "80/TCP"): POLICY,
        ("stranger", "kafka", "9092/TCP"): POLICY,
        ("kafka", "producer", "80/TCP"): OPEN,
    }),
    Expected("identity.yaml", {
        ("prod-backend", "prod-db", "80/TCP"): OPEN,
        ("prod-backend", "prod-db", "53/UDP"): OPEN,
        ("prod-backend", "prod-db", "echo"): OPEN,
        ("staging-backend", "prod-db", "443/TCP"): OPEN,
        ("staging-backend", "prod-db", "80/TCP"): POLICY,
        ("staging-backend", "prod-db", "echo"): POLICY,
        ("staging-web", "prod-db", "443/TCP"): POLICY,
        ("world", "prod-db", "443/TCP"): POLICY,
        ("prod-db", "staging-web", "80/TCP"): OPEN,
    }),
    Expected("bandwidth.yaml", {
        ("video", "frontend", "80/TCP"): OPEN,
        ("video", "world", "80/TCP"): OPEN,
        ("frontend", "video", "80/TCP"): OPEN,
    }),
    Expected("grpc.yaml", {
        ("grpc-client", "grpc-server", "50051/TCP"): NO_PROXY,
        ("grpc-client", "grpc-server", "80/TCP"): POLICY,
        ("frontend", "grpc-server", "50051/TCP"): POLICY,
        ("grpc-server", "grpc-client", "80/TCP"): OPEN,
    }),
)  # fmt: skip


@pytest.fixture(scope="module")
def shared() -> Iterator[Scene]:
    with Lab() as lab:
        node = lab.node()
        world = lab.outside("world", of=node)
        with Datapath(node) as dp:
            for name, namespace, labels, served in PODS:
                dp.add_endpoint(name, labels, namespace=namespace)
                for port in ("80/TCP", *served):
                    lab.host(name).serve(port)
            world.serve("80/TCP")
            pods = (node.pods[name] for name in ("frontend", "api-server", "kafka"))
            yield Scene(lab, node, dp, *pods, world)


@pytest.fixture
def scene(shared: Scene) -> Iterator[Scene]:
    yield shared
    shared.no_policy()


@VERSIONS
@pytest.mark.parametrize("expected", TABLE, ids=lambda expected: str(expected.manifest))
def test_example(scene: Scene, expected: Expected, version: int) -> None:
    """Each way gets its verdict, and a reason for what is dropped; the kernel holds the rules."""
    scene.dp.policy.apply(POLICIES / expected.manifest)
    found = {cell: scene.verdict(*cell, version) for cell in expected.cells}
    assert found == expected.cells
    assert not scene.dp.drift()


def test_all_of_them_at_once(scene: Scene) -> None:
    """A folder is applied as one; every cell is what it was with its own manifest alone."""
    scene.dp.policy.apply(POLICIES)
    cells = {cell: verdict for expected in TABLE for cell, verdict in expected.cells.items()}
    assert {cell: scene.verdict(*cell, 4) for cell in cells} == cells


def test_the_limit_of_the_video(scene: Scene) -> None:
    """The rate and the burst of the manifest, in bits a second and bytes; nobody else has any."""
    scene.dp.policy.apply(POLICIES / "bandwidth.yaml")
    repository = scene.dp.policy.repository
    limits = {
        name: repository.bandwidth(scene.dp.endpoints[name].identity)
        for name in ("video", "frontend")
    }
    assert limits == {"video": BandwidthLimit(10_000_000, 1_875_000), "frontend": None}


def test_every_manifest_is_tried() -> None:
    """None lies there that no packet has met."""
    assert sorted(path.name for path in POLICIES.iterdir()) == sorted(e.manifest for e in TABLE)
