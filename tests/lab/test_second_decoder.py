"""What the programs put on the wire, read by Wireshark's dissectors.

Elsewhere scapy judges the packets. Here a second decoder does, which nobody of this project wrote
and which knows these formats from other networks: packets of real connections are taken off the
wire behind the director and before the client, and tshark says what they are. Every checksum that
it finds has to be good by its own sums.
"""

from __future__ import annotations

import contextlib
import ipaddress
import shutil
import socket
import subprocess
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest
from attrs import frozen
from scapy.utils import wrpcap

from pyciliumlib.loadbalancer import LoadBalancerConfig, Service
from pyciliumlib.loadbalancer.program import LoadBalancer
from pyciliumlib.loadbalancer.program.loading import Hook
from pyciliumlib.net import NetNS
from tests.bpf.sockets import at
from tests.lab.balancer_scene import CLIENT, DIRECTOR, OTHER_PORT, VIP, backend_address
from tests.lab.test_dsr import AT, Sides, sides
from tests.lab.test_load_balancer import SIZES, Place

VERSIONS = pytest.mark.parametrize("version", [4, 6], ids=["IPv4", "IPv6"])
PROTOCOLS = pytest.mark.parametrize("protocol", ["TCP", "UDP"])
WAYS = ("ipip", "opt", "geneve", "snat")
#: The port of the service and that of its backends; IP in IP changes none.
PORTS = {"TCP": (80, OTHER_PORT), "UDP": (53, 5353)}
ETH_P_ALL, SO_RCVBUFFORCE = 3, 33
GOOD, ABSENT = "1", "3"


# ---------------------------------------------------------------------- from the wire to tshark


class Tap:
    """The frames that pass a device in one direction, from the moment it is made."""

    def __init__(self, netns: NetNS, device: str, *, outgoing: bool) -> None:
        self._outgoing = outgoing
        self._socket = netns.socket(socket.AF_PACKET, socket.SOCK_RAW)
        self._socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 22)
        self._socket.bind((device, ETH_P_ALL))
        self._socket.setblocking(False)

    def frames(self) -> list[bytes]:
        """Those that came since the last time."""
        found = []
        with contextlib.suppress(BlockingIOError):
            while True:
                data, (_, _, kind, *_) = self._socket.recvfrom(1 << 16)
                if (kind == socket.PACKET_OUTGOING) is self._outgoing:
                    found.append(data)
        return found

    def close(self) -> None:
        self._socket.close()


@frozen
class Decoded:
    """One packet as tshark reads it: what it shows of each field, outermost first."""

    shown: dict[str, list[str]]
    raw: dict[str, list[str]]

    @classmethod
    def from_pdml(cls, packet: ElementTree.Element) -> Decoded:
        """Fields without a name, as options that it does not know, go by what it says of them."""
        shown, raw = defaultdict(list), defaultdict(list)
        for one in packet.iter():
            name = one.get("name") or one.get("show", "")
            shown[name].append(one.get("show", ""))
            raw[name].append(one.get("value", ""))
        return cls(shown, raw)

    @property
    def layers(self) -> str:
        """The headers, without what the application says in them."""
        names = self.shown["frame.protocols"][0].split(":")
        return ":".join(name for name in names if name in _LAYERS)

    @property
    def opens(self) -> bool:
        return self.shown["tcp.flags.syn"] == ["1"] and self.shown["tcp.flags.ack"] == ["0"]

    def ends(self, version: int) -> list[tuple[str, str]]:
        """Source and destination of each IP header."""
        name = "ip" if version == 4 else "ipv6"
        return list(zip(self.shown[f"{name}.src"], self.shown[f"{name}.dst"], strict=True))

    def ports(self, protocol: str) -> list[tuple[int, int]]:
        """Those of each header of TCP or UDP."""
        source, to = (self.shown[f"{protocol.lower()}.{end}port"] for end in ("src", "dst"))
        return list(zip(map(int, source), map(int, to), strict=True))

    def check_sums(self) -> None:
        """Each header has its checksum, and it is good; that of Geneve over IPv4 alone is 0."""
        for layer in ("ip", "tcp", "udp"):
            sums = list(self.shown[f"{layer}.checksum.status"])
            assert len(sums) == self.layers.split(":").count(layer), (layer, sums)
            if layer == "udp" and ":ip:udp:geneve" in self.layers:
                assert sums.pop(0) == ABSENT
            assert set(sums) <= {GOOD}, (layer, sums)
        assert not self.shown["_ws.malformed"]


