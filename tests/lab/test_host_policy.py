"""Policy of the node itself on the wire: with the world, other nodes, and the node's own pods."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pyciliumlib.datapath import Datapath, DatapathConfig, Outcome, Simulation
from pyciliumlib.errors import (
    DeviceError,
    ExistsError,
    InvalidError,
    KernelError,
    LabelError,
    StateError,
)
from pyciliumlib.flow import Direction, FlowType, TracePoint, Verdict
from pyciliumlib.kernel import ObjectSpec
from pyciliumlib.kernel.clsact import TcFilter
from pyciliumlib.kernel.probe import probe
from pyciliumlib.kernel.tc import attached_tc
from pyciliumlib.lab import Lab, Node
from pyciliumlib.loadbalancer import LocalNode
from pyciliumlib.policy import PolicySettings
from pyciliumlib.resources import object_path
from tests.bpf.packets import FAMILIES
from tests.lab import scenes
from tests.lab.scenes import OPEN, POLICY, VERSIONS, Scene, apps, arrives, at, ports

CONFIG = DatapathConfig(
    host_firewall=True, devices=("eth0",), local_node=LocalNode("n1", labels={"role": "edge"})
)
_serial = itertools.count()


def node_policy(name: str, labels: dict[str, str] | None = None, **sections: Any) -> dict[str, Any]:
    """A CiliumClusterwideNetworkPolicy about nodes."""
    selector = {"matchLabels": labels} if labels else {}
    return {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumClusterwideNetworkPolicy",
        "metadata": {"name": name},
        "spec": {"nodeSelector": selector, **sections},
    }


def attached(node: Node, device: str = "eth0") -> int:
    """How many tc programs are on a device of the node."""

    def count() -> int:
        has_tcx = probe("tcx").has("tcx")
        found = 0
        for way in ("ingress", "egress"):
            found += len(attached_tc(device, way)) if has_tcx else 0
            found += TcFilter.find(device, way) is not None
        return found

    return node.call(count)


@pytest.fixture(scope="module")
def made() -> Iterator[Scene]:
    with Lab() as lab, scenes.scene(lab, config=CONFIG) as scene:
        yield scene


@pytest.fixture
def scene(made: Scene) -> Iterator[Scene]:
    """The scene with the host firewall on, and no policy."""
    made.no_policy()
    yield made
    made.no_policy()


# ---------------------------------------------------------------------- verdicts


@VERSIONS
@pytest.mark.smoke
def test_open_without_a_policy_for_nodes(scene: Scene, version: int) -> None:
    """Every way, and those of pods' policies are about pods alone."""
    scene.dp.policy.apply(scenes.policy("db", {"app": "db"}, ingress=[{}], egress=[{}]))
    for way in (("world", "node"), ("node", "world"), ("web", "node"), ("node", "web")):
        for port in ("80/TCP", "53/UDP", "echo"):
            assert scene.verdict(*way, port, version) == OPEN, (way, port)
    assert scene.verdict("db", "node", "80/TCP", version) == POLICY


@VERSIONS
@pytest.mark.smoke
def test_the_world_to_the_node_by_port(scene: Scene, version: int) -> None:
    """Ingress of the node; what passes through it to pods is none of its policy's."""
    scene.dp.policy.apply(
        node_policy("n", ingress=[{"fromEntities": ["world"], **ports("80/TCP")}])
    )
    assert scene.verdict("world", "node", "80/TCP", version) == OPEN
    for port in ("81/TCP", "53/UDP", "echo"):
        assert scene.verdict("world", "node", port, version) == POLICY
        assert scene.verdict("world", "web", port, version) == OPEN
        assert scene.verdict("web", "world", port, version) == OPEN
        assert scene.verdict("node", "world", port, version) == OPEN


