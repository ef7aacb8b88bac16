"""`PolicyMap`: one policy on one device, without anything else of the datapath."""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from attrs import frozen

from pyciliumlib import errors
from pyciliumlib.flow import DropReason
from pyciliumlib.kernel.tc import attach_tc
from pyciliumlib.lab import Lab, Node, Outside, Pod
from pyciliumlib.policy import Repository, Verdict
from pyciliumlib.policy.program import PolicyMap, policy_map
from pyciliumlib.types import Direction
from tests.lab import scenes
from tests.lab.scenes import SILENCE, VERSIONS, arrives, at, comes

OFFICE = 5001


@frozen
class Place:
    """A server in a pod, two clients, and the map on one of the server's devices."""

    node: Node
    server: Pod
    client: Pod
    world: Outside
    policy: PolicyMap


@pytest.fixture(scope="module")
def lab() -> Iterator[tuple[Node, Pod, Pod, Outside]]:
    with Lab() as lab:
        node = lab.node()
        server, client = node.pod("server"), node.pod("client")
        for port in ("80/TCP", "81/TCP", "53/UDP"):
            for host in (server, client):
                host.serve(port)
        yield node, server, client, lab.outside("world", of=node)


@pytest.fixture(params=["facing-subject", "facing-world"])
def place(lab: tuple[Node, Pod, Pod, Outside], request: pytest.FixtureRequest) -> Iterator[Place]:
    """The map on the host side of the server's veth, or inside on the server's own device."""
    node, server, client, world = lab
    with PolicyMap(identity=777) as policy:
        if request.param == "facing-subject":
            node.call(lambda: policy.attach(server.host_ifname, facing="subject"))
        else:
            server.call(lambda: policy.attach(server.ifname))
        yield Place(node, server, client, world, policy)
    assert client.connect(server.ip4, "80/TCP").ok  # closed: all is as without it


def opened(place: Place, port: str, version: int) -> bool:
    if port == "echo":
        return place.client.ping(at(place.server, version), timeout=SILENCE).ok
    return place.client.connect(at(place.server, version), port, timeout=SILENCE).ok


@VERSIONS
@pytest.mark.smoke
def test_empty_denies_all(place: Place, version: int) -> None:
    """Nothing is allowed, both ways, but ARP and neighbour discovery."""
    assert not any(opened(place, port, version) for port in ("80/TCP", "53/UDP", "echo"))
    result = place.server.connect(at(place.client, version), "80/TCP", timeout=SILENCE)
    assert result.error == "timeout"
    seen = {(flow.drop_reason, flow.direction) for flow in place.policy.flows.read()
            if flow.dropped}  # fmt: skip
    assert seen == {(DropReason.POLICY, way) for way in Direction}
    assert place.policy.metrics().packets(DropReason.POLICY) >= 4


@VERSIONS
@pytest.mark.smoke
def test_allow_deny_remove(place: Place, version: int) -> None:
    """Entries by port, range, protocol and identity; a deny wins; taking back bites at once."""
    policy = place.policy
    policy.allow("ingress", port="80/TCP")
    assert [opened(place, p, version) for p in ("80/TCP", "81/TCP", "53/UDP")] == [
        True, False, False,
    ]  # fmt: skip
    policy.allow("ingress")
    assert opened(place, "81/TCP", version) and opened(place, "echo", version)
    policy.deny("ingress", port="81-90/TCP")
    assert not opened(place, "81/TCP", version) and opened(place, "53/UDP", version)
    assert policy.remove("ingress", port="81-90/TCP")
    assert opened(place, "81/TCP", version)
    assert not policy.remove("ingress", port="81-90/TCP")
    place.policy.ipcache.assign(at(place.client, version), OFFICE)
    policy.deny("ingress", OFFICE, "80/TCP")
    assert not opened(place, "80/TCP", version)
    place.policy.ipcache.remove(at(place.client, version), "assigned")
    assert opened(place, "80/TCP", version)


@VERSIONS
@pytest.mark.parametrize("speaker", ["client", "server"])
def test_withdrawn_under_a_connection(place: Place, speaker: str, version: int) -> None:
    """Replies need no entry of their own, and stop with the one that let the connection in."""
    place.policy.allow("ingress", port="8000/TCP")
    with scenes.tcp_pair(place.client, place.server, version) as (near, far):
        assert arrives(near, far) and arrives(far, near)
        sender, receiver = (near, far) if speaker == "client" else (far, near)
        place.policy.remove("ingress", port="8000/TCP")
        assert not arrives(sender, receiver)
        place.policy.allow("ingress", port="8000/TCP")
        assert comes(receiver, 3.0)
        assert {entry.dst_identity for entry in place.policy.conntrack} == {777}


