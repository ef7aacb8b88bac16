"""`bpf/lib/rewrite.h` in XDP and at tc: any end of any packet, and scapy's checksums afterwards."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6EchoRequest,
    ICMPv6PacketTooBig,
    IPv6,
    IPv6ExtHdrDestOpt,
)
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from pyciliumlib.kernel import Object, ObjectSpec, Program, ProgramType
from pyciliumlib.types import address_to_bytes
from tests.bpf.card import check_sum
from tests.bpf.compiled import compile_bpf
from tests.scale import examples

_LIB = Path(__file__).resolve().parents[2] / "bpf" / "lib"
_SOURCE = """
#include "{lib}/rewrite.h"

struct change {{
	struct headers headers;
	struct addr to;
	__be16 port;
	__u8 end;
	__u8 pad[5];
}};
struct {{
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, struct change);
}} changes SEC(".maps");

SEC("{hook}")
int change(CTX *ctx)
{{
	__u32 zero = 0;
	struct change *all = bpf_map_lookup_elem(&changes, &zero);

	return all && rewrite_end(ctx, &all->headers, all->end, &all->to, all->port);
}}

/* An error for a destination, about a packet that came from there. */
SEC("{hook}")
int change_quoted(CTX *ctx)
{{
	__u32 zero = 0, one = 1;
	struct change *outer = bpf_map_lookup_elem(&changes, &zero);
	struct change *quoted = bpf_map_lookup_elem(&changes, &one);

	if (!outer || !quoted || !rewrite_address(ctx, &outer->headers, outer->end, &outer->to))
		return 0;
	return rewrite_quoted(ctx, &quoted->headers, quoted->end, &quoted->to, quoted->port);
}}
"""
ETHERNET = 14
ADDRESSES = {
    4: st.one_of(st.just("0.0.0.0"), st.just("255.255.255.255"), st.ip_addresses(v=4).map(str)),
    6: st.one_of(st.just("ff::"), st.just("2001:db8::1"), st.ip_addresses(v=6).map(str)),
}
PORTS = st.one_of(st.just(1), st.just(0xFFFF), st.integers(1, 0xFFFF))
SHAPES = ("TCP", "UDP", "UDP without checksum", "ping", "later fragment", "options")


@pytest.fixture(scope="module", params=["xdp", "tc"])
def loaded(request: pytest.FixtureRequest, tmp_path_factory: Any) -> Iterator[Object]:
    source = _SOURCE.format(lib=_LIB, hook=request.param)
    if request.param == "tc":
        source = "#define PCL_TC\n" + source
    folder = tmp_path_factory.mktemp(request.param)
    with ObjectSpec.open(compile_bpf(source, folder)).load() as made:
        yield made


def mapped(address: str) -> bytes:
    return address_to_bytes(ipaddress.ip_address(address))


def change(
    to: tuple[str, int], l4_off: int, proto: int, *, source: bool = False, skip: int = 0
) -> dict[str, Any]:
    """A `struct change`."""
    headers = {"l4_off": l4_off, "proto": proto, "ipv6": int(":" in to[0]), "skip": skip}
    return {"headers": headers, "to": mapped(to[0]), "port": to[1], "end": int(not source),
            "pad": bytes(5)}  # fmt: skip


def run(program: Program, frame: bytes) -> bytes | None:
    """The packet afterwards, None if it could not be changed.

    At tc it runs again as with a card that has summed up the packet, which sum is to follow.
    """
    result = program.run(frame)
    if result.retval and program.type is ProgramType.SCHED_CLS:
        check_sum(program, frame)
    return result.packet if result.retval else None


def usable(address: str) -> bool:
    return (
        ipaddress.ip_address(address).version == 4 or mapped(address)[:12] != mapped("0.0.0.0")[:12]
    )


def head(version: int, source: str, to: str, **fields: Any) -> Packet:
    layer = IP(src=source, dst=to, **fields) if version == 4 else IPv6(src=source, dst=to, **fields)
    return Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02") / layer


def packet(version: int, shape: str, source: tuple[str, int], to: tuple[str, int]) -> Packet:
    """A packet of that shape between two ends."""
    ports = {"sport": source[1], "dport": to[1]}
    ip = head(version, source[0], to[0])
    if shape == "TCP":
        return ip / TCP(flags="PA", **ports) / Raw(b"hello")
    if shape == "ping":
        echo = ICMP(id=source[1]) if version == 4 else ICMPv6EchoRequest(id=source[1])
        return ip / echo / Raw(b"hello")
    if shape == "later fragment":
        offset = {"frag": 7, "proto": 17} if version == 4 else {"nh": 17}
        return head(version, source[0], to[0], **offset) / Raw(b"hello, this is no header")
    if shape == "options":
        if version == 4:
            ip = head(4, source[0], to[0], options=[b"\x94\x04\x00\x00"])
        else:
            ip = ip / IPv6ExtHdrDestOpt()
        return ip / UDP(**ports) / Raw(b"hello")
    without = {"chksum": 0} if shape == "UDP without checksum" else {}
    return ip / UDP(**ports, **without) / Raw(b"hello")


def l4_of(version: int, shape: str) -> tuple[int, int]:
    """Where the transport header is, and its protocol."""
    start = ETHERNET + (20 if version == 4 else 40)
    if shape == "later fragment":
        return 0, 17
    if shape == "options":
        return start + (4 if version == 4 else 8), 17
    return start, {"TCP": 6, "ping": 1 if version == 4 else 58}.get(shape, 17)


ENDS = {version: st.tuples(ADDRESSES[version].filter(usable), PORTS) for version in ADDRESSES}


def sums_to_zero(version: int, one: str, two: str) -> tuple[tuple[str, int], ...]:
    """Two ends and a third in the second's place, between which a datagram's checksum is 0."""
    frame = bytes(packet(version, "UDP", (one, 1), (two, 0)))
    at = ETHERNET + (26 if version == 4 else 46)
    return (one, 1), (two, 2), (two, int.from_bytes(frame[at : at + 2], "big"))


ZERO = {
    4: sums_to_zero(4, "192.0.2.1", "192.0.2.2"), 6: sums_to_zero(6, "ff::1", "ff::2"),
}  # fmt: skip


def test_the_sum_of_zero() -> None:
    """Which is sent as 65535, since 0 says that there is none."""
    for version, (one, _, new) in ZERO.items():
        assert Ether(bytes(packet(version, "UDP", one, new)))[UDP].chksum == 0xFFFF


@st.composite
def cases(draw: st.DrawFn) -> tuple[Any, ...]:
    version, shape = draw(st.sampled_from([4, 6])), draw(st.sampled_from(SHAPES))
    return version, shape, draw(st.booleans()), *(draw(ENDS[version]) for _ in range(3))


@example((4, "UDP", False, *ZERO[4]))
@example((6, "UDP", False, *ZERO[6]))
@settings(max_examples=examples(300), deadline=None)
@given(cases())
def test_as_if_it_had_been_sent_so(loaded: Object, case: tuple[Any, ...]) -> None:
    """The rewritten packet is the one that scapy builds with the other address and port."""
    version, shape, source, one, two, new = case
    l4, proto = l4_of(version, shape)
    loaded.maps["changes"][0] = change(new, l4, proto, source=source)
    before = packet(version, shape, one, two)
    if shape == "ping":  # which has one identifier for both ends
        ends = ((new[0] if source else one[0], new[1]), two if source else new)
    else:
        ends = (new if source else one, two if source else new)
    assert run(loaded.programs["change"], bytes(before)) == bytes(packet(version, shape, *ends))


def error(version: int, kind: str, to: str, quoted: Packet) -> Packet:
    if version == 4:
        code = {"unreachable": 3, "too big": 4}[kind]
        return head(4, "198.51.100.254", to) / ICMP(type=3, code=code) / quoted
    layer = ICMPv6DestUnreach(code=4) if kind == "unreachable" else ICMPv6PacketTooBig(mtu=1400)
    return head(6, "2001:db8:c::254", to) / layer / quoted


@pytest.mark.parametrize("short", [False, True], ids=["whole", "eight bytes quoted"])
@pytest.mark.parametrize("kind", ["unreachable", "too big"])
@pytest.mark.parametrize("shape", ["TCP", "UDP", "UDP without checksum", "options"])
@pytest.mark.parametrize("version", [4, 6])
def test_an_error_and_what_it_quotes(
    loaded: Object, version: int, shape: str, kind: str, short: bool
) -> None:
    """The error goes to another address, and quotes a packet that came from there."""
    client = ("198.51.100.7", 40000) if version == 4 else ("2001:db8:c::7", 40000)
    vip = ("203.0.113.10", 80) if version == 4 else ("2001:db8:a::10", 80)
    backend = ("10.0.0.1", 8080) if version == 4 else ("fd00::1", 8080)
    header = 20 if version == 4 else 40
    begin, proto = l4_of(version, shape)
    skip = begin - ETHERNET - header
    cut = header + skip + 8 if short else None

    def about(end: tuple[str, int]) -> bytes:
        quoted = bytes(bytes(packet(version, shape, end, client))[ETHERNET:][:cut])
        return bytes(error(version, kind, end[0], Raw(quoted)))

    l4 = ETHERNET + header
    icmp = 1 if version == 4 else 58
    loaded.maps["changes"][0] = change((backend[0], 0), l4, icmp)
    loaded.maps["changes"][1] = change(backend, l4, proto, source=True, skip=skip)
    assert run(loaded.programs["change_quoted"], about(vip)) == about(backend)


def test_what_cannot_be_done(loaded: Object) -> None:
    """A transport header that is not there, and one whose checksum cannot follow."""
    frame = bytes(packet(4, "TCP", ("192.0.2.1", 1), ("192.0.2.2", 2)))
    for l4, proto in ((400, 6), (34, 132)):
        loaded.maps["changes"][0] = change(("192.0.2.3", 3), l4, proto)
        assert run(loaded.programs["change"], frame) is None
