"""Simulation: the verdict that a real packet meets, and no trace of having asked."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoRequest, IPv6
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.packet import Packet

from pyciliumlib.datapath import Outcome
from pyciliumlib.flow import DropReason
from pyciliumlib.lab import Lab
from tests.lab import scenes
from tests.lab.scenes import OPEN, VERSIONS, Scene, apps, at, ports

DOCUMENTS = [
    scenes.policy("api", {"app": "api"},
                  ingress=[{**apps("from", "web"), **ports("80/TCP", "8000/TCP")}]),
    scenes.policy("db", {"app": "db"}, ingress=[{}]),
    scenes.policy("web", {"app": "web"}, egress=[
        apps("to", "api", "db"),
        {"toEntities": ["world"], **ports("80/TCP")},
        {"toEndpoints": [{"matchLabels": {"app": "seven"}}]},
    ], egressDeny=[{**apps("to", "api"), **ports("81/TCP")}]),
]  # fmt: skip


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    """The scene under the documents above."""
    with Lab() as lab, scenes.scene(lab) as made:
        made.dp.policy.apply(DOCUMENTS)
        yield made


def frame(scene: Scene, src: str, dst: str, port: str, version: int, **tcp: Any) -> bytes:
    """The first packet of what `Scene.verdict` tries, as the pod sends it."""
    source, target = (str(at(scene.host(name), version)) for name in (src, dst))
    network: Packet = IP(src=source, dst=target) if version == 4 else IPv6(src=source, dst=target)
    if port == "echo":
        inner: Packet = ICMP(id=7) if version == 4 else ICMPv6EchoRequest(id=7)
    else:
        number, protocol = port.split("/")
        fields = {"sport": 40000, "dport": int(number), **tcp}
        inner = TCP(**fields) if protocol == "TCP" else UDP(**fields)
    sender = scene.host(src)
    link = Ether(src=getattr(sender, "mac", None), dst=getattr(sender, "host_mac", None))
    return bytes(link / network / inner)


@VERSIONS
@pytest.mark.smoke
@pytest.mark.parametrize("port", ["80/TCP", "81/TCP", "53/UDP", "echo"])
@pytest.mark.parametrize("dst", ["api", "db", "world", "node"])
def test_verdicts_are_those_of_real_packets(
    scene: Scene, dst: str, port: str, version: int
) -> None:
    """For each way and port the simulation says what the wire does, for the same reason."""
    simulated = scene.dp.simulate(frame(scene, "web", dst, port, version), at="web")
    assert int(simulated.reason or OPEN) == scene.verdict("web", dst, port, version)
    assert simulated.allowed is (simulated.reason is None)
    local = Outcome.TO_ENDPOINT if dst in ("api", "db") else Outcome.TO_STACK
    assert simulated.outcome is (local if simulated.allowed else Outcome.DROPPED)
    identity = scene.dp.endpoints[dst].identity if dst in scene.dp.endpoints else None
    known = {"node": 1, "world": 9 if version == 4 else 10}
    assert simulated.src_identity == scene.dp.endpoints["web"].identity
    assert simulated.dst_identity == (identity or known[dst])


@VERSIONS
@pytest.mark.parametrize(("src", "port"), [("world", "80/TCP"), ("node", "81/TCP")])
def test_packets_from_the_stack(scene: Scene, src: str, port: str, version: int) -> None:
    """What the node hands to a pod is judged as its ingress."""
    packet = frame(scene, src, "api", port, version)
    simulated = scene.dp.simulate(packet, at="api", from_stack=True)
    assert int(simulated.reason or OPEN) == scene.verdict(src, "api", port, version)
    if simulated.allowed:
        assert simulated.outcome is Outcome.TO_ENDPOINT


@VERSIONS
def test_the_rules_that_decided_are_named(scene: Scene, version: int) -> None:
    """Allowed or denied by an entry, the documents behind it are told; by none, none is."""
    at_api = {
        "80/TCP": ("web", "api"),
        "81/TCP": ("web",),
        "53/UDP": ("web",),  # the ingress of api has no entry for it
    }
    for port, names in at_api.items():
        rules = scene.dp.simulate(frame(scene, "web", "api", port, version), at="web").rules
        assert [name for name in ("web", "api") if any(f"default/{name}" in r for r in rules)] == [
            *names
        ], (port, rules)


@VERSIONS
def test_the_packet_that_comes_out(scene: Scene, version: int) -> None:
    """Delivered to a pod it has one hop less and the MACs of that pod's link, and is unchanged
    where it is dropped."""
    sent = Ether(frame(scene, "web", "api", "80/TCP", version))
    out = Ether(scene.dp.simulate(bytes(sent), at="web").packet)
    assert (out.src, out.dst) == (scene.api.host_mac, scene.api.mac)
    life = "ttl" if version == 4 else "hlim"
    assert getattr(out.payload, life) == getattr(sent.payload, life) - 1
    assert bytes(out[TCP]) == bytes(sent[TCP])
    refused = frame(scene, "web", "api", "81/TCP", version)
    assert scene.dp.simulate(refused, at="web").packet == refused


@VERSIONS
def test_an_established_connection_is_seen_as_one(scene: Scene, version: int) -> None:
    """A segment of a live connection is no news, in both directions; of another it would be."""
    with scenes.tcp_pair(scene.web, scene.api, version) as (near, far):
        assert scenes.arrives(near, far)
        ports_ = {"sport": near.getsockname()[1], "flags": "A"}
        there = scene.dp.simulate(
            frame(scene, "web", "api", "8000/TCP", version, **ports_), at="web"
        )
        assert there.outcome is Outcome.TO_ENDPOINT
        assert [flow.is_new for flow in there.flows] == [False]
        back = frame(scene, "api", "web", f"{ports_['sport']}/TCP", version, sport=8000, flags="A")
        reply = scene.dp.simulate(back, at="api")
        assert [(flow.is_reply, flow.is_new) for flow in reply.flows] == [(True, False)]
        stranger = scene.dp.simulate(
            frame(scene, "web", "api", "8000/TCP", version, sport=1, flags="A"), at="web"
        )
        assert any(flow.is_new for flow in stranger.flows)


@VERSIONS
def test_forgeries_and_answers(scene: Scene, version: int) -> None:
    """What never comes to policy is simulated too."""
    table = {
        "another's source": (frame(scene, "db", "api", "80/TCP", version), "INVALID_SOURCE"),
        "a tag": (
            bytes(Ether(src=scene.web.mac) / Dot1Q(vlan=5) / IP(src=str(scene.web.ip4)) / UDP()),
            "VLAN",
        ),
        "v4-mapped": (
            bytes(
                Ether(src=scene.web.mac)
                / IPv6(src=f"::ffff:{scene.web.ip4}", dst=str(scene.api.ip6))
                / UDP()
            ),
            "V4_MAPPED",
        ),
        "zeros": (bytes(64), "UNSUPPORTED_L3"),
        "cut off": (frame(scene, "web", "api", "80/TCP", version)[:-10], "INVALID_PACKET"),
    }
    seen = {name: scene.dp.simulate(packet, at="web").reason for name, (packet, _) in table.items()}
    assert seen == {name: DropReason[reason] for name, (_, reason) in table.items()}
    question = Ether(src=scene.web.mac, dst="ff:ff:ff:ff:ff:ff") / ARP(
        op=1, hwsrc=scene.web.mac, psrc=str(scene.web.ip4), pdst=str(scene.node.router4)
    )
    answer = scene.dp.simulate(bytes(question), at="web")
    assert answer.outcome is Outcome.ANSWERED
    assert Ether(answer.packet)[ARP].hwsrc == scene.web.host_mac


@VERSIONS
def test_asking_leaves_no_trace(scene: Scene, version: int) -> None:
    """Flows, metrics, events, and every table are the same before and after."""
    with scenes.tcp_pair(scene.web, scene.api, version) as (near, far):
        assert scenes.arrives(near, far)
        packets = [
            frame(scene, "web", dst, port, version, **tcp)
            for dst in ("api", "db", "world")
            for port in ("80/TCP", "81/TCP", "echo")
            for tcp in ({}, {"flags": "R"})
            if port.endswith("TCP") or not tcp
        ]
        reset = frame(
            scene, "web", "api", "8000/TCP", version, sport=near.getsockname()[1], flags="R"
        )
        scene.drain()
        before = everything(scene)
        for packet in (*packets, reset):
            scene.dp.simulate(packet, at="web")
        assert everything(scene) == before
        assert not list(scene.dp.flows())
        assert scenes.arrives(near, far) and scenes.arrives(far, near)


def everything(scene: Scene) -> dict[str, Any]:
    maps = scene.dp._programs.maps
    return {
        "metrics": scene.dp.metrics(),
        "flows": sorted(map(str, maps["flows"].items())),
        "pending": sorted(map(str, maps["pending"].items())),
        **scenes.traces(scene.dp, scene.node),
    }
