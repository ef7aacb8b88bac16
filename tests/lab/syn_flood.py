"""A flood of SYNs from random sources, by raw frames: `python -m tests.lab.syn_flood JSON`."""

from __future__ import annotations

import json
import random
import socket
import struct
import sys
from pathlib import Path
from typing import Any, Final

from pyciliumlib.lab.processes import Spawner
from pyciliumlib.net import NetNS

ROOT: Final = Path(__file__).parents[2]


def flood(spawner: Spawner, netns: NetNS, plan: dict[str, Any]) -> None:
    """Send `count` frames out of eth0 of a namespace to a port of `to`, by the gateway `mac`."""
    argv = [sys.executable, "-m", "tests.lab.syn_flood", json.dumps(plan)]
    assert spawner.spawn(netns, argv, cwd=ROOT).wait(60) == 0


def main(plan: dict[str, Any]) -> None:
    """The TCP checksums are wrong, so no backend answers; the balancer has the same work."""
    chance = random.Random(plan["count"])
    ethernet = bytes.fromhex(plan["mac"].replace(":", "")) + bytes(6) + b"\x08\x00"
    to = socket.inet_aton(plan["to"])
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as wire:
        wire.bind(("eth0", 0))
        for _ in range(plan["count"]):
            source = struct.pack("!I", 0x0A000000 | chance.getrandbits(24))
            ip = struct.pack("!BBHHHBBH", 0x45, 0, 40, 0, 0, 64, 6, 0) + source + to
            ip = ip[:10] + struct.pack("!H", checksum(ip)) + ip[12:]
            ports = chance.randrange(1024, 65536), plan["port"]
            tcp = struct.pack("!HHIIBBHHH", *ports, chance.getrandbits(32), 0, 0x50, 2, 64240, 0, 0)
            wire.send(ethernet + ip + tcp)


def checksum(header: bytes) -> int:
    """That of an IP header (RFC 1071)."""
    total = sum(struct.unpack(f"!{len(header) // 2}H", header))
    total = (total & 0xFFFF) + (total >> 16)
    return ~(total + (total >> 16)) & 0xFFFF


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
