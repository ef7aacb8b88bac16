"""The backend's side of DSR, only test-run: what it makes of frames that come in and go out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Final

import numpy as np
from attrs import frozen
from scapy.layers.inet import ICMP, TCP, UDP
from scapy.layers.inet6 import ICMPv6DestUnreach, IPv6ExtHdrFragment
from scapy.packet import Packet, Raw

from pyciliumlib.flow import DropReason
from pyciliumlib.flow.metrics import Metrics
from pyciliumlib.kernel import Map, Program
from pyciliumlib.loadbalancer.program.dsr_programs import DSRPrograms
from pyciliumlib.loadbalancer.program.loading import Hook
from pyciliumlib.types import Direction, address_to_bytes, parse_address
from tests.bpf.balancer import DROP, PASS
from tests.bpf.card import check_sum
from tests.bpf.dsr_packets import CLIENT_PORT, End, Shape, Way

_TC_ACTIONS: Final = {0: PASS, 2: DROP}
FLOWS: Final = 1024


@frozen
class Passed:
    """What became of one frame; `reason` is FORWARDED where it was changed, None where not."""

    data: bytes
    reason: DropReason | None

    @property
    def dropped(self) -> bool:
        return bool(self.reason)


class Side:
    """The programs, and the maps that they share."""

    def __init__(self, maps: dict[str, Map], take: Program, restore: Program, hook: Hook) -> None:
        self.maps, self.hook = maps, hook
        self._take, self._restore = take, restore

    def take(self, frame: bytes) -> Passed:
        """A frame that comes in."""
        return self._run(self._take, Direction.INGRESS, frame)

    def restore(self, frame: bytes) -> Passed:
        """A frame that goes out."""
        return self._run(self._restore, Direction.EGRESS, frame)

    def check_sums(self, taken: bytes, restored: bytes) -> None:
        """Once more, as with a card that has summed up the packets."""
        if self.hook is Hook.TC:
            check_sum(self._take, taken)
        check_sum(self._restore, restored)

    def reset(self, addresses: Iterable[str] = (), directors: Iterable[str] = ()) -> None:
        """No flows; these services and directors."""
        for name in ("dsr_flows", "dsr_pending", "dsr_fragments", "dsr_addresses", "dsr_directors"):
            self.maps[name].clear()
        keys, values = self.maps["dsr_ports"].lookup_batch()
        self.maps["dsr_ports"].update_batch(keys, np.zeros_like(values))
        for name, there in (("dsr_addresses", addresses), ("dsr_directors", directors)):
            for address in there:
                self.maps[name][address_to_bytes(parse_address(address))] = 1

    def flows(self) -> tuple[int, int]:
        """How many are known, and how many are new."""
        return len(self.maps["dsr_flows"]), len(self.maps["dsr_pending"])

    def _run(self, program: Program, direction: Direction, frame: bytes) -> Passed:
        before = self._counts(direction)
        result = program.run(frame)
        tc = direction is Direction.EGRESS or self.hook is Hook.TC
        action = _TC_ACTIONS[result.retval] if tc else result.retval
        counted = [reason for reason, n in self._counts(direction).items() if n > before[reason]]
        reason = counted[0] if counted else None
        assert (action == DROP) is bool(reason), (action, reason)
        return Passed(result.packet, reason)

    def _counts(self, direction: Direction) -> dict[DropReason, int]:
        metrics = Metrics.read(self.maps["metrics"])
        return {reason: metrics.packets(reason, direction) for reason in DropReason}


@contextmanager
def side(hook: Hook, *, check_directors: bool = False) -> Iterator[Side]:
    """Load the programs for a hook."""
    programs = DSRPrograms(FLOWS, check_directors=check_directors)
    with ExitStack() as stack:
        loaded = stack.enter_context(programs.load())
        take = loaded.programs["dsr_take_tc"]
        if hook is not Hook.TC:
            take = stack.enter_context(programs.load_xdp(loaded)).programs["dsr_take_xdp"]
        yield Side(dict(loaded.maps), take, loaded.programs["dsr_restore_tc"], hook)


# ---------------------------------------------------------------------- what backends send


def _tcp(flags: str) -> Any:
    def parts(way: Way) -> list[Packet]:
        segment = TCP(sport=way.client[1], dport=way.to[1], flags=flags, seq=3, ack=8)
        return [way.ip() / segment / Raw(way.payload)]

    return parts


def _udp(way: Way) -> list[Packet]:
    return [way.ip() / UDP(sport=way.client[1], dport=way.to[1]) / Raw(way.payload)]


def _fragments(way: Way) -> list[Packet]:
    header = 20 if way.family.version == 4 else 40
    datagram = UDP(sport=way.client[1], dport=way.to[1]) / Raw(bytes(2000))
    whole = bytes(way.ip() / datagram)[header:]
    if way.family.version == 4:
        first = way.ip(flags="MF", frag=0, id=9, proto=17) / Raw(whole[:1200])
        return [first, way.ip(frag=150, id=9, proto=17) / Raw(whole[1200:])]
    return [
        way.ip() / IPv6ExtHdrFragment(offset=0, m=1, id=9, nh=17) / Raw(whole[:1200]),
        way.ip() / IPv6ExtHdrFragment(offset=150, m=0, id=9, nh=17) / Raw(whole[1200:]),
    ]


def _unreachable(way: Way) -> list[Packet]:
    """Nobody listens: the error quotes what the client sent."""
    ports = {"sport": way.to[1], "dport": way.client[1]}
    quoted = way.ip(way.to[0], way.client[0]) / UDP(**ports) / Raw(way.payload)
    if way.family.version == 4:
        return [way.ip() / ICMP(type=3, code=3) / Raw(bytes(quoted))]
    return [way.ip() / ICMPv6DestUnreach(code=4) / Raw(bytes(quoted))]


#: Here the `client` of a way is the end that sends: the backend, or what clients see of it.
SYN_ACK: Final = Shape("SYN ACK", _tcp("SA"))
DATA: Final = Shape("data", _tcp("PA"))
FIN: Final = Shape("FIN", _tcp("FA"))
RST: Final = Shape("RST", _tcp("RA"))
REPLY: Final = Shape("reply", _udp, protocol="UDP")
LONG_REPLY: Final = Shape("fragments", _fragments, protocol="UDP")
UNREACHABLE: Final = Shape("unreachable", _unreachable, protocol="UDP")
ANSWERS: Final = (SYN_ACK, DATA, FIN, RST, REPLY, LONG_REPLY, UNREACHABLE)


def answer(shape: Shape, family: Any, sender: End) -> list[bytes]:
    """The IP packets of an answer to the usual client."""
    return shape.on(Way(family, sender, (family.client, CLIENT_PORT)))
