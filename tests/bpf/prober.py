"""Many packets against one policy: what the programs say to each, by identity and port."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence

from attrs import frozen

from pyciliumlib.flow import FlowType
from pyciliumlib.types import Direction, Protocol, parse_address
from tests.bpf.harness import CLIENT, FROM, SHOT, TO, Rig
from tests.bpf.packets import FAMILIES, V4, V6, Family

#: The flag of an event about what only an audit let pass.
AUDITED = 16
#: An answer to a ping is judged as the ping, so it is none of these.
ICMP_REPLIES = {(Protocol.ICMP, 0), (Protocol.ICMPv6, 129)}
_ICMP = {Protocol.ICMP: V4, Protocol.ICMPv6: V6}
_BUILDERS: dict[Protocol, Callable[[Family, str, str], bytes]] = {
    Protocol.TCP: Family.tcp,
    Protocol.UDP: Family.udp,
    Protocol.SCTP: Family.sctp,
}
_SOURCE_PORTS = itertools.cycle(range(1024, 65000))


@frozen
class Probe:
    """The first packet of a connection to or from `identity`; the port is of the one it opens to.

    ICMP has a type in place of the port, and is of its own family.
    """

    direction: Direction
    identity: int
    protocol: Protocol
    port: int


@frozen
class Answer:
    """A verdict: the drop reason, and the cookie of the entry that decided.

    `audited` is whether only an audit let it pass.
    """

    reason: int
    rule: int
    audited: bool = False


class Prober:
    """Puts probes to the policy of the endpoint CLIENT, half of them in each of the families.

    With `host` it is the policy of the node, at its uplink.

    Which half follows the probe's numbers; other way round with the families in another order.
    Frames are built once and patched. Every identity has an address, which is no endpoint's.
    """

    def __init__(
        self, rig: Rig, families: Sequence[Family] = FAMILIES, *, host: bool = False
    ) -> None:
        self.rig = rig
        self._families = families
        self._host = host
        self._hooks = ("to_host", "from_host") if host else (TO, FROM)
        ifindex = rig.where.uplink if host else rig.where.ifindex[CLIENT]
        self._ctx = {"ifindex": ifindex}
        self._places: dict[int, int] = {}

    def ask(self, probes: Sequence[Probe]) -> list[Answer]:
        """What the programs say, in order; each packet is the first of its flow."""
        self.rig.forget_flows()
        self.rig.drain_array()
        distinct = dict.fromkeys(probes)
        with self.rig.where.netns.enter():
            dropped = [self._send(probe) for probe in distinct]
        events = self.rig.drain_array()
        verdicts = events[events["type"] == FlowType.VERDICT]
        assert verdicts["direction"].tolist() == [int(probe.direction) for probe in distinct]
        assert (verdicts["reason"] != 0).tolist() == dropped
        audited = (verdicts["flags"] & AUDITED != 0).tolist()
        columns = zip(verdicts["reason"].tolist(), verdicts["rule"].tolist(), audited, strict=True)
        answers = dict(zip(distinct, (Answer(*row) for row in columns), strict=True))
        return [answers[probe] for probe in probes]

    def _send(self, probe: Probe) -> bool:
        """Whether the packet was dropped."""
        out = probe.direction is Direction.EGRESS
        if probe.protocol in _ICMP:
            self.rig.forget_flows()  # of two types there may be one flow
        result = self.rig.programs[self._hooks[out]].run(self._frame(probe), self._ctx)
        return bool(result.retval == SHOT)

    def _frame(self, probe: Probe) -> bytes:
        family = _ICMP.get(probe.protocol) or self._families[(probe.identity + probe.port) % 2]
        own = family.host if self._host else family.client
        frame = bytearray(_template(family, own, probe.direction, probe.protocol))
        address = self._address(family, probe.identity)
        source = 26 if family.version == 4 else 22
        at = source + len(address) * (probe.direction is Direction.EGRESS)
        frame[at : at + len(address)] = address
        if probe.protocol in _ICMP:
            frame[family.headers] = probe.port
        else:
            ports = next(_SOURCE_PORTS).to_bytes(2, "big") + probe.port.to_bytes(2, "big")
            frame[family.headers : family.headers + 4] = ports
        return bytes(frame)

    def _address(self, family: Family, identity: int) -> bytes:
        if identity not in self._places:
            place = self._places[identity] = len(self._places)
            for each in FAMILIES:
                self.rig.set_identity(_place(each, place), identity)
        return parse_address(_place(family, self._places[identity])).packed


def _place(family: Family, place: int) -> str:
    if family.version == 4:
        return f"10.200.{place >> 8}.{place & 255}"
    return f"fd00:200::{place:x}"


@functools.cache
def _template(family: Family, own: str, direction: Direction, protocol: Protocol) -> bytes:
    """A packet to or from the endpoint; the other end's address is still to be set."""
    src, dst = own, family.peer
    if direction is Direction.INGRESS:
        src, dst = dst, src
    if protocol in _ICMP:
        return family.icmp_message(src, dst, family.echo_request)
    if protocol.has_ports:
        return _BUILDERS[protocol](family, src, dst)
    return family.protocol(src, dst, protocol)