@VERSIONS
def test_the_node_to_the_world(scene: Scene, version: int) -> None:
    """Egress of the node, and not of its pods."""
    prefix = f"{scene.world.ip4}/32" if version == 4 else f"{scene.world.ip6}/128"
    rule = {"toCIDR": [prefix], **ports("53/UDP")}
    scene.dp.policy.apply(node_policy("n", egress=[rule]))
    assert scene.verdict("node", "world", "53/UDP", version) == OPEN
    assert scene.verdict("node", "world", "80/TCP", version) == POLICY
    # IPv4 tells the sender at once that its own device has dropped it
    with contextlib.suppress(KernelError):
        assert not scene.node.ping(at(scene.world, version), timeout=scenes.SILENCE).ok
    assert {flow.reason for flow in scene.drops()} == {POLICY}
    assert scene.verdict("world", "node", "80/TCP", version) == OPEN
    assert scene.verdict("web", "world", "80/TCP", version) == OPEN


@VERSIONS
@pytest.mark.smoke
def test_a_pod_to_the_node(scene: Scene, version: int) -> None:
    """The pod's egress and the node's ingress are both asked."""
    scene.dp.policy.apply(node_policy("n", ingress=[{**apps("from", "web"), **ports("80/TCP")}]))
    assert scene.verdict("web", "node", "80/TCP", version) == OPEN
    assert scene.verdict("web", "node", "81/TCP", version) == POLICY
    assert scene.verdict("db", "node", "80/TCP", version) == POLICY
    scene.dp.policy.apply(scenes.policy("web", {"app": "web"}, egress=[{}]))
    assert scene.verdict("web", "node", "80/TCP", version) == POLICY


@VERSIONS
def test_the_node_to_a_pod(scene: Scene, version: int) -> None:
    """The node's egress, though a pod always admits its node."""
    scene.dp.policy.apply(node_policy("n", egress=[{**apps("to", "web"), **ports("80/TCP")}]))
    assert scene.verdict("node", "web", "80/TCP", version) == OPEN
    assert scene.verdict("node", "web", "81/TCP", version) == POLICY
    assert scene.verdict("node", "db", "80/TCP", version) == POLICY
    assert scene.verdict("web", "node", "80/TCP", version) == OPEN


@VERSIONS
def test_other_nodes_are_remote_nodes(scene: Scene, version: int) -> None:
    """Whoever has an address that was assigned to the identity of remote nodes."""
    other = scene.lab.outside("n9", of=scene.node)
    try:
        for address in (other.ip4, other.ip6):
            scene.dp.assign(address, identity=6)
        scene.dp.policy.apply(
            node_policy("n", ingress=[{"fromEntities": ["remote-node"]}]),
        )
        assert scene.verdict("n9", "node", "80/TCP", version) == OPEN
        assert scene.verdict("world", "node", "80/TCP", version) == POLICY
    finally:
        for address in (other.ip4, other.ip6):
            scene.dp.unassign(address)
        other.close()


@VERSIONS
def test_explain_says_what_happens(scene: Scene, version: int) -> None:
    """With the node's labels, for its value and for its addresses."""
    rule = {"fromEntities": ["world"], **ports("80/TCP")}
    scene.dp.policy.apply(node_policy("edge", {"role": "edge"}, ingress=[rule]))
    scene.dp.policy.apply(node_policy("other", {"role": "db"}, ingressDeny=[{}]))
    for port, expected in (("80/TCP", OPEN), ("81/TCP", POLICY)):
        for node in (scene.dp.host.endpoint, at(scene.node, version), 1):
            answer = scene.dp.policy.explain(at(scene.world, version), node, port)
            assert (answer.verdict.value == "allow") == (expected == OPEN)
        assert scene.verdict("world", "node", port, version) == expected


