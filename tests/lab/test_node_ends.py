"""Who has the node's rights, and what is for the node: with frames that others make up, and NAT."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from scapy.layers.inet import UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from pyciliumlib.datapath import DatapathConfig
from pyciliumlib.lab import Host, Lab
from tests.lab import scenes
from tests.lab.scenes import POLICY, SILENCE, VERSIONS, Scene, policy
from tests.lab.test_host_policy import CONFIG

WAYS = {"host firewall": CONFIG, "pods alone": DatapathConfig()}


@pytest.fixture(scope="module", params=WAYS)
def either(request: pytest.FixtureRequest) -> Iterator[Scene]:
    """With the host firewall, and without it."""
    with Lab() as lab, scenes.scene(lab, config=WAYS[request.param]) as made:
        yield made


@pytest.fixture
def scene(either: Scene) -> Iterator[Scene]:
    either.no_policy()
    either.drain()
    yield either
    either.no_policy()


@contextmanager
def nat(scene: Scene, *chains: str) -> Iterator[None]:
    """The node's own translation, as of kube-proxy: a body of each chain, by nft."""
    bodies = "".join(f"chain c{n} {{ type nat hook {body}; }}\n" for n, body in enumerate(chains))
    scene.node.run(["nft", "-f", "-"], input=f"table ip nat {{ {bodies} }}", check=True)
    try:
        yield
    finally:
        scene.node.run(["nft", "flush", "ruleset"], check=True)


def throw(host: Host, frame: Packet) -> None:
    """Send a frame as it is."""
    with host.netns.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
        sock.bind(("eth0", 0))
        sock.send(bytes(frame))


@contextmanager
def listening(host: Host, version: int, port: int) -> Iterator[socket.socket]:
    """A UDP socket at all addresses of a host."""
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    with host.netns.socket(family, socket.SOCK_DGRAM) as sock:
        sock.bind(("", port))
        sock.settimeout(SILENCE)
        yield sock


def received(sock: socket.socket) -> bytes | None:
    try:
        return sock.recv(2000)
    except TimeoutError:
        return None


# ---------------------------------------------------------------------- the node's rights at pods


def test_what_the_node_translates_is_not_the_nodes_own(scene: Scene) -> None:
    """A NodePort of the host's, with masquerade: the pod asks its policy about the world."""
    into = f"prerouting priority -100; iif eth0 tcp dport 8080 dnat to {scene.web.ip4}:80"
    behind = f"postrouting priority 100; ip daddr {scene.web.ip4} ct status dnat masquerade"
    with nat(scene, into, behind):
        assert scene.world.connect(scene.node.ip4, "8080/TCP").ok
        scene.dp.policy.apply(policy("p", {"app": "web"}, ingress=[{}]))
        scene.drain()
        assert not scene.world.connect(scene.node.ip4, "8080/TCP", timeout=SILENCE).ok
        (drop, *_) = scene.drops()
        assert (drop.reason, drop.src_identity) == (POLICY, 9)
        rule = {"fromEntities": ["world"]}
        scene.dp.policy.apply(policy("p", {"app": "web"}, ingress=[rule]))
        assert scene.world.connect(scene.node.ip4, "8080/TCP").ok
        # and the node itself needs no rule
        scene.dp.policy.apply(policy("p", {"app": "web"}, ingress=[{}]))
        assert scene.node.connect(scene.web.ip4, "80/TCP").ok


def test_nobody_outside_has_the_nodes_address(scene: Scene) -> None:
    """Linux forwards such an IPv6 packet; a pod that admits nobody does not get it."""
    mac = scene.node.netlink.link("eth0").mac
    with listening(scene.web, 6, 161) as sock:
        for sent, denied in ((b"open", False), (b"closed", True)):
            if denied:
                scene.dp.policy.apply(policy("p", {"app": "web"}, ingress=[{}]))
            for src in (scene.node.ip6, scene.node.router6):
                header = IPv6(src=str(src), dst=str(scene.web.ip6))
                frame = Ether(dst=mac, src="02:00:00:00:00:09") / header
                throw(scene.world, frame / UDP(sport=4000, dport=161) / sent)
                passes = not denied and not scene.dp.host.enabled
                assert received(sock) == (sent if passes else None)


@VERSIONS
def test_the_node_reaches_its_pods(scene: Scene, version: int) -> None:
    """And pods the node, as always."""
    scene.dp.policy.apply(policy("p", {"app": "web"}, ingress=[{}]))
    for port in ("80/TCP", "53/UDP", "echo"):
        assert scene.verdict("node", "web", port, version) == scenes.OPEN
        assert scene.verdict("web", "node", port, version) == scenes.OPEN
        assert scene.verdict("world", "web", port, version) == POLICY
