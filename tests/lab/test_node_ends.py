"""Who has the node's rights, and what is for the node: with frames that others make up, and NAT."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from attrs import evolve
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from pyciliumlib.datapath import DatapathConfig
from pyciliumlib.lab import Host, Lab
from tests.lab import scenes
from tests.lab.scenes import POLICY, SILENCE, VERSIONS, Scene, policy
from tests.lab.test_host_policy import CONFIG, node_policy

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


# ---------------------------------------------------------------------- what is for the node


@pytest.fixture(scope="module")
def guarded() -> Iterator[Scene]:
    with Lab() as lab, scenes.scene(lab, config=CONFIG) as made:
        yield made


@pytest.fixture
def closed(guarded: Scene) -> Iterator[Scene]:
    """The node admits nobody."""
    guarded.no_policy()
    guarded.dp.policy.apply(node_policy("n", ingress=[{}]))
    guarded.drain()
    yield guarded
    guarded.no_policy()


def reaches(client: Host, address: str, port: int, source: str = "", device: int = 0) -> bool:
    """Whether a TCP connection comes about; `device` is that of a link-local address."""
    version = 6 if ":" in address else 4
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    with client.netns.socket(family, socket.SOCK_STREAM) as sock:
        sock.settimeout(SILENCE)
        if source:
            sock.bind((source, 0))
        try:
            sock.connect((address, port) if version == 4 else (address, port, 0, device))
        except TimeoutError:
            return False
        return True


@contextmanager
def another_device(scene: Scene, *addresses: str) -> Iterator[None]:
    """A device of the node which the datapath is not told of, as a bridge of containers is."""
    ends = ["other0", "type", "veth", "peer", "name", "other1"]
    scene.node.run(["ip", "link", "add", *ends], check=True)
    try:
        scene.node.run(["ip", "link", "set", "other0", "up"], check=True)
        for address in addresses:
            options = ["nodad"] if ":" in address else []
            command = ["ip", "address", "add", address, "dev", "other0", *options]
            scene.node.run(command, check=True)
            way = str(scene.node.ip6 if ":" in address else scene.node.ip4)
            route = ["ip", "route", "replace", address, "via", way, "dev", "eth0", "onlink"]
            scene.world.run(route, check=True)
        yield
    finally:
        scene.node.run(["ip", "link", "delete", "other0"], check=True)


def test_every_address_of_the_node_is_the_nodes(closed: Scene) -> None:
    """Also one that came later, at a device that nobody told of."""
    extra = ("169.254.20.10", "172.17.0.1", "2001:db8:77::1")
    family = socket.AF_INET6
    with (
        another_device(closed, *extra),
        closed.node.netns.socket(family, socket.SOCK_STREAM) as server,
    ):
        server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        server.bind(("::", 2222))
        server.listen()
        for address in extra:
            for name in ("world", "web"):
                closed.drain()
                assert not reaches(closed.host(name), address, 2222), (name, address)
                assert {flow.reason for flow in closed.drops()} == {POLICY}
        closed.no_policy()
        for address in extra:
            for name in ("world", "web"):
                assert reaches(closed.host(name), address, 2222), (name, address)


def test_the_nodes_side_of_a_pods_device(closed: Scene) -> None:
    """Its link-local address is the node's too."""
    local, device = "fe80::77", closed.web.host_ifname
    add = ["ip", "-6", "address", "add", f"{local}/64", "dev", device, "nodad"]
    closed.node.run(add, check=True)
    try:
        with closed.node.netns.socket(socket.AF_INET6, socket.SOCK_STREAM) as server:
            server.bind(("::", 2222))
            server.listen()
            number = closed.web.call(lambda: socket.if_nametoindex("eth0"))
            ask = (closed.web, local, 2222, str(closed.web.ip6), number)
            assert not reaches(*ask)
            assert {flow.reason for flow in closed.drops()} == {POLICY}
            closed.no_policy()
            assert reaches(*ask)
    finally:
        closed.node.run(["ip", "-6", "address", "del", f"{local}/64", "dev", device], check=True)


def test_what_the_node_forwards_is_still_forwarded(closed: Scene) -> None:
    """For addresses that are neither the node's nor a pod's."""
    behind = closed.lab.outside("behind", of=closed.node)
    try:
        for address in (behind.ip4, behind.ip6):
            assert closed.web.connect(address, "80/TCP", timeout=SILENCE).error != "timeout"
            assert closed.web.ping(address).ok
        assert not closed.drops()
    finally:
        behind.close()


