"""What a client is told whose service has no backend, by test run, and when it is told nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6DestUnreach, IPv6, IPv6ExtHdrDestOpt
from scapy.packet import Packet, Raw
from scapy.utils import checksum

from pyciliumlib.flow import DropReason
from pyciliumlib.loadbalancer import Backend, LoadBalancerConfig, Service
from pyciliumlib.loadbalancer.program.loading import Hook
from pyciliumlib.net import NetNS
from tests.bpf import balancer
from tests.bpf.balancer import CLIENT_MAC, DROP, FAMILIES, OWN_MAC, TX, V4, Family, Rig
from tests.bpf.card import check_sum
from tests.bpf.dsr_packets import FRAGMENTS, received

families = pytest.mark.parametrize("family", FAMILIES, ids=str)
REASON = DropReason.NO_SERVICE_BACKEND
QUOTED = 96
MODES = {
    "ipip": LoadBalancerConfig("maglev", "dsr", "ipip", table_size=251),
    "geneve": LoadBalancerConfig("random", "dsr", "geneve"),
    "snat": LoadBalancerConfig("random", "snat"),
}


@pytest.fixture(scope="module")
def where() -> Iterator[tuple[NetNS, int]]:
    with balancer.device() as made:
        yield made


@pytest.fixture(scope="module", params=[Hook.NATIVE, Hook.TC], ids=str)
def hook(request: pytest.FixtureRequest) -> Hook:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture(scope="module", params=MODES)
def loaded(request: pytest.FixtureRequest, where: tuple[NetNS, int], hook: Hook) -> Iterator[Rig]:
    with balancer.rig(where, MODES[request.param], hook=hook) as made:
        yield made


@pytest.fixture
def rig(loaded: Rig) -> Rig:
    loaded.reset()
    return loaded


def empty(family: Family, protocol: str = "TCP", backends: Any = (), **options: Any) -> Service:
    return Service("web", [family.at(family.vip, 80, protocol)], backends, **options)


def behind_options(family: Family, dport: int = 80) -> Packet:
    """UDP behind IPv4 options, as many as there can be, or an extension header."""
    datagram = UDP(sport=40000, dport=dport) / Raw(b"a question")
    if family.version == 4:
        return family.ip(family.client, family.vip, options=[b"\x94\x04\0\0"] * 10) / datagram
    return family.ip(family.client, family.vip) / IPv6ExtHdrDestOpt() / datagram


PACKETS = {
    "SYN": lambda family: (
        family.ip(family.client, family.vip)
        / TCP(sport=40000, dport=80, flags="S", options=[("MSS", 1460), ("SAckOK", b"")])
    ),
    "long segment": lambda family: (
        family.ip(family.client, family.vip)
        / TCP(sport=40000, dport=80, flags="PA")
        / Raw(bytes(range(256)) * 4)
    ),
    "datagram of nothing": lambda family: (
        family.ip(family.client, family.vip) / UDP(sport=40000, dport=80)
    ),
    "datagram": lambda family: (
        family.ip(family.client, family.vip) / UDP(sport=40000, dport=80) / Raw(b"question")
    ),
    "datagram behind options": behind_options,
}  # fmt: skip


def answer_to(frame: Packet, family: Family, hook: Hook, got: bytes) -> bytes:
    """The error, as scapy builds it, of whole words.

    At tc a short packet is filled up, and two bytes are for the checksum's sake.
    """
    if family.version == 4:
        head = IP(src=family.vip, dst=family.client, ttl=64, id=0) / ICMP(type=3, code=3)
    else:
        head = IPv6(src=family.vip, dst=family.client, hlim=64) / ICMPv6DestUnreach(code=4)
    quote = bytes(frame)[14 : 14 + QUOTED]
    if hook is Hook.TC:
        quote = quote.ljust(QUOTED, b"\0")[:-2] + got[-2:]
    else:
        quote = quote[: len(quote) // 4 * 4]
    return bytes(head / Raw(quote))


@families
@pytest.mark.parametrize("kind", PACKETS)
@pytest.mark.smoke
def test_port_unreachable(rig: Rig, hook: Hook, family: Family, kind: str) -> None:
    """From the service's address, with what it is about; and the packet counts as dropped."""
    rig.serve(empty(family, "UDP" if "datagram" in kind else "TCP"))
    frame = PACKETS[kind](family)
    outcome = rig.send(frame)
    assert (outcome.action, outcome.reason) == (TX, REASON)
    answer = outcome.packet
    assert (answer.src, answer.dst) == (OWN_MAC, CLIENT_MAC)
    assert outcome.data[14:] == answer_to(frame, family, hook, outcome.data)