@VERSIONS
def test_events_have_the_right_ends(scene: Scene, version: int) -> None:
    """A verdict, a trace or a drop, with identities, the rule and the place."""
    rule = {"fromEntities": ["world"], **ports("80/TCP")}
    scene.dp.policy.apply(node_policy("n", ingress=[rule]))
    scene.drain()
    assert scene.world.connect(at(scene.node, version), "80/TCP").ok
    flows = [flow for flow in scene.dp.flows() if flow.is_new]
    kinds = {(flow.type, flow.point) for flow in flows}
    assert kinds == {(FlowType.VERDICT, None), (FlowType.TRACE, TracePoint.TO_HOST)}
    world = 9 if version == 4 else 10
    for flow in flows:
        assert (flow.src_identity, flow.dst_identity) == (world, 1)
        assert (flow.dst_name, flow.endpoint) == ("host", scene.dp.host.endpoint.id)
        assert "n" in scene.dp.policy.rule_text(flow.rule)
    assert not scene.world.connect(at(scene.node, version), "81/TCP", timeout=0.2).ok
    drop = scene.drops()[0]
    assert (drop.src_identity, drop.dst_identity, drop.reason) == (world, 1, POLICY)
    assert (drop.direction, drop.endpoint) == (Direction.INGRESS, scene.dp.host.endpoint.id)


@VERSIONS
def test_simulated_at_the_node(scene: Scene, version: int) -> None:
    """A frame at the uplink: the real programs say what the wire does."""
    rule = {"fromEntities": ["world"], **ports("80/TCP")}
    scene.dp.policy.apply(node_policy("n", ingress=[rule]))
    scene.drain()
    family, host = FAMILIES[version == 6], scene.dp.host.endpoint
    world, node = str(at(scene.world, version)), str(at(scene.node, version))

    def into(dst: str, port: int) -> Simulation:
        return scene.dp.simulate(family.tcp(world, dst, port), host, from_stack=True)

    allowed, denied = into(node, 80), into(node, 81)
    assert (allowed.outcome, allowed.dst_identity) == (Outcome.TO_HOST, 1)
    assert "n" in allowed.rules[0]
    assert (denied.outcome, denied.reason) == (Outcome.DROPPED, POLICY)
    passing = into(str(at(scene.web, version)), 81)
    assert (passing.outcome, passing.flows) == (Outcome.TO_STACK, ())
    leaving = scene.dp.simulate(family.tcp(node, world, 443), host)
    assert leaving.outcome is Outcome.TO_NETWORK
    from_pod = scene.dp.simulate(family.tcp(str(at(scene.web, version)), node, 80), "web")
    assert (from_pod.outcome, from_pod.reason) == (Outcome.DROPPED, POLICY)
    assert not scene.drops()


# ---------------------------------------------------------------------- connections


@VERSIONS
@pytest.mark.parametrize("peer", ["world", "web"])
def test_a_rule_is_withdrawn_under_a_connection(scene: Scene, version: int, peer: str) -> None:
    """It stops in both directions, and goes on with the rule."""
    entity = {"fromEntities": ["world"]} if peer == "world" else apps("from", "web")
    scene.dp.policy.apply(node_policy("n", ingress=[entity]))
    with scenes.tcp_pair(scene.host(peer), scene.node, version) as (near, far):
        assert arrives(near, far) and arrives(far, near)
        scene.dp.policy.apply(node_policy("n", ingress=[{}]))
        assert not arrives(near, far)
        assert not arrives(far, near)
        scene.dp.policy.apply(node_policy("n", ingress=[entity]))
        assert scenes.eventually(lambda: arrives(near, far, 1.0))


@VERSIONS
def test_answers_to_the_node_need_no_rule(scene: Scene, version: int) -> None:
    """The node opens connections to the world and to a pod, with nothing let in."""
    scene.dp.policy.apply(node_policy("n", ingress=[{}]))
    for peer in ("world", "web"):
        for port in ("80/TCP", "53/UDP", "echo"):
            assert scene.verdict("node", peer, port, version) == OPEN