@pytest.mark.parametrize("name", ["world", "web"])
def test_a_question_to_everybody_is_one_to_the_node(closed: Scene, name: str) -> None:
    """By broadcast and by multicast; so no answer opens the way for the next question."""
    client = closed.host(name)
    device = client.call(lambda: socket.if_nametoindex("eth0"))
    with (
        listening(closed.node, 6, 161) as own,
        client.netns.socket(socket.AF_INET, socket.SOCK_DGRAM) as four,
        client.netns.socket(socket.AF_INET6, socket.SOCK_DGRAM) as six,
    ):
        four.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        four.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0\0")
        four.bind((str(client.ip4), 7777))
        six.bind((str(client.ip6), 7777))

        def ask() -> list[bytes | None]:
            four.sendto(b"question", ("255.255.255.255", 161))
            first = received(own)
            six.sendto(b"question", ("ff02::1", 161, 0, device))
            return [first, received(own)]

        assert ask() == [None] * 2
        assert [flow.reason for flow in closed.drops()] == [POLICY] * 2
        closed.no_policy()
        assert ask() == [b"question"] * 2


def test_the_nodes_own_group_goes_on(closed: Scene) -> None:
    """What the node sends to a group that it is in itself comes back to it by the device."""
    with listening(closed.node, 4, 5353) as own:
        join = socket.inet_aton("224.0.0.251") + closed.node.ip4.packed
        own.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, join)
        own.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, closed.node.ip4.packed)
        own.sendto(b"self", ("224.0.0.251", 5353))
        assert received(own) == b"self"


def test_the_loopback_is_of_no_packet(scene: Scene) -> None:
    """Though the stack takes it where `route_localnet` is on, as kube-proxy has it."""
    scene.node.run(["sysctl", "-qw", "net.ipv4.conf.all.route_localnet=1"], check=True)
    senders = {scene.web: scene.web.host_mac}
    if scene.dp.host.enabled:
        senders[scene.world] = scene.node.netlink.link("eth0").mac
    try:
        with scene.node.netns.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind(("127.0.0.1", 161))
            sock.settimeout(SILENCE)
            for sender, mac in senders.items():
                for src, dst in ((str(sender.ip4), "127.0.0.1"), ("127.0.0.1", "127.0.0.1")):
                    own = scene.web.mac if sender is scene.web else "02:00:00:00:00:09"
                    frame = Ether(dst=mac, src=own) / IP(src=src, dst=dst)
                    throw(sender, frame / UDP(sport=4000, dport=161) / b"hello")
                    assert received(sock) is None
                    (drop,) = scene.drops()
                    assert drop.reason == (150 if src == str(sender.ip4) else 132)
    finally:
        scene.node.run(["sysctl", "-qw", "net.ipv4.conf.all.route_localnet=0"], check=True)


# ---------------------------------------------------------------------- whom it masquerades


def test_a_masqueraded_pod_opens_nothing_of_the_node() -> None:
    """Its flow is forgotten before conntrack forgets whose it was, whatever comes from outside."""
    config = evolve(CONFIG, timeout_masqueraded=1)
    with (
        Lab() as lab,
        scenes.scene(lab, config=config) as scene,
        nat(scene, "postrouting priority 100; oif eth0 masquerade"),
        scene.node.netns.socket(socket.AF_INET, socket.SOCK_DGRAM) as own,
        scene.world.netns.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer,
        scene.web.netns.socket(socket.AF_INET, socket.SOCK_DGRAM) as pod,
    ):
        for name in ("udp_timeout", "udp_timeout_stream"):
            setting = f"net.netfilter.nf_conntrack_{name}=3"
            scene.node.run(["sysctl", "-qw", setting], check=True)
        scene.dp.policy.apply(node_policy("n", ingress=[{}], egress=[{}]))
        own.bind(("0.0.0.0", 161))
        peer.bind((str(scene.world.ip4), 9999))
        pod.bind((str(scene.web.ip4), 161))
        for sock in (own, peer, pod):
            sock.settimeout(SILENCE)
        node = (str(scene.node.ip4), 161)

        # as long as the pod goes on it is answered
        for _ in range(8):
            pod.sendto(b"question", (str(scene.world.ip4), 9999))
            assert received(peer) == b"question"
            peer.sendto(b"answer", node)
            assert received(pod) == b"answer"
            time.sleep(0.2)
        # then not for long, though the peer does
        scene.drain()
        ends = time.monotonic() + 5
        got = []
        while time.monotonic() < ends:
            peer.sendto(b"more", node)
            got.append(received(pod))
        assert got[0] == b"more" and got[-1] is None
        assert received(own) is None
        assert {flow.reason for flow in scene.drops()} == {POLICY}
