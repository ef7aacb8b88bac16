"""What DSR makes of a packet, in plain Python and scapy: the measure of the programs' bytes.

A `Shape` is a kind of packet that a client sends. Built for the service it is what the balancer
gets; built for the backend, with one hop less, it is what the backend's stack is to get.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from typing import Any, Final

from attrs import frozen
from scapy.contrib.geneve import GENEVE, GeneveOptions
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
)
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw
from scapy.utils import checksum

from tests.bpf.balancer import CLIENT_MAC, OWN_MAC, ROUTER_MAC, Family

CLIENT_PORT: Final = 40000
TTL: Final = 64
#: TCP, UDP, ICMPv6.
_PLAIN: Final = (6, 17, 58)

End = tuple[str, int]


@frozen
class Shape:
    """A kind of packet. `parts` builds its IP packets: client, destination, TTL."""

    name: str
    parts: Callable[[Family, End, End, int], list[Packet]]
    tells: bool = False
    protocol: str = "TCP"

    def __str__(self) -> str:
        return self.name

    def packets(self, family: Family, to: End, ttl: int = TTL) -> list[bytes]:
        """The IP packets for an end, with all checksums."""
        client = (family.client, CLIENT_PORT)
        return [bytes(part) for part in self.parts(family, client, to, ttl)]


def ip(family: Family, source: str, to: str, ttl: int, **fields: Any) -> Packet:
    """An IP header."""
    if family.version == 4:
        return IP(src=source, dst=to, ttl=ttl, **fields)
    return IPv6(src=source, dst=to, hlim=ttl, **fields)


def _tcp(flags: str, **fields: Any) -> Callable[[Family, End, End, int], list[Packet]]:
    def parts(family: Family, client: End, to: End, ttl: int) -> list[Packet]:
        head = ip(family, client[0], to[0], ttl, **fields)
        segment = TCP(sport=client[1], dport=to[1], flags=flags, seq=7)
        return [head / segment / Raw(b"" if flags == "S" else b"hello")]

    return parts


def _udp(family: Family, client: End, to: End, ttl: int) -> list[Packet]:
    datagram = UDP(sport=client[1], dport=to[1]) / Raw(b"query")
    return [ip(family, client[0], to[0], ttl) / datagram]


def _options(family: Family, client: End, to: End, ttl: int) -> list[Packet]:
    datagram = UDP(sport=client[1], dport=to[1]) / Raw(b"query")
    if family.version == 4:
        return [IP(src=client[0], dst=to[0], ttl=ttl, options=[b"\x94\x04\0\0"]) / datagram]
    return [ip(family, client[0], to[0], ttl) / IPv6ExtHdrDestOpt() / datagram]


def _fragments(family: Family, client: End, to: End, ttl: int) -> list[Packet]:
    """Three fragments of one datagram; the first alone has ports."""
    header = 20 if family.version == 4 else 40
    datagram = UDP(sport=client[1], dport=to[1]) / Raw(bytes(range(256)) * 10)
    whole = bytes(ip(family, client[0], to[0], ttl) / datagram)[header:]
    made, size = [], 1200
    for at in range(0, len(whole), size):
        more, part = at + size < len(whole), Raw(whole[at : at + size])
        if family.version == 4:
            fields = {"flags": "MF" if more else 0, "frag": at // 8, "id": 77, "proto": 17}
            made.append(ip(family, client[0], to[0], ttl, **fields) / part)
        else:
            extension = IPv6ExtHdrFragment(offset=at // 8, m=int(more), id=77, nh=17)
            made.append(ip(family, client[0], to[0], ttl) / extension / part)
    return made


def _error(family: Family, client: End, to: End, ttl: int) -> list[Packet]:
    """A router on the way to the client tells the sender of an answer that it was too large."""
    quoted = ip(family, to[0], client[0], 60) / TCP(sport=to[1], dport=client[1], flags="A", seq=9)
    if family.version == 4:
        router, message = "198.51.100.254", ICMP(type=3, code=4, nexthopmtu=1400)
    else:
        router, message = "2001:db8:c::254", ICMPv6DestUnreach()
    return [ip(family, router, to[0], ttl) / message / Raw(bytes(quoted))]


SYN: Final = Shape("SYN", _tcp("S"), tells=True)
ACK: Final = Shape("ACK", _tcp("PA"))
FIN: Final = Shape("FIN", _tcp("FA"))
DATAGRAM: Final = Shape("datagram", _udp, tells=True, protocol="UDP")
OPTIONS: Final = Shape("options", _options, tells=True, protocol="UDP")
FRAGMENTS: Final = Shape("fragments", _fragments, tells=True, protocol="UDP")
ERROR: Final = Shape("ICMP error", _error)
SHAPES: Final = (SYN, ACK, FIN, DATAGRAM, OPTIONS, FRAGMENTS, ERROR)


def option(service: End) -> bytes:
    """What tells of a service: an IPv4 option, or a destination options header but its first."""
    address = ipaddress.ip_address(service[0])
    if address.version == 4:
        # as a little-endian sender has them in memory
        return b"\x9a\x08" + service[1].to_bytes(2, "little") + address.packed[::-1]
    return b"\x02\x1b\x14" + address.packed + service[1].to_bytes(2, "big") + b"\0\0"


def with_option(packet: bytes, service: End) -> bytes:
    """The IP packet with the option right behind its header."""
    added = option(service)
    if packet[0] >> 4 == 4:
        whole = bytearray(packet[:20] + added + packet[20:])
        whole[0] += 2
        whole[2:4] = len(whole).to_bytes(2, "big")
        whole[10:12] = bytes(2)
        header = bytes(whole[: whole[0] % 16 * 4])
        whole[10:12] = checksum(header).to_bytes(2, "big")
        return bytes(whole)
    length = (int.from_bytes(packet[4:6], "big") + 24).to_bytes(2, "big")
    return packet[:4] + length + b"\x3c" + packet[7:40] + packet[6:7] + added + packet[40:]


def in_geneve(
    family: Family, packet: bytes, to: str, service: End | None, *, source: int, label: int = 0
) -> bytes:
    """The IP packet in a frame in Geneve for the backend's node.

    `source` is the outer UDP port, `label` the outer flow label. Over IPv6 the checksum is 0 where
    the inner headers are not the plain ones.
    """
    options = []
    if service is not None:
        address = ipaddress.ip_address(service[0]).packed
        data = address + service[1].to_bytes(2, "big") + b"\0\0"
        options = [GeneveOptions(classid=0x014B, type=0x81, data=data)]
    kind = 0x0800 if family.version == 4 else 0x86DD
    tunnel = GENEVE(proto=0x6558, vni=2, critical=int(bool(options)), options=options)
    inner = Ether(src=CLIENT_MAC, dst=OWN_MAC, type=kind) / Raw(packet)
    datagram = UDP(sport=source, dport=6081)
    if family.version == 4:
        outer = IP(src=family.own, dst=to, ttl=64, id=0, flags="DF", tos=packet[1])
        datagram.chksum = 0
    else:
        outer = IPv6(src=family.own, dst=to, hlim=64, fl=label)
        if packet[6] not in _PLAIN:
            datagram.chksum = 0
    return bytes(outer / datagram / tunnel / Raw(bytes(inner)))


def routed(packet: bytes) -> bytes:
    """The frame of an IP packet that the balancer sends to the router."""
    kind = 0x0800 if packet[0] >> 4 == 4 else 0x86DD
    return bytes(Ether(src=OWN_MAC, dst=ROUTER_MAC, type=kind)) + packet


def received(packet: bytes) -> bytes:
    """The frame of an IP packet that the balancer gets."""
    kind = 0x0800 if packet[0] >> 4 == 4 else 0x86DD
    return bytes(Ether(src=CLIENT_MAC, dst=OWN_MAC, type=kind)) + packet
