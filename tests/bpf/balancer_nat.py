"""Connections through a balancer that translates: frames of both ends, and what becomes of them.

What the program makes of a frame is compared with the frame that scapy builds between the other
ends, so that every byte and checksum is a second implementation's.
"""

from __future__ import annotations

from typing import Any, Final

from attrs import evolve, frozen
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.layers.sctp import SCTP
from scapy.packet import Packet, Raw

from pyciliumlib.loadbalancer import Service
from tests.bpf.balancer import (
    CLIENT_MAC,
    OWN_MAC,
    ROUTER_MAC,
    TX,
    Family,
    Outcome,
    Rig,
)

LAYERS: Final = {"TCP": TCP, "UDP": UDP, "SCTP": SCTP}
HOPS: Final = 64


@frozen
class Ends:
    """Two addresses with their ports, in a packet's order."""

    family: Family
    source: str
    sport: int
    destination: str
    dport: int
    kind: str = "TCP"

    @property
    def back(self) -> Ends:
        """The other direction."""
        return evolve(self, source=self.destination, sport=self.dport,
                      destination=self.source, dport=self.sport)  # fmt: skip

    def ip(self, hops: int = HOPS, **fields: Any) -> Packet:
        """The network header."""
        if self.family.version == 4:
            return IP(src=self.source, dst=self.destination, ttl=hops, **fields)
        return IPv6(src=self.source, dst=self.destination, hlim=hops, **fields)

    def l4(self, **fields: Any) -> Packet:
        """The transport header."""
        return LAYERS[self.kind](sport=self.sport, dport=self.dport, **fields)

    def frame(self, hops: int = HOPS, flags: str = "A", payload: bytes = b"hello") -> Packet:
        """A whole packet, as it comes to the balancer."""
        fields = {"flags": flags} if self.kind == "TCP" else {}
        ether = Ether(src=CLIENT_MAC, dst=OWN_MAC)
        return ether / self.ip(hops) / self.l4(**fields) / Raw(payload)


@frozen
class Talk:
    """One client's connection to a service."""

    rig: Rig
    family: Family
    sport: int = 40000
    kind: str = "TCP"
    client: str = ""
    dport: int = 80

    @property
    def ends(self) -> Ends:
        """As the client sees it."""
        client = self.client or self.family.client
        return Ends(self.family, client, self.sport, self.family.vip, self.dport, self.kind)

    def send(self, flags: str = "A", **fields: Any) -> Outcome:
        """The client's next packet."""
        return self.rig.send(self.ends.frame(flags=flags, **fields))

    def open(self, flags: str = "SA") -> Ends:
        """Its first packets; as the backend sees the connection then."""
        outcome = [self.send(flag) for flag in flags][-1]
        return self.seen(outcome)

    def seen(self, outcome: Outcome) -> Ends:
        """The ends of a packet that went to a backend."""
        assert outcome.action == TX, outcome
        packet = outcome.packet
        ip, l4 = packet.getlayer(1), packet.getlayer(LAYERS[self.kind])
        return Ends(self.family, ip.src, l4.sport, ip.dst, l4.dport, self.kind)

    def answer(self, seen: Ends, flags: str = "A", **fields: Any) -> Outcome:
        """The backend's next packet."""
        return self.rig.send(seen.back.frame(flags=flags, **fields))


def served(family: Family, kind: str = "TCP", port: int = 8080, count: int = 4) -> Service:
    """A service at port 80 whose backends listen at another."""
    backends = family.served(port, kind)[:count]
    return Service("web", [family.at(family.vip, 80, kind)], backends)


def on_the_way(frame: Packet, mac: str = ROUTER_MAC) -> bytes:
    """The frame as it leaves: of the balancer, for the next hop."""
    frame = frame.copy()
    frame.src, frame.dst = OWN_MAC, mac
    return bytes(frame)