@VERSIONS
def test_a_resolved_policy(place: Place, version: int) -> None:
    """`replace` takes what a `Repository` resolved; `lookup` says what the packets meet."""
    repository = Repository()
    place_labels = ["k8s:io.kubernetes.pod.namespace=default",
                    "k8s:io.cilium.k8s.policy.cluster=default"]  # fmt: skip
    repository.update_identities({OFFICE: ["k8s:app=office", *place_labels]})
    repository.apply(
        scenes.policy("p", {"app": "server"}, ingress=[
            {**scenes.apps("from", "office"), **scenes.ports("80/TCP")}
        ])
    )  # fmt: skip
    entries = repository.add_endpoint(1, ["k8s:app=server", *place_labels]).entries()
    place.policy.allow("ingress", port="81/TCP")
    assert place.policy.replace(entries)
    assert len(place.policy) == len(entries)
    assert not place.policy.replace(entries)
    place.policy.ipcache.assign(at(place.client, version), OFFICE)
    for port in ("80/TCP", "81/TCP"):
        wire = opened(place, port, version)
        model = place.policy.lookup("ingress", OFFICE, port).verdict is Verdict.ALLOW
        assert wire is model is (port == "80/TCP")
    assert place.policy.lookup("ingress", 9, "80/TCP").verdict is Verdict.DENY


BAD: dict[str, tuple[type[Exception], str, Callable[[PolicyMap], object]]] = {
    "direction": (errors.InvalidError, "sideways", lambda p: p.allow("sideways")),  # type: ignore[arg-type]
    "port": (errors.UnitError, "protocol", lambda p: p.allow("ingress", port="80/XYZ")),
    "port range": (errors.UnitError, "90", lambda p: p.deny("ingress", port="90-80/TCP")),
    "identity": (errors.InvalidError, "-1", lambda p: p.allow("ingress", -1)),
    "identity too large": (errors.InvalidError, "identity", lambda p: p.allow("ingress", 1 << 32)),
    "identity as text": (errors.InvalidError, "'web'", lambda p: p.allow("ingress", "web")),  # type: ignore[arg-type]
    "device": (errors.DeviceError, "none0", lambda p: p.attach("none0")),
    "facing": (errors.InvalidError, "backwards", lambda p: p.attach("lo", facing="backwards")),  # type: ignore[arg-type]
    "lookup": (errors.InvalidError, "up", lambda p: p.lookup("up", 1, "80/TCP")),  # type: ignore[arg-type]
    "remove": (errors.InvalidError, "up", lambda p: p.remove("up")),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_changes_nothing(case: str) -> None:
    """Refused by a typed error; the entries are as before."""
    kind, words, call = BAD[case]
    with PolicyMap() as policy:
        policy.allow("ingress", port="80/TCP")
        before = str(policy.entries)
        with pytest.raises(kind, match=words):
            call(policy)
        assert str(policy.entries) == before


def test_full(lab: tuple[Node, Pod, Pod, Outside]) -> None:
    """More entries than the map takes: MapFullError, and the former ones stay in force."""
    with PolicyMap(entries=16) as policy:
        for port in range(1, 32, 2):
            policy.allow("ingress", port=f"{port}/TCP")
        before = len(policy)
        with pytest.raises(errors.MapFullError):
            policy.allow("ingress", port="33/TCP")
        assert len(policy) == before == 16
        assert policy.remove("ingress", port="1/TCP")
        policy.allow("ingress", port="33/TCP")


@pytest.mark.parametrize(
    "options", [{"entries": 0}, {"flows": 0}, {"identity": -1}, {"flows": "many"}], ids=str
)
def test_bad_sizes(options: dict[str, Any]) -> None:
    """What cannot be is refused before the kernel is asked."""
    with pytest.raises(errors.InvalidError, match=next(iter(options))):
        PolicyMap(**options)


def test_closed_and_leak_free(lab: tuple[Node, Pod, Pod, Outside]) -> None:
    """After `close` everything is a ClosedError; nothing stays open, on no device."""
    node, server, _, _ = lab
    with PolicyMap():
        pass
    gc.collect()
    held = scenes.descriptors()
    for _ in range(10):
        policy = PolicyMap(flows=64)
        node.call(lambda: policy.attach(server.host_ifname, facing="subject"))  # noqa: B023  # called at once
        with pytest.raises(errors.ExistsError):
            node.call(lambda: policy.attach(server.host_ifname, facing="subject"))  # noqa: B023
        policy.close()
        policy.close()
    gc.collect()
    assert scenes.descriptors() == held
    for call in (
        lambda: policy.allow("ingress"),
        lambda: policy.entries,
        lambda: policy.metrics(),
        lambda: policy.attach("lo"),
        lambda: policy.flows.read(),
    ):
        with pytest.raises(errors.ClosedError):
            call()


@pytest.mark.smoke
def test_closed_from_another_namespace(
    lab: tuple[Node, Pod, Pod, Outside], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By clsact too, whose filters are known by device numbers: closing leaves nothing there."""
    node, server, client, _ = lab
    monkeypatch.setattr(policy_map, "attach_tc", functools.partial(attach_tc, backend="clsact"))
    for _ in range(2):  # a filter that stayed would be in the way
        with PolicyMap() as policy:
            attach = functools.partial(policy.attach, server.host_ifname, facing="subject")
            node.call(attach)
            assert not client.connect(server.ip4, "80/TCP", timeout=SILENCE).ok
        assert client.connect(server.ip4, "80/TCP").ok