def test_masqueraded_pods_are_not_the_node(scene: Scene) -> None:
    """A pod behind the node's address reaches the world, whatever the node may do."""
    chain = "type nat hook postrouting priority 100; oif eth0 masquerade;"
    table = f"table ip nat {{ chain post {{ {chain} }}; }}"
    scene.dp.policy.apply(node_policy("n", ingress=[{}], egress=[{}]))
    scene.node.run(["nft", "-f", "-"], input=table, check=True)
    try:
        assert scene.verdict("web", "world", "80/TCP", 4) == OPEN
        assert scene.verdict("web", "world", "53/UDP", 4) == OPEN
        assert scene.verdict("node", "world", "80/TCP", 4) == POLICY
        assert scene.verdict("world", "node", "80/TCP", 4) == POLICY
    finally:
        scene.node.run(["nft", "flush", "ruleset"], check=True)


def test_link_local_and_priority_tags_are_no_way_around(scene: Scene) -> None:
    """The node's link-local address is its own, and a frame of VLAN 0 is taken as untagged."""
    local = next(a for a in scene.dp.host.addresses if a.is_link_local)
    scene.dp.policy.apply(
        node_policy("n", ingress=[{"fromEntities": ["world"], **ports("81/TCP")}])
    )
    scene.drain()
    with scene.world.netns.socket(socket.AF_INET6, socket.SOCK_STREAM) as sock:
        sock.settimeout(scenes.SILENCE)
        with pytest.raises(TimeoutError):
            sock.connect((str(local), 80, 0, _ifindex(scene)))
    assert {flow.reason for flow in scene.drops()} == {POLICY}
    for tags in (b"\x81\0\0\0", b"\x81\0\x60\0", b"\x81\0\0\0\x81\0\0\0"):
        with scene.world.netns.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
            sock.bind(("eth0", 0))
            sock.send(_udp_frame(scene, tags))
        assert scenes.eventually(lambda: scene.drops() != []), tags


def _ifindex(scene: Scene) -> int:
    return scene.world.call(lambda: socket.if_nametoindex("eth0"))


def _udp_frame(scene: Scene, tags: bytes) -> bytes:
    from scapy.layers.inet import IP, UDP
    from scapy.layers.l2 import Ether

    mac = scene.node.netlink.link("eth0").mac
    plain = bytes(
        Ether(dst=mac, src="02:00:00:00:00:09", type=0x0800)
        / IP(src=str(scene.world.ip4), dst=str(scene.node.ip4))
        / UDP(sport=4000, dport=53)
        / b"hello"
    )
    return plain[:12] + tags + plain[12:]


# ---------------------------------------------------------------------- trying it out


@VERSIONS
def test_audit_lets_pass_and_tells(scene: Scene, version: int) -> None:
    """So a policy can be tried before anybody is locked out."""
    scene.dp.host.audit()
    try:
        scene.dp.policy.apply(node_policy("n", ingress=[{}]))
        scene.drain()
        assert scene.world.connect(at(scene.node, version), "80/TCP").ok
        assert Verdict.AUDIT in {flow.verdict for flow in scene.dp.flows()}
    finally:
        scene.dp.host.audit(False)
    assert scene.verdict("world", "node", "81/TCP", version) == POLICY


@VERSIONS
def test_relabelled(scene: Scene, version: int) -> None:
    """The node follows its labels."""
    scene.dp.policy.apply(node_policy("db", {"role": "db"}, ingress=[{}]))
    assert scene.verdict("world", "node", "80/TCP", version) == OPEN
    scene.dp.host.relabel({"role": "db"})
    assert scene.verdict("world", "node", "80/TCP", version) == POLICY
    scene.dp.host.relabel({"role": "edge"})
    assert scene.verdict("world", "node", "80/TCP", version) == OPEN