@families
def test_a_card_that_has_summed_up(rig: Rig, hook: Hook, family: Family) -> None:
    """Its sum follows where the kernel does not forget it: a packet of just what is quoted."""
    if hook is not Hook.TC:
        return  # XDP packets have none
    rig.serve(empty(family))
    frame = family.ip(family.client, family.vip) / TCP(sport=40000, dport=80, flags="PA")
    frame /= Raw(bytes(range(14 + QUOTED - len(frame))))
    with rig.netns.enter():
        check_sum(rig.program, bytes(frame), {"ifindex": rig.ifindex})


@families
@pytest.mark.parametrize("kind", PACKETS)
def test_a_checksum_that_is_left_out(rig: Rig, hook: Hook, family: Family, kind: str) -> None:
    """A device that fills in the quoted packet's checksum writes what is there already."""
    if hook is not Hook.TC:
        return  # XDP gets whole packets only
    rig.serve(empty(family, "UDP" if "datagram" in kind else "TCP"))
    frame = PACKETS[kind](family)
    layer = UDP if "datagram" in kind else TCP
    begin = bytes(frame).index(bytes(frame[layer])[:4], 34)
    whole = bytearray(bytes(frame))
    place = begin + (6 if layer is UDP else 16)
    for left in (b"\x12\x34", bytes(whole[place : place + 2])):
        whole[place : place + 2] = left
        answer = rig.send(bytes(whole)).data
        quoted = answer[len(answer) - QUOTED + begin - 14 :]
        assert checksum(quoted) == int.from_bytes(left, "big")


@families
@pytest.mark.parametrize("state", ["quarantined", "maintenance", "terminating-not-serving"])
def test_backends_that_take_none(rig: Rig, family: Family, state: str) -> None:
    """It is not the number of backends that counts, but whether one may take the connection."""
    rig.serve(empty(family, backends=[Backend(a, 80, state=state) for a in family.backends]))
    outcome = rig.send(PACKETS["SYN"](family))
    assert (outcome.action, outcome.reason) == (TX, REASON)
    rig.serve(empty(family, backends=[Backend(a, 80) for a in family.backends]))
    assert rig.send(PACKETS["SYN"](family)).to in family.backends


@families
def test_fragments(rig: Rig, family: Family) -> None:
    """The first one is answered, those after it are not."""
    rig.serve(empty(family, "UDP"))
    packets = FRAGMENTS.packets(family, (family.vip, 80))
    outcomes = [rig.send(received(packet)) for packet in packets]
    assert [(one.action, one.reason) for one in outcomes] == [(TX, REASON)] + [(DROP, REASON)] * 2


@families
def test_other_ports_are_dropped(rig: Rig, family: Family) -> None:
    """A port that the service does not have is no service without backends."""
    rig.serve(empty(family))
    for frame in (behind_options(family), behind_options(family, 81)):
        outcome = rig.send(frame)
        assert (outcome.action, outcome.reason) == (DROP, REASON)


@families
def test_silence(where: tuple[NetNS, int], hook: Hook, family: Family) -> None:
    """`service-no-backend-response: drop` says nothing."""
    config = LoadBalancerConfig.from_config({"service-no-backend-response": "drop"})
    with balancer.rig(where, config, hook=hook) as made:
        made.serve(empty(family))
        outcome = made.send(PACKETS["SYN"](family))
        assert (outcome.action, outcome.reason) == (DROP, REASON)


def test_answers_are_limited(rig: Rig) -> None:
    """No more than a thousand a second on a CPU; one that is not given is a drop all the same."""
    rig.serve(empty(V4))
    answers = rig.maps["lb_answers"]
    keys, values = answers.lookup_batch()
    for age, action in ((0, DROP), (balancer.hz(), TX)):
        values["since"], values["count"] = balancer.jiffies() - age, 1000
        answers.update_batch(keys, values)
        outcome = rig.send(PACKETS["SYN"](V4))
        assert (outcome.action, outcome.reason) == (action, REASON)


@families
def test_short_frames(rig: Rig, hook: Hook, family: Family) -> None:
    """Cut off behind the ports, a packet is answered with what there is of it."""
    rig.serve(empty(family, "UDP"))
    frame = bytes(PACKETS["datagram"](family))
    for length in range(len(frame) - 12, len(frame)):
        outcome = rig.send(frame[:length])
        assert (outcome.action, outcome.reason) == (TX, REASON)
        whole = answer_to(Raw(frame[:length]), family, hook, outcome.data)
        assert outcome.data[14:] == whole
