"""Packets other than the plain ones: errors, fragments, large ones, forgeries."""

from __future__ import annotations

import errno
import socket
import struct
import threading
from collections.abc import Iterator

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Packet

from pyciliumlib.errors import FeatureError
from pyciliumlib.flow import DropReason
from pyciliumlib.lab import Lab
from tests.lab import scenes
from tests.lab.scenes import OPEN, POLICY, SILENCE, VERSIONS, Scene, apps, at, ports

CLOSED_PORT = "9/UDP"


@pytest.fixture(scope="module")
def shared() -> Iterator[Scene]:
    with Lab() as lab, scenes.scene(lab) as made:
        yield made


@pytest.fixture
def scene(shared: Scene) -> Iterator[Scene]:
    """The scene without any policy."""
    yield shared
    shared.no_policy()


def only(scene: Scene, *rules: dict[str, object]) -> None:
    """Let web reach by these rules alone, and nobody reach web."""
    scene.dp.policy.apply(
        scenes.policy("web", {"app": "web"}, egress=list(rules), ingress=[apps("from", "nobody")])
    )


# ---------------------------------------------------------------------- ICMP errors


@VERSIONS
@pytest.mark.smoke
def test_a_refusal_comes_back_with_its_flow(scene: Scene, version: int) -> None:
    """ "Port unreachable" reaches who sent the datagram though no rule speaks of ICMP; where the
    datagram is not allowed, nothing comes."""
    only(scene, {**apps("to", "api"), **ports(CLOSED_PORT)})
    assert scene.web.connect(at(scene.api, version), CLOSED_PORT).error == "refused"
    only(scene, {**apps("to", "api"), **ports("53/UDP")})
    assert scene.verdict("web", "api", CLOSED_PORT, version) == POLICY


@VERSIONS
def test_a_router_says_that_the_time_is_up(scene: Scene, version: int) -> None:
    """As in a traceroute: the node's error about a packet to the world comes back to the pod."""
    only(scene, {"toEntities": ["world"]})
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    with scene.web.netns.socket(family, socket.SOCK_DGRAM) as sock:
        if version == 4:
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 1)
            sock.setsockopt(socket.IPPROTO_IP, 11, 1)  # IP_RECVERR
        else:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, 1)
            sock.setsockopt(socket.IPPROTO_IPV6, 25, 1)  # IPV6_RECVERR
        sock.settimeout(2)
        sock.connect((str(at(scene.world, version)), 33434))
        sock.send(b"probe")
        with pytest.raises(OSError) as caught:
            sock.recv(100)
    assert caught.value.errno == errno.EHOSTUNREACH


@VERSIONS
def test_a_hop_limit_ends_between_pods(scene: Scene, version: int) -> None:
    """The programs deliver from pod to pod as one hop, and never forward with no life left."""
    scene.drain()
    done = scene.web.run(["ping", "-c1", "-W1", "-t1", at(scene.api, version)])
    assert done.returncode != 0
    assert DropReason.TTL_EXCEEDED in {flow.drop_reason for flow in scene.drops()}


# ---------------------------------------------------------------------- large packets


@VERSIONS
@pytest.mark.parametrize("dst", ["api", "world"])
def test_fragments(scene: Scene, dst: str, version: int) -> None:
    """A datagram of 4,000 bytes goes and comes in fragments, where its port is allowed."""
    server = scene.host(dst)
    rule = apps("to", "api") if dst == "api" else {"toEntities": ["world"]}
    only(scene, {**rule, **ports("4000/UDP")})
    payload = bytes(range(250)) * 16
    with server.serve("4000/UDP", reply=lambda data: data[::-1]):
        result = scene.web.connect(at(server, version), "4000/UDP", data=payload)
    assert (result.error, result.reply) == ("", payload[::-1])
    with server.serve("4001/UDP", reply=bytes) as other:
        refused = scene.web.connect(at(server, version), "4001/UDP", data=payload, timeout=SILENCE)
        assert (refused.error, other.count) == ("timeout", 0)


@VERSIONS
def test_a_narrow_way_is_found_out(scene: Scene, version: int) -> None:
    """ "Packet too big" reaches the pod, so a stream over a way of small packets goes on."""
    only(scene, {"toEntities": ["world"]})
    world, device = at(scene.world, version), scene.node.native
    flag = f"-{version}"
    prefix = f"{world}/{world.max_prefixlen}"
    scene.node.run(["ip", flag, "route", "add", prefix, "dev", device, "mtu", "1300"], check=True)
    try:
        with scenes.tcp_pair(scene.web, scene.world, version) as (near, far):
            received = threading.Thread(target=drain, args=(far, 200_000))
            received.start()
            near.sendall(bytes(200_000))
            received.join(5)
            assert not received.is_alive()
        cached = scene.web.run(["ip", flag, "route", "get", world]).stdout
        assert "mtu 1300" in cached
    finally:
        scene.node.run(["ip", flag, "route", "del", prefix, "dev", device, "mtu", "1300"])
        scene.web.run(["ip", flag, "route", "flush", "cache"])


def drain(sock: socket.socket, count: int) -> None:
    sock.settimeout(5)
    while count > 0:
        count -= len(sock.recv(65536)) or count


