"""Frames that are cut short, IPv6 extension headers, and noise: fail closed, never pass."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scapy.layers.inet import TCP
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from pyciliumlib.errors import KernelError
from pyciliumlib.flow import DropReason
from tests.bpf import harness
from tests.bpf.harness import CLIENT, FROM, REDIRECT, SERVER, SHOT, TO, Devices, Rig
from tests.bpf.packets import FAMILIES, V4, V6, Family
from tests.scale import examples

families = pytest.mark.parametrize("family", FAMILIES, ids=str)
hypothesis_settings = settings(
    max_examples=examples(200),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
TRANSPORTS = {"tcp": 20, "udp": 8, "sctp": 8, "echo": 8}


def _frame(family: Family, transport: str) -> bytes:
    build = getattr(family, transport)
    frame: bytes = build(family.client, family.server)
    return frame


@families
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_header_cut_short_never_passes(rig: Rig, family: Family, transport: str) -> None:
    """Every shorter form of a packet that is allowed is dropped, up to its last header byte."""
    rig.allow_all()
    frame = _frame(family, transport)
    whole = family.headers + TRANSPORTS[transport]
    for length in range(14, whole):
        try:
            outcome = rig.send(FROM, CLIENT, frame[:length])
        except KernelError:
            # bpf_prog_test_run_skb() itself refuses less than an IP header
            assert length < family.headers
            continue
        assert (outcome.action, outcome.drop) == (SHOT, DropReason.INVALID_PACKET), length
    assert rig.send(FROM, CLIENT, frame[:whole]).action == REDIRECT


@pytest.mark.parametrize("length_field", range(5))
def test_an_ipv4_header_shorter_than_it_can_be(rig: Rig, length_field: int) -> None:
    """An IHL below 5 would put the ports into the addresses."""
    rig.allow_all()
    frame = bytearray(V4.tcp(V4.client, V4.server))
    frame[14] = 0x40 | length_field
    assert rig.send(FROM, CLIENT, bytes(frame)).drop == DropReason.INVALID_PACKET


@pytest.mark.parametrize("words", [6, 10, 15])
def test_ipv4_options_are_stepped_over(rig: Rig, words: int) -> None:
    """The ports are behind the options, and only those count."""
    rig.allow_all(CLIENT)
    rig.rule(SERVER, 0, proto=6, port=80)
    options = [b"\x01" * ((words - 5) * 4)]
    for port, passes in ((80, True), (81, False)):
        frame = V4.ip(V4.client, V4.server, options=options) / TCP(dport=port)
        assert rig.send(FROM, CLIENT, bytes(frame)).passed == passes


#: A header's number, and what follows the number of the next one: its length and contents.
Header = tuple[int, bytes]
HOP_BY_HOP: Header = (0, b"\x00\x01\x04\x00\x00\x00\x00")
ROUTING: Header = (43, b"\x02\x00\x01" + bytes(20))
DESTINATION: Header = (60, b"\x01\x01\x0c" + bytes(12))
AUTHENTICATION: Header = (51, b"\x04" + bytes(22))

EXTENSIONS: dict[str, list[Header]] = {
    "hop by hop": [HOP_BY_HOP],
    "routing": [ROUTING],
    "destination options": [DESTINATION],
    "authentication": [AUTHENTICATION],
    "two": [HOP_BY_HOP, DESTINATION],
    "five": [HOP_BY_HOP, DESTINATION, ROUTING, AUTHENTICATION, DESTINATION],
}


def _extended(headers: list[Header], port: int = 80) -> bytes:
    numbers = [number for number, _ in headers] + [6]
    chain = b"".join(
        bytes([following]) + body for (_, body), following in zip(headers, numbers[1:], strict=True)
    )
    payload = chain + bytes(TCP(sport=40000, dport=port))
    return bytes(V6.ip(V6.client, V6.server, nh=numbers[0]) / Raw(payload))


@pytest.mark.parametrize("headers", EXTENSIONS.values(), ids=EXTENSIONS)
def test_extension_headers_are_stepped_over(rig: Rig, headers: list[Header]) -> None:
    """Policy judges the ports behind them."""
    rig.allow_all(CLIENT)
    rig.rule(SERVER, 0, proto=6, port=80)
    outcome = rig.send(FROM, CLIENT, _extended(headers))
    assert outcome.action == REDIRECT
    assert (outcome.events[0].proto, outcome.events[0].dport) == (6, 80)
    assert not rig.send(FROM, CLIENT, _extended(headers, port=81)).passed


def test_too_many_extension_headers(rig: Rig) -> None:
    """Six and more are more than any sender needs."""
    rig.allow_all()
    for count in (6, 7, 20):
        outcome = rig.send(FROM, CLIENT, _extended([DESTINATION] * count))
        assert (outcome.action, outcome.drop) == (SHOT, DropReason.IPV6_EXTENSION)


@pytest.mark.parametrize("headers", EXTENSIONS.values(), ids=EXTENSIONS)
def test_extension_headers_cut_short_never_pass(rig: Rig, headers: list[Header]) -> None:
    """Wherever the frame ends before the last header does, it is dropped."""
    rig.allow_all()
    frame = _extended(headers)
    for length in range(V6.headers, len(frame)):
        outcome = rig.send(FROM, CLIENT, frame[:length])
        assert outcome.action == SHOT, length
        assert outcome.drop in (DropReason.IPV6_EXTENSION, DropReason.INVALID_PACKET)


def test_no_next_header(rig: Rig) -> None:
    """A packet that ends with its IPv6 header (59) has nothing that policy could judge."""
    rig.allow_all()
    frame = bytes(V6.ip(V6.client, V6.server, nh=59) / Raw(bytes(20)))
    assert rig.send(FROM, CLIENT, frame).drop == DropReason.UNKNOWN_L4


#: Protocols without ports that policy can be told to judge, by number.
EXTENDED = {"IGMP": 2, "IPIP": 4, "IPv6": 41, "GRE": 47, "ESP": 50, "AH": 51, "VRRP": 112}
#: AH is an extension header of IPv6, behind which is what policy judges.
EXTENDED_IN = [(V4, name) for name in EXTENDED] + [(V6, name) for name in EXTENDED if name != "AH"]


@pytest.fixture(scope="module")
def extended(where: Devices) -> Iterator[Rig]:
    """The programs of a datapath with `extended_protocols`."""
    with harness.rig(where, extended_protocols=True) as made:
        yield made


def _other(family: Family, number: int) -> bytes:
    return family.protocol(family.client, family.server, number)


@pytest.mark.parametrize(("family", "name"), EXTENDED_IN, ids=str)
def test_protocols_without_ports(rig: Rig, extended: Rig, family: Family, name: str) -> None:
    """Unknown unless the datapath is to know them; then policy judges them by number alone."""
    number = EXTENDED[name]
    frame = _other(family, number)
    rig.allow_all()
    assert rig.send(FROM, CLIENT, frame).drop == DropReason.UNKNOWN_L4
    extended.reset()
    assert extended.send(FROM, CLIENT, frame).drop == DropReason.POLICY
    extended.allow_all(CLIENT)
    extended.rule(SERVER, 0, proto=6)
    assert extended.send(FROM, CLIENT, frame).drop == DropReason.POLICY
    extended.rule(SERVER, 0, proto=number)
    outcome = extended.send(FROM, CLIENT, frame)
    assert outcome.action == REDIRECT
    event = outcome.events[0]
    assert (event.proto, event.sport, event.dport) == (number, 0, 0)
    other = 50 if number == 47 else 47
    assert extended.send(FROM, CLIENT, _other(family, other)).drop == DropReason.POLICY


def test_a_protocol_that_no_policy_can_name_stays_unknown(extended: Rig) -> None:
    extended.reset()
    extended.allow_all()
    for number in (0xFD, 89, 103):
        assert extended.send(FROM, CLIENT, _other(V4, number)).drop == DropReason.UNKNOWN_L4


@families
@hypothesis_settings
@given(data=st.data())
def test_noise_never_passes(rig: Rig, family: Family, data: st.DataObject) -> None:
    """Random bytes behind an Ethernet header end as a drop that is told."""
    rig.allow_all()
    hook = data.draw(st.sampled_from([FROM, TO]))
    link = _frame(family, "tcp")[:14]
    outcome = rig.send(hook, CLIENT, link + data.draw(st.binary(min_size=60, max_size=160)))
    assert outcome.action == SHOT
    assert outcome.drop in set(DropReason)


@families
@hypothesis_settings
@given(data=st.data())
def test_a_damaged_packet_passes_only_as_what_it_is(
    rig: Rig, family: Family, data: st.DataObject
) -> None:
    """Bytes of an allowed packet change; what still passes has the parts that were judged."""
    rig.allow_all()
    rig.forget_flows()
    transport = data.draw(st.sampled_from(sorted(TRANSPORTS)))
    frame = bytearray(_frame(family, transport))
    places = st.integers(14, family.headers + TRANSPORTS[transport] - 1)
    for at in data.draw(st.lists(places, min_size=1, max_size=4)):
        frame[at] = data.draw(st.integers(0, 255))
    outcome = rig.send(FROM, CLIENT, bytes(frame))
    if outcome.action == SHOT:
        assert outcome.drop in set(DropReason)
        return
    header = Ether(bytes(frame)).payload
    assert header.version == family.version
    assert header.src in (family.client, family.client_second)
    (verdict, *_) = outcome.events
    assert str(verdict.src) == header.src
    assert str(verdict.dst) == header.dst