_LAYERS = {"eth", "ip", "ipv6", "ipv6.dstopts", "tcp", "udp", "geneve", "icmp", "icmpv6"}


def decode(frames: list[bytes], pcap: Path) -> list[Decoded]:
    """What tshark says of the frames."""
    assert shutil.which("tshark"), "the tests need tshark: make build/stamps/test"
    wrpcap(str(pcap), frames, linktype=1)
    checked = [f"-o{layer}.check_checksum:TRUE" for layer in ("ip", "tcp", "udp")]
    # the servers of the scene speak nothing that is spoken at their ports
    for protocol in ("dns", "mdns", "http"):
        checked += ["--disable-protocol", protocol]
    command = ["tshark", "-n", "-r", str(pcap), "-T", "pdml", *checked]
    said = subprocess.run(command, capture_output=True, timeout=60)
    assert said.returncode == 0, said.stderr
    packets = ElementTree.fromstring(said.stdout).findall("packet")
    assert len(packets) == len(frames)
    return [Decoded.from_pdml(packet) for packet in packets]


# ---------------------------------------------------------------------- real connections


@frozen
class Captured:
    """What passed of a few connections to the one backend."""

    version: int
    protocol: str
    backend_port: int
    to_backend: list[Decoded]
    to_client: list[Decoded]

    @property
    def service(self) -> tuple[str, int]:
        return VIP[self.version], PORTS[self.protocol][0]

    @property
    def backend(self) -> tuple[str, int]:
        return backend_address(1, self.version), self.backend_port


@pytest.fixture(scope="module", params=[Hook.NATIVE, Hook.TC], ids=str)
def place(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Sides]:
    """Devices leave no checksum to be filled in: at tc neither, so that there are some to check."""
    with sides(tmp_path_factory.mktemp("decoder"), request.param, offloads=False) as made:
        yield made


def capture(place: Sides, way: str, version: int, protocol: str, pcap: Path) -> Captured:
    """Talk to the service, and read what went from the director, and what came to the client."""
    port, other = PORTS[protocol]
    backend = port if way == "ipip" else other
    forwarding = ("snat", "opt") if way == "snat" else ("dsr", way)
    config = LoadBalancerConfig("maglev", *forwarding, acceleration=AT[place.hook])
    served = Service(
        "decoded",
        [at(VIP[version], port, protocol)],
        [at(backend_address(1, version), backend, protocol)],
    )
    scene = place.scene
    scene.hush()
    with scene.director.call(lambda: LoadBalancer("eth0", config=config, sizes=SIZES)) as balancer:
        Place(scene, balancer).serve(served)
        with (
            contextlib.closing(Tap(scene.router, "director", outgoing=False)) as sent,
            contextlib.closing(Tap(scene.router, "up0", outgoing=True)) as answered,
        ):
            ask = scene.ask if protocol == "TCP" else scene.ask_udp
            assert {ask(version).split()[0] for _ in range(3)} == {"b1"}
            sent_on, came = sent.frames(), answered.frames()
    read = decode(sent_on + came, pcap)
    layer = ":" + protocol.lower()
    there, back = (
        [one for one in part if layer in one.layers]
        for part in (read[: len(sent_on)], read[len(sent_on) :])
    )
    if way == "snat":  # whose answers leave the director, too
        there = [one for one in there if one.ends(version)[-1][1] != CLIENT[version]]
    return Captured(version, protocol, backend, there, back)


@PROTOCOLS
@VERSIONS
@pytest.mark.parametrize("way", WAYS)
def test_decoded(place: Sides, way: str, version: int, protocol: str, tmp_path: Path) -> None:
    """Outer and inner headers, what tells of the service, and all checksums, both ways."""
    seen = capture(place, way, version, protocol, tmp_path / "seen.pcap")
    assert len(seen.to_backend) >= (3 if protocol == "UDP" else 9)
    assert len(seen.to_client) >= 3
    for packet in seen.to_backend:
        packet.check_sums()
        CHECKS[way](seen, packet)
    for packet in seen.to_client:
        packet.check_sums()
        assert packet.ends(version) == [(VIP[version], CLIENT[version])]
        assert {source for source, _ in packet.ports(protocol)} == {seen.service[1]}
    if protocol == "TCP":
        # one may be sent again, while a router on the way back looks for the client
        opened = {packet.ports(protocol)[-1] for packet in seen.to_backend if packet.opens}
        assert len(opened) == 3


