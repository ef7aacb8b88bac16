"""The packets of the tests, built with scapy from one set of addresses.

Every builder gives the bytes of an Ethernet frame. A `Family` says the same thing in IPv4 and in
IPv6, so that a table of packets is written once and runs in both.
"""

from __future__ import annotations

from typing import Any

from attrs import frozen
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6EchoReply,
    ICMPv6EchoRequest,
    IPv6,
    IPv6ExtHdrFragment,
)
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet, Raw

CLIENT_MAC = "0a:00:00:00:00:01"
SERVER_MAC = "0a:00:00:00:00:02"
#: The node's own ends of their devices.
CLIENT_NODE_MAC = "0a:00:00:00:01:01"
SERVER_NODE_MAC = "0a:00:00:00:01:02"

SYN, ACK, FIN, RST, SYN_ACK, FIN_ACK = "S", "A", "F", "R", "SA", "FA"


@frozen
class Family:
    """One address family: its protocol numbers, and who lives where.

    `client` and `server` are endpoints of the node, `host` is the node, `peer` is known to the
    ipcache, `world` to nobody. `headers` is the length of Ethernet and IP.
    """

    version: int
    client: str
    client_second: str
    server: str
    host: str
    peer: str
    world: str
    router: str
    prefix: str
    world_identity: int
    icmp: int
    echo_request: int
    echo_reply: int
    headers: int

    def __str__(self) -> str:
        return f"IPv{self.version}"

    def ip(self, src: str, dst: str, ttl: int = 64, **fields: Any) -> Packet:
        """The link and network headers."""
        link = Ether(src=CLIENT_MAC, dst=CLIENT_NODE_MAC)
        if self.version == 4:
            return link / IP(src=src, dst=dst, ttl=ttl, **fields)
        return link / IPv6(src=src, dst=dst, hlim=ttl, **fields)

    def tcp(
        self,
        src: str,
        dst: str,
        dport: int = 80,
        flags: str = SYN,
        sport: int = 40000,
        payload: bytes = b"",
        ttl: int = 64,
    ) -> bytes:
        return bytes(
            self.ip(src, dst, ttl) / TCP(sport=sport, dport=dport, flags=flags) / Raw(payload)
        )

    def udp(
        self, src: str, dst: str, dport: int = 53, sport: int = 40000, payload: bytes = b"query"
    ) -> bytes:
        return bytes(self.ip(src, dst) / UDP(sport=sport, dport=dport) / Raw(payload))

    def sctp(self, src: str, dst: str, dport: int = 5060, sport: int = 40000) -> bytes:
        """The common header alone (RFC 9260, 3.1): scapy wants no more than the ports here."""
        header = sport.to_bytes(2, "big") + dport.to_bytes(2, "big") + bytes(8)
        return bytes(self.ip(src, dst, **self._carries(132)) / Raw(header))

    def echo(self, src: str, dst: str, identifier: int = 7, reply: bool = False) -> bytes:
        """A ping, or the answer to one."""
        if self.version == 4:
            message: Packet = ICMP(type="echo-reply" if reply else "echo-request", id=identifier)
        else:
            message = (ICMPv6EchoReply if reply else ICMPv6EchoRequest)(id=identifier)
        return bytes(self.ip(src, dst) / message / Raw(b"ping"))

    def icmp_message(self, src: str, dst: str, kind: int, body: bytes = bytes(8)) -> bytes:
        """An ICMP message of any type; the checksum is not right."""
        return bytes(
            self.ip(src, dst, **self._carries(self.icmp)) / Raw(bytes([kind, 0, 0, 0]) + body)
        )

    def unreachable(self, src: str, dst: str, quoted: bytes) -> bytes:
        """A "port unreachable" from `src` that quotes the frame `quoted`."""
        inner = Ether(quoted).payload
        if self.version == 4:
            error: Packet = ICMP(type="dest-unreach", code="port-unreachable")
        else:
            error = ICMPv6DestUnreach(code=4)
        return bytes(self.ip(src, dst) / error / Raw(bytes(inner)[:128]))

    def protocol(self, src: str, dst: str, number: int) -> bytes:
        """A packet of some other transport protocol."""
        return bytes(self.ip(src, dst, **self._carries(number)) / Raw(bytes(32)))

    def fragments(self, frame: bytes, size: int, identifier: int = 1000) -> list[bytes]:
        """The frame cut into fragments that carry `size` bytes each, a multiple of 8."""
        whole = Ether(frame)
        payload = bytes(whole.payload.payload)
        pieces = range(0, len(payload), size)
        return [
            self._fragment(whole, payload[at : at + size], at, at + size < len(payload), identifier)
            for at in pieces
        ]

    def _fragment(
        self, whole: Packet, piece: bytes, offset: int, more: bool, identifier: int
    ) -> bytes:
        ip = whole.payload
        if self.version == 4:
            return bytes(
                self.ip(
                    ip.src,
                    ip.dst,
                    proto=ip.proto,
                    id=identifier,
                    flags="MF" if more else 0,
                    frag=offset // 8,
                )
                / Raw(piece)
            )
        header = IPv6ExtHdrFragment(nh=ip.nh, offset=offset // 8, m=int(more), id=identifier)
        return bytes(self.ip(ip.src, ip.dst) / header / Raw(piece))

    def _carries(self, number: int) -> dict[str, int]:
        return {"proto": number} if self.version == 4 else {"nh": number}


V4 = Family(
    version=4,
    client="10.0.0.1",
    client_second="10.0.0.11",
    server="10.0.0.2",
    host="192.0.2.1",
    peer="10.1.0.3",
    world="198.51.100.7",
    router="203.0.113.1",
    prefix="10.1.0.0/16",
    world_identity=9,
    icmp=1,
    echo_request=8,
    echo_reply=0,
    headers=34,
)
V6 = Family(
    version=6,
    client="fd00::1",
    client_second="fd00::11",
    server="fd00::2",
    host="2001:db8:2::1",
    peer="fd01::3",
    world="2001:db8::7",
    router="2001:db8:1::1",
    prefix="fd01::/64",
    world_identity=10,
    icmp=58,
    echo_request=128,
    echo_reply=129,
    headers=54,
)
FAMILIES = (V4, V6)


def arp(operation: int, sender_ip: str, target_ip: str, sender_mac: str = CLIENT_MAC) -> bytes:
    """An ARP message for IPv4 over Ethernet, to everybody: 1 asks, 2 answers."""
    return bytes(
        Ether(src=sender_mac, dst="ff:ff:ff:ff:ff:ff")
        / ARP(op=operation, hwsrc=sender_mac, psrc=sender_ip, pdst=target_ip)
    )


def checksums_hold(frame: bytes) -> bool:
    """Whether every checksum in the frame is what scapy computes for its contents."""
    given = Ether(frame)
    fresh = given.copy()
    layer: Packet = fresh
    while layer:
        for name in ("chksum", "cksum"):
            if name in layer.fields:
                delattr(layer, name)
        layer = layer.payload
    return bytes(fresh) == frame