@VERSIONS
def test_sctp(scene: Scene, version: int) -> None:
    """SCTP is policed by its ports, where the kernel has it."""
    only(scene, {**apps("to", "api"), **ports("80/SCTP")})
    try:
        server = scene.api.serve("80/SCTP")
    except FeatureError as error:
        pytest.skip(f"this kernel was built without CONFIG_IP_SCTP: {error}")
    with server:
        assert scene.web.connect(at(scene.api, version), "80/SCTP").ok


# ---------------------------------------------------------------------- forgeries


def network(version: int, src: object, dst: object) -> Packet:
    kind = IP if version == 4 else IPv6
    return kind(src=str(src), dst=str(dst))


@VERSIONS
@pytest.mark.smoke
@pytest.mark.parametrize("victim", ["db", "api", "node", "world", "nobody"])
@pytest.mark.parametrize("dst", ["api", "world", "node"])
def test_a_forged_source_is_dropped(scene: Scene, victim: str, dst: str, version: int) -> None:
    """A pod that sends with an address not its own, whosever it is, reaches nobody."""
    forged = {4: "10.244.1.200", 6: "fd00:10:244:1::200"}[version]
    source = forged if victim == "nobody" else at(scene.host(victim), version)
    target = at(scene.host(dst), version)
    link = Ether(src=scene.web.mac, dst=scene.web.host_mac)
    for inner in (UDP(sport=1, dport=53), TCP(sport=1, dport=80, flags="S")):
        assert thrown(scene, link / network(version, source, target) / inner) == [
            DropReason.INVALID_SOURCE
        ]


@VERSIONS
def test_a_forger_cannot_speak_in_anothers_connection(scene: Scene, version: int) -> None:
    """Also with the ports of a live connection of the victim, and then that goes on."""
    with scenes.tcp_pair(scene.db, scene.api, version) as (near, far):
        assert scenes.arrives(near, far)
        port = near.getsockname()[1]
        frame = (
            Ether(src=scene.web.mac, dst=scene.web.host_mac)
            / network(version, at(scene.db, version), at(scene.api, version))
            / TCP(sport=port, dport=8000, flags="R")
        )
        assert thrown(scene, frame) == [DropReason.INVALID_SOURCE]
        assert scenes.arrives(near, far) and scenes.arrives(far, near)


@pytest.mark.parametrize(
    ("src", "dst"),
    [("::ffff:{web}", "{api6}"), ("{web6}", "::ffff:{api}"), ("::ffff:{web}", "::ffff:{api}"),
     ("::ffff:{db}", "{api6}")],
)  # fmt: skip
@pytest.mark.smoke
def test_a_v4_mapped_address_in_an_ipv6_packet(scene: Scene, src: str, dst: str) -> None:
    """Such a packet would meet the entries of IPv4 addresses; it never passes."""
    names = {"web": scene.web.ip4, "db": scene.db.ip4, "api": scene.api.ip4,
             "web6": scene.web.ip6, "api6": scene.api.ip6}  # fmt: skip
    packet = IPv6(src=src.format(**names), dst=dst.format(**names)) / UDP(sport=1, dport=53)
    frame = Ether(src=scene.web.mac, dst=scene.web.host_mac) / packet
    assert thrown(scene, frame) == [DropReason.V4_MAPPED]


@VERSIONS
@pytest.mark.parametrize("tags", [1, 2])
def test_a_tagged_frame(scene: Scene, tags: int, version: int) -> None:
    """VLAN tags hide what is inside, so a pod's tagged frames are dropped."""
    frame = Ether(src=scene.web.mac, dst=scene.web.host_mac)
    for number in range(tags):
        frame = frame / Dot1Q(vlan=100 + number)
    inner = network(version, at(scene.web, version), at(scene.api, version)) / UDP(dport=53)
    assert thrown(scene, frame / inner) == [DropReason.VLAN]


def test_what_is_no_ip(scene: Scene) -> None:
    """Neither IP nor ARP: dropped."""
    frame = Ether(src=scene.web.mac, dst=scene.web.host_mac, type=0x88CC) / bytes(40)
    assert thrown(scene, frame) == [DropReason.UNSUPPORTED_L3]


def test_an_arp_reply_for_anothers_address(scene: Scene) -> None:
    """A pod cannot take over the address of another one on the node."""
    claim = struct.pack(
        "!HHBBH6s4s6s4s", 1, 0x0800, 6, 4, 2,
        mac(scene.web.mac), scene.db.ip4.packed, mac(scene.web.host_mac), scene.node.router4.packed,
    )  # fmt: skip
    frame = Ether(src=scene.web.mac, dst=scene.web.host_mac, type=0x0806) / claim
    assert thrown(scene, frame) == [DropReason.INVALID_SOURCE]
    assert scene.verdict("node", "db", "80/TCP", 4) == OPEN


def mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def thrown(scene: Scene, frame: Packet) -> list[DropReason | None]:
    """Why the datapath dropped a frame that web put on its device, which no server has seen."""
    servers = [server for host in (scene.api, scene.node, scene.world) for server in host._servers]
    before = [(server.count, server.connections) for server in servers]
    scene.drain()
    with scenes.frames(scene.web) as sock:
        sock.send(bytes(frame))  # veth: the programs have run when this returns
    reasons = [flow.drop_reason for flow in scene.drops()]
    assert [(server.count, server.connections) for server in servers] == before
    return reasons