def ip(seen: Captured) -> str:
    return "ip" if seen.version == 4 else "ipv6"


def check_ipip(seen: Captured, packet: Decoded) -> None:
    """IP in IP, or IPv6 in IPv6: from the director to the backend, and within as it came."""
    name = ip(seen)
    assert packet.layers == f"eth:{name}:{name}:{seen.protocol.lower()}"
    outer, inner = packet.ends(seen.version)
    assert outer == (DIRECTOR[seen.version], seen.backend[0])
    assert inner == (CLIENT[seen.version], seen.service[0])
    assert [to for _, to in packet.ports(seen.protocol)] == [seen.service[1]]


def check_opt(seen: Captured, packet: Decoded) -> None:
    """For the backend; the service is in an option of each SYN and each datagram."""
    tells = seen.protocol == "UDP" or packet.opens
    assert packet.ends(seen.version) == [(CLIENT[seen.version], seen.backend[0])]
    assert [to for _, to in packet.ports(seen.protocol)] == [seen.backend[1]]
    address, port = ipaddress.ip_address(seen.service[0]).packed, seen.service[1]
    if seen.version == 4:
        data = bytes([0x9A, 8]) + port.to_bytes(2, "little") + address[::-1]
        assert packet.raw["Unknown (0x9a) (8 bytes)"] == [data.hex()] * tells
        assert packet.shown["ip.hdr_len"] == ["28" if tells else "20"]
        return
    data = address + port.to_bytes(2, "big") + bytes(2)
    assert packet.raw["ipv6.opt.type"] == ["1b"] * tells
    assert packet.raw["ipv6.opt.unknown"] == [data.hex()] * tells
    assert ("ipv6.dstopts" in packet.layers) is tells


def check_geneve(seen: Captured, packet: Decoded) -> None:
    """A frame in Geneve for the backend's node; the TLV comes with SYNs and with datagrams."""
    tells = seen.protocol == "UDP" or packet.opens
    name = ip(seen)
    assert packet.layers == f"eth:{name}:udp:geneve:eth:{name}:{seen.protocol.lower()}"
    outer, inner = packet.ends(seen.version)
    assert outer == (DIRECTOR[seen.version], seen.backend[0])
    assert inner == (CLIENT[seen.version], seen.backend[0])
    assert packet.ports("UDP")[0][1] == 6081
    assert packet.ports(seen.protocol)[-1][1] == seen.backend[1]
    assert packet.shown["geneve.vni"] == ["0x000002"]
    assert packet.raw["geneve.proto_type"] == ["6558"]
    assert packet.shown["geneve.flags.critical"] == ["1" if tells else "0"]
    address, port = ipaddress.ip_address(seen.service[0]).packed, seen.service[1]
    data = address + port.to_bytes(2, "big") + bytes(2)
    assert packet.raw["geneve.option.class"] == ["014b"] * tells
    assert packet.raw["geneve.option.type"] == ["81"] * tells
    assert packet.raw["geneve.option.unknown.data"] == [data.hex()] * tells


def check_snat(seen: Captured, packet: Decoded) -> None:
    """From the director's address and one of its ports, for the backend: nothing else in it."""
    assert packet.layers == f"eth:{ip(seen)}:{seen.protocol.lower()}"
    assert packet.ends(seen.version) == [(DIRECTOR[seen.version], seen.backend[0])]
    ((source, to),) = packet.ports(seen.protocol)
    assert to == seen.backend[1]
    assert 36864 <= source <= 65535


CHECKS = {"ipip": check_ipip, "opt": check_opt, "geneve": check_geneve, "snat": check_snat}


def test_a_bad_checksum_is_seen(place: Sides, tmp_path: Path) -> None:
    """The decoder's own verification: one bit wrong in a header or in the data is told."""
    tap = Tap(place.scene.router, "up0", outgoing=True)
    with contextlib.closing(tap), place.balancing("ipip") as there:
        there.serve(Service("web", [at(VIP[4], 80)], [at(backend_address(1, 4), 80)]))
        place.scene.ask(4)
        good = next(frame for frame in tap.frames() if frame[12:14] == b"\x08\x00")
    (decoded,) = decode([good], tmp_path / "good.pcap")
    decoded.check_sums()
    for at_byte in (22, len(good) - 1):  # the TTL, and the last that TCP has
        bad = bytearray(good)
        bad[at_byte] ^= 1
        (decoded,) = decode([bytes(bad)], tmp_path / "bad.pcap")
        with pytest.raises(AssertionError):
            decoded.check_sums()
