"""For random policies the three faces agree: the words, the table's lookup, the BPF program.

The reference here is written from the words of docs/design.md, without a trie: it looks at every
entry, which the table's lookup and the program do not.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
from attrs import frozen
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyciliumlib.flow import DropReason
from pyciliumlib.policy.entries import (
    ALLOW_BYTE,
    AUTH_EXPLICIT,
    DENY_BYTE,
    NO_PROXY,
    EntryValue,
    PolicyEntries,
    Slot,
    precedence,
)
from pyciliumlib.policy.table import PolicyLookup
from pyciliumlib.types import Direction, Protocol
from tests.bpf.harness import CLIENT, FROM, TO, Rig
from tests.bpf.packets import V4, V6, Family
from tests.scale import examples

IDENTITIES = (300, 301, 302, 0x01000005)
ANYONE = 0
REDIRECT_BYTE = 2
PROTOCOLS = (Protocol.TCP, Protocol.UDP, Protocol.SCTP)
PORTS = (1, 79, 80, 81, 95, 96, 8080, 0x7FFF, 0x8000, 65535)
SOURCE_PORTS = itertools.cycle(range(1024, 65000))


@frozen
class Probe:
    """The first packet of a flow between the client and whoever has `identity`."""

    direction: Direction
    identity: int
    protocol: Protocol
    port: int


@frozen
class Answer:
    """A verdict: the drop reason, and the cookie of the entry that decided."""

    reason: int
    rule: int


Rows = dict[tuple[int, Slot], EntryValue]


def reference(rows: Rows, probe: Probe) -> Answer:
    """Of the entries that match, the one of the highest precedence.

    Of several such, the narrowest, and then the identity's own. Within one identity a narrower
    entry hides all wider ones. An entry that says nothing of authentication takes the word of
    another of its precedence.
    """
    best: dict[int, tuple[Slot, EntryValue]] = {}
    for (identity, slot), value in rows.items():
        if identity in (probe.identity, ANYONE) and _covers(slot, probe):
            held = best.get(identity)
            if held is None or slot.lpm_bits > held[0].lpm_bits:
                best[identity] = slot, value
    if not best:
        return Answer(DropReason.POLICY, 0)
    _, (slot, value) = max(
        best.items(), key=lambda item: (item[1][1].precedence, item[1][0].lpm_bits, item[0] != 0)
    )
    if value.precedence & 0xFF == DENY_BYTE:
        return Answer(DropReason.POLICY_DENY, value.rule)
    others = [other for _, other in best.values() if other.precedence == value.precedence]
    said = [value] if value.auth & AUTH_EXPLICIT else others
    if any(entry.auth & ~AUTH_EXPLICIT for entry in said):
        return Answer(DropReason.POLICY_AUTH_REQUIRED, value.rule)
    return Answer(DropReason.NO_PROXY if value.proxy_port else 0, value.rule)


def _covers(slot: Slot, probe: Probe) -> bool:
    if slot.direction != probe.direction:
        return False
    if not slot.proto:
        return True
    return slot.proto == probe.protocol and (slot.port ^ probe.port) >> (16 - slot.bits) == 0


@st.composite
def policies(draw: st.DrawFn) -> Rows:
    """Entries around a few ports, so that they cover and contradict each other."""
    rows: Rows = {}
    for cookie in range(1, draw(st.integers(1, 24)) + 1):
        protocol = draw(st.sampled_from((Protocol.ANY, *PROTOCOLS)))
        bits = draw(st.sampled_from((0, 1, 9, 12, 15, 16))) if protocol else 0
        port = draw(st.sampled_from(PORTS)) >> (16 - bits) << (16 - bits)
        slot = Slot(draw(st.sampled_from(Direction)), protocol, port, bits)
        action = draw(st.sampled_from((ALLOW_BYTE, REDIRECT_BYTE, DENY_BYTE)))
        order = precedence(action, draw(st.sampled_from((0, 0, 0, 1, 0xFFFFFF))))
        proxy = NO_PROXY if action == REDIRECT_BYTE else 0
        identity = draw(st.sampled_from((ANYONE, *IDENTITIES)))
        auth = 0 if action == DENY_BYTE else draw(st.sampled_from((0, 0, 0, 1, 2, 0x80, 0x81)))
        rows[identity, slot] = EntryValue(order, cookie, proxy, auth)
    return rows


PROBES = [
    Probe(direction, identity, protocol, port)
    for direction in Direction
    for identity in IDENTITIES
    for protocol in PROTOCOLS
    for port in PORTS
]


def _entries(rows: Rows) -> PolicyEntries:
    return PolicyEntries.concatenate(
        [PolicyEntries.of([(slot, value)], identity) for (identity, slot), value in rows.items()]
    )


def _address(family: Family, identity: int) -> str:
    """Where the identity lives."""
    place = IDENTITIES.index(identity) + 100
    return f"10.1.0.{place}" if family is V4 else f"fd01::{place}"


class Prober:
    """Frames are built once; a probe only patches the ports."""

    def __init__(self, rig: Rig, family: Family) -> None:
        self._rig = rig
        self._ports_at = family.headers
        self._ctx = {"ifindex": rig.where.ifindex[CLIENT]}
        build: dict[Protocol, Callable[[str, str], bytes]] = {
            Protocol.TCP: family.tcp,
            Protocol.UDP: family.udp,
            Protocol.SCTP: family.sctp,
        }
        self._frames: dict[tuple[Direction, int, Protocol], bytes] = {}
        for identity, protocol in itertools.product(IDENTITIES, PROTOCOLS):
            address = _address(family, identity)
            rig.set_identity(address, identity)
            self._frames[Direction.EGRESS, identity, protocol] = build[protocol](
                family.client, address
            )
            self._frames[Direction.INGRESS, identity, protocol] = build[protocol](
                address, family.client
            )

    def ask(self, probes: list[Probe]) -> list[Answer]:
        """What the programs say, in order: one verdict event a probe."""
        self._rig.forget_flows()
        for probe in probes:
            frame = bytearray(self._frames[probe.direction, probe.identity, probe.protocol])
            ports = next(SOURCE_PORTS).to_bytes(2, "big") + probe.port.to_bytes(2, "big")
            frame[self._ports_at : self._ports_at + 4] = ports
            hook = FROM if probe.direction is Direction.EGRESS else TO
            self._rig.programs[hook].run(bytes(frame), self._ctx)
        events = self._rig.drain_array()
        verdicts = events[events["type"] == 5]
        columns = zip(verdicts["reason"].tolist(), verdicts["rule"].tolist(), strict=True)
        return [Answer(reason, rule) for reason, rule in columns]


@pytest.mark.parametrize("family", [V4, V6], ids=str)
@settings(
    max_examples=examples(40),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(rows=policies())
def test_reference_table_and_program_agree(rig: Rig, family: Family, rows: Rows) -> None:
    """240 probes a policy: each identity, protocol and port, in both directions."""
    entries = _entries(rows)
    rig.clear_rules(CLIENT)
    rig.rules(CLIENT, entries.keys, entries.values)
    lookup = PolicyLookup.of(entries)
    with rig.where.netns.enter():
        from_program = Prober(rig, family).ask(PROBES)
    for probe, answer in zip(PROBES, from_program, strict=True):
        expected = reference(rows, probe)
        hit = lookup.lookup(probe.direction, probe.identity, probe.protocol, probe.port)
        assert Answer(hit.drop_reason, hit.rule) == expected, probe
        assert answer == expected, probe