def test_new_addresses_are_the_nodes_after_a_refresh(scene: Scene) -> None:
    """And no longer when they are gone."""
    scene.dp.policy.apply(node_policy("n", ingress=[{}]))
    extra = "192.0.2.77"
    scene.node.netlink.add_address("eth0", f"{extra}/32")
    try:
        assert extra in map(str, scene.dp.host.refresh().addresses)
        assert not scene.world.ping(extra, timeout=scenes.SILENCE).ok
        assert {flow.dst_identity for flow in scene.drops()} == {1}
        assert not scene.dp.drift()
    finally:
        scene.node.run(["ip", "address", "del", f"{extra}/32", "dev", "eth0"], check=True)
    assert extra not in map(str, scene.dp.host.refresh().addresses)
    assert not scene.dp.drift()


# ---------------------------------------------------------------------- life


@VERSIONS
def test_off_by_default(version: int, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing is enforced, and the datapath says so."""
    with Lab() as lab, scenes.scene(lab, policy=PolicySettings(host_firewall=True)) as scene:
        assert not scene.dp.host.enabled
        with pytest.raises(StateError, match="host_firewall=True"):
            _ = scene.dp.host.endpoint
        with caplog.at_level(logging.WARNING):
            scene.dp.policy.apply(node_policy("n", ingress=[{}], egress=[{}]))
        assert "not enforced on the wire" in caplog.text
        assert [key.name for key in scene.dp.policy.unenforced] == ["n"]
        for way in (("world", "node"), ("node", "world"), ("web", "node"), ("node", "web")):
            assert scene.verdict(*way, "80/TCP", version) == OPEN
        assert attached(scene.node) == 0


def test_what_is_refused() -> None:
    """Without a device, with one that is not there, with one that is an endpoint's."""
    with pytest.raises(InvalidError, match=r'devices=\("eth0",\)'):
        DatapathConfig(host_firewall=True)
    with pytest.raises(InvalidError, match="tuple"):
        DatapathConfig(host_firewall=True, devices="eth0")  # type: ignore[arg-type]
    with Lab() as lab:
        node = lab.node()
        config = DatapathConfig(host_firewall=True, devices=("eth0", "eth9"))
        with pytest.raises(DeviceError, match="eth9"):
            Datapath(node, config=config)
        with Datapath(node, config=CONFIG) as dp:
            with pytest.raises(ExistsError, match="devices"):
                dp.add_endpoint("x", device="eth0", mac="02:00:00:00:00:01", addresses=["10.9.9.9"])
            with pytest.raises(LabelError):
                dp.host.relabel(["="])
            local = next(a for a in dp.host.addresses if a.is_link_local)
            with pytest.raises(ExistsError, match="node's own"):
                dp.add_endpoint("x", device="lo", mac="02:00:00:00:00:01", addresses=[local])


def test_it_leaves_nothing() -> None:
    """Neither programs on the device nor rows, whether a policy was there or not."""
    with Lab() as lab:
        node = lab.node()
        world = lab.outside("world", of=node)
        node.serve("80/TCP")
        with Datapath(node, config=CONFIG) as dp:
            dp.policy.apply(node_policy("n", ingress=[{}]))
            assert not world.connect(node.ip4, "80/TCP", timeout=0.2).ok
            assert attached(node) == 2
            assert not dp.drift()
        assert attached(node) == 0
        assert world.connect(node.ip4, "80/TCP").ok


def test_a_start_that_fails_leaves_nothing() -> None:
    """Another's filter stands where the second device's egress program should."""
    config = DatapathConfig(host_firewall=True, devices=("lxc-a", "eth0"), tc="clsact")
    with Lab() as lab:
        node = lab.node()
        node.pod("a")
        with ObjectSpec.open(object_path("clock")).load() as other:
            (program,) = other.programs.values()
            filter = node.call(lambda: TcFilter.attach(program, "eth0", "egress"))
            with pytest.raises(ExistsError, match="egress of device 'eth0'"):
                Datapath(node, config=config)
            assert attached(node) == attached(node, "lxc-a") + 1 == 1
            node.call(filter.detach)
        with Datapath(node, config=config) as dp:
            assert attached(node) == attached(node, "lxc-a") == 2
            assert not dp.drift()


def test_drift_tells_of_the_device() -> None:
    """That somebody took the programs off."""
    with Lab() as lab:
        node = lab.node()
        with Datapath(node, config=CONFIG) as dp:
            dp._uplinks._attachments[node.netlink.link("eth0").ifindex].detach()
            assert "host firewall" in str(dp.drift())


@pytest.fixture
def root() -> Iterator[Path]:
    path = Path(f"/sys/fs/bpf/pcl-host-{os.getpid()}-{next(_serial)}")
    yield path
    left = path.exists()
    shutil.rmtree(path, ignore_errors=True)
    assert not left


def test_an_address_that_was_lost_meanwhile_is_anybodys(root: Path) -> None:
    """The next process follows the addresses, so a neighbour may have it."""
    extra = "192.0.2.77"
    with Lab() as lab:
        node = lab.node()
        friend = lab.outside("friend", of=node)
        node.serve("80/TCP")
        node.netlink.add_address("eth0", f"{extra}/32")
        dp = Datapath(node, pin_root=root, config=CONFIG)
        assert extra in map(str, dp.host.addresses)
        dp.keep()
        node.run(["ip", "address", "del", f"{extra}/32", "dev", "eth0"], check=True)
        with Datapath.open(root, node, config=CONFIG) as dp:
            assert extra not in map(str, dp.host.addresses)
            assert not dp.drift()
            friend.run(["ip", "address", "add", f"{extra}/24", "dev", "eth0"], check=True)
            node.run(["ip", "route", "add", extra, "dev", "eth0"], check=True)
            with friend.netns.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
                sock.bind((extra, 0))
                sock.settimeout(scenes.PATIENCE)
                sock.connect((str(node.ip4), 80))


@pytest.mark.parametrize("tc", ["auto", "clsact"])
def test_it_goes_on_without_a_process(root: Path, tc: str) -> None:
    """Kept, the node stays governed; the next process adopts it, and off means off."""
    config = DatapathConfig(host_firewall=True, devices=("eth0",), tc=tc)  # type: ignore[arg-type]
    off = DatapathConfig(tc=tc)  # type: ignore[arg-type]
    with Lab() as lab:
        node = lab.node()
        world = lab.outside("world", of=node)
        for port in ("80/TCP", "81/TCP"):
            node.serve(port)

        def answers(port: str) -> bool:
            found = {world.connect(ip, port, timeout=0.3).ok for ip in node.addresses[:2]}
            return found == {True}

        dp = Datapath(node, pin_root=root, config=config)
        web = node.pod("web")
        dp.add_endpoint("web", {"app": "web"}, pod=web)
        dp.policy.apply(node_policy("n", ingress=[ports("80/TCP", "8000/TCP")]))
        number = dp.host.endpoint.id
        with scenes.tcp_pair(world, node, 4) as (near, far):
            dp.keep()
            assert answers("80/TCP") and not answers("81/TCP")
            assert arrives(near, far)
            with Datapath.open(root, node, config=config) as dp:
                assert dp.host.endpoint.id == number
                assert not dp.drift()
                assert answers("80/TCP") and not answers("81/TCP")
                assert arrives(near, far) and arrives(far, near)
                assert not web.connect(node.ip4, "81/TCP", timeout=0.3).ok
                dp.keep()
        dp = Datapath.open(root, node, config=off)
        assert answers("81/TCP") and web.connect(node.ip4, "81/TCP").ok
        assert attached(node) == 0
        assert not dp.drift()
        dp.keep()
        # on again, beside an endpoint that is there
        with Datapath.open(root, node, config=config) as dp:
            assert dp.host.endpoint.id != dp.endpoints["web"].id
            assert answers("80/TCP") and not answers("81/TCP")
            assert not dp.drift()
        assert answers("81/TCP")
