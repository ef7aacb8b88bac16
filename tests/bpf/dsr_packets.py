"""What DSR makes of a packet, in plain Python and scapy: the measure of the programs' bytes.

A `Shape` is a kind of packet that a client sends. Built for the service it is what the balancer
gets; built for the backend, with one hop less, it is what the backend's stack is to get.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from typing import Any, Final

from attrs import evolve, frozen
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
class Way:
    """Between which ends a packet goes, and what it has that does not depend on them."""

    family: Family
    client: End
    to: End
    ttl: int = TTL
    payload: bytes = b"hello"

    def ip(self, source: str = "", to: str = "", **fields: Any) -> Packet:
        """The IP header, towards the service or backend."""
        source, to = source or self.client[0], to or self.to[0]
        if self.family.version == 4:
            return IP(src=source, dst=to, ttl=self.ttl, **fields)
        return IPv6(src=source, dst=to, hlim=self.ttl, **fields)


@frozen
class Shape:
    """A kind of packet. `parts` builds its IP packets; it `tells` of the service each time."""

    name: str
    parts: Callable[[Way], list[Packet]]
    tells: bool = False
    protocol: str = "TCP"

    def __str__(self) -> str:
        return self.name

    def on(self, way: Way) -> list[bytes]:
        """The IP packets, with all checksums."""
        return [bytes(part) for part in self.parts(way)]

    def packets(self, family: Family, to: End, ttl: int = TTL) -> list[bytes]:
        """Those of the usual client."""
        return self.on(Way(family, (family.client, CLIENT_PORT), to, ttl))


def _tcp(flags: str) -> Callable[[Way], list[Packet]]:
    def parts(way: Way) -> list[Packet]:
        segment = TCP(sport=way.client[1], dport=way.to[1], flags=flags, seq=7)
        return [way.ip() / segment / Raw(way.payload)]

    return parts


def _udp(way: Way) -> list[Packet]:
    return [way.ip() / UDP(sport=way.client[1], dport=way.to[1]) / Raw(way.payload)]


def _without_checksum(way: Way) -> list[Packet]:
    datagram = UDP(sport=way.client[1], dport=way.to[1])
    if way.family.version == 4:
        datagram.chksum = 0
    return [way.ip() / datagram / Raw(way.payload)]


def _options(way: Way) -> list[Packet]:
    datagram = UDP(sport=way.client[1], dport=way.to[1]) / Raw(way.payload)
    if way.family.version == 4:
        return [way.ip(options=[b"\x94\x04\0\0"]) / datagram]
    return [way.ip() / IPv6ExtHdrDestOpt() / datagram]


def _fragments(way: Way) -> list[Packet]:
    """Three fragments of one datagram; the first alone has ports."""
    header = 20 if way.family.version == 4 else 40
    body = (way.payload + bytes(range(256)) * 10)[:2560]
    datagram = UDP(sport=way.client[1], dport=way.to[1]) / Raw(body)
    whole = bytes(way.ip() / datagram)[header:]
    made, size = [], 1200
    for at in range(0, len(whole), size):
        more, part = at + size < len(whole), Raw(whole[at : at + size])
        if way.family.version == 4:
            fields = {"flags": "MF" if more else 0, "frag": at // 8, "id": 77, "proto": 17}
            made.append(way.ip(**fields) / part)
        else:
            extension = IPv6ExtHdrFragment(offset=at // 8, m=int(more), id=77, nh=17)
            made.append(way.ip() / extension / part)
    return made


def _error_about_more(way: Way) -> list[Packet]:
    """The same, about an answer with options, or the first fragment of one."""
    back = evolve(way, ttl=60)
    datagram = UDP(sport=way.to[1], dport=way.client[1]) / Raw(way.payload)
    if way.family.version == 4:
        quoted = back.ip(way.to[0], way.client[0], options=[b"\x94\x04\0\0"], flags="MF") / datagram
        return [way.ip("198.51.100.254") / ICMP(type=3, code=4) / Raw(bytes(quoted))]
    fragment = IPv6ExtHdrFragment(offset=0, m=1, id=77)
    quoted = back.ip(way.to[0], way.client[0]) / fragment / datagram
    return [way.ip("2001:db8:c::254") / ICMPv6DestUnreach() / Raw(bytes(quoted))]


def _error(way: Way) -> list[Packet]:
    """A router on the way to the client tells the sender of an answer that it was too large."""
    ports = {"sport": way.to[1], "dport": way.client[1]}
    quoted = evolve(way, ttl=60).ip(way.to[0], way.client[0]) / TCP(**ports, flags="A", seq=9)
    quoted = Raw(bytes(quoted / Raw(way.payload)))
    if way.family.version == 4:
        return [way.ip("198.51.100.254") / ICMP(type=3, code=4, nexthopmtu=1400) / quoted]
    return [way.ip("2001:db8:c::254") / ICMPv6DestUnreach() / quoted]


SYN: Final = Shape("SYN", _tcp("S"), tells=True)
ACK: Final = Shape("ACK", _tcp("PA"))
FIN: Final = Shape("FIN", _tcp("FA"))
DATAGRAM: Final = Shape("datagram", _udp, tells=True, protocol="UDP")
BARE: Final = Shape("no checksum", _without_checksum, tells=True, protocol="UDP")
OPTIONS: Final = Shape("options", _options, tells=True, protocol="UDP")
FRAGMENTS: Final = Shape("fragments", _fragments, tells=True, protocol="UDP")
ERROR: Final = Shape("ICMP error", _error)
ERROR_ABOUT_MORE: Final = Shape("ICMP error about more", _error_about_more, protocol="UDP")
SHAPES: Final = (SYN, ACK, FIN, DATAGRAM, BARE, OPTIONS, FRAGMENTS, ERROR, ERROR_ABOUT_MORE)


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
