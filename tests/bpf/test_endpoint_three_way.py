"""For random policies the three faces agree: the words, the table's lookup, the BPF program.

The reference here is written from the words of docs/design.md, without a trie: it looks at every
entry, which the table's lookup and the program do not.
"""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyciliumlib.flow import DropReason
from pyciliumlib.policy.entries import (
    ALLOW_BYTE,
    AUTH_EXPLICIT,
    DENY_BYTE,
    NO_PROXY,
    PASS_BYTE,
    EntryValue,
    PolicyEntries,
    Slot,
    precedence,
)
from pyciliumlib.policy.table import PolicyLookup
from pyciliumlib.types import Direction, Protocol
from tests.bpf.harness import CLIENT, Rig
from tests.bpf.packets import V4, V6, Family
from tests.bpf.prober import Answer, Probe, Prober
from tests.scale import examples

IDENTITIES = (300, 301, 302, 0x01000005)
ANYONE = 0
REDIRECT_BYTE = 2
PROTOCOLS = (Protocol.TCP, Protocol.UDP, Protocol.SCTP)
PORTS = (1, 79, 80, 81, 95, 96, 8080, 0x7FFF, 0x8000, 65535)

Rows = dict[tuple[int, Slot], EntryValue]


def reference(rows: Rows, probe: Probe) -> Answer:
    """Of the entries that match, the one of the highest precedence.

    Of several such, the narrowest, and then the identity's own. Within one identity a narrower
    entry hides all wider ones. An entry that says nothing of authentication takes the word of
    another of its precedence. What an audited entry keeps out passes, if not to a proxy.
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
    others = [other for _, other in best.values() if other.precedence == value.precedence]
    said = [value] if value.auth & AUTH_EXPLICIT else others
    denial = 0
    if value.precedence & 0xFF == DENY_BYTE:
        denial = DropReason.POLICY_DENY
    elif value.precedence & 0xFF == PASS_BYTE:
        denial = DropReason.POLICY
    elif any(entry.auth & ~AUTH_EXPLICIT for entry in said):
        denial = DropReason.POLICY_AUTH_REQUIRED
    if denial and not value.audit:
        return Answer(denial, value.rule)
    reason = DropReason.NO_PROXY if value.proxy_port else 0
    return Answer(reason, value.rule, bool(denial))


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
        action = draw(st.sampled_from((ALLOW_BYTE, REDIRECT_BYTE, DENY_BYTE, PASS_BYTE)))
        order = precedence(action, draw(st.sampled_from((0, 0, 0, 1, 0xFFFFFF))))
        proxy = NO_PROXY if action == REDIRECT_BYTE else 0
        identity = draw(st.sampled_from((ANYONE, *IDENTITIES)))
        auth = 0 if action == DENY_BYTE else draw(st.sampled_from((0, 0, 0, 1, 2, 0x80, 0x81)))
        rows[identity, slot] = EntryValue(order, cookie, proxy, auth, draw(st.booleans()))
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


@pytest.mark.parametrize("families", [(V4, V6), (V6, V4)], ids=["even", "odd"])
@settings(
    max_examples=examples(40),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(rows=policies())
def test_reference_table_and_program_agree(
    rig: Rig, families: tuple[Family, Family], rows: Rows
) -> None:
    """240 probes a policy: each identity, protocol and port, in both directions."""
    entries = _entries(rows)
    rig.clear_rules(CLIENT)
    rig.rules(CLIENT, entries.keys, entries.values)
    lookup = PolicyLookup.of(entries)
    for probe, answer in zip(PROBES, Prober(rig, families).ask(PROBES), strict=True):
        expected = reference(rows, probe)
        hit = lookup.lookup(probe.direction, probe.identity, probe.protocol, probe.port)
        assert Answer(hit.drop_reason, hit.rule, hit.audited) == expected, probe
        assert answer == expected, probe
