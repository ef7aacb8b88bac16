"""The bytes of entries, and the plan that brings them into a map."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from pyciliumlib.errors import LayoutError, MapFullError
from pyciliumlib.policy import Direction, Verdict, table
from pyciliumlib.policy.entries import (
    ALLOW_BYTE,
    DENY_BYTE,
    NO_PROXY,
    VALUE_DTYPE,
    EntryValue,
    PolicyEntries,
    Slot,
    precedence,
)
from pyciliumlib.policy.grouped import GroupedEntries
from pyciliumlib.policy.nodes import NODE_DTYPE, ROOTS_DTYPE, PolicyNodes, visible
from pyciliumlib.testing import FakeMap
from pyciliumlib.types import Protocol

ALLOW, DENY = precedence(ALLOW_BYTE), precedence(DENY_BYTE)
REDIRECT = precedence(154)


def one(slot: Slot, value: EntryValue, identity: int) -> PolicyEntries:
    return PolicyEntries.of([(slot, value)], identity)


@pytest.mark.parametrize(
    ("slot", "value", "key", "data"),
    [
        (
            Slot(Direction.EGRESS, Protocol.TCP, 8080, 16),
            EntryValue(ALLOW, 7),
            struct.pack("=IIBB", 64, 1000, 1, 6) + struct.pack(">H", 8080),
            struct.pack(">H", 0) + struct.pack("=BBIIB3x", 0, 24, ALLOW, 7, 0),
        ),
        (
            Slot(Direction.INGRESS, Protocol.UDP, 0x4000, 2),
            EntryValue(REDIRECT, 8, NO_PROXY),
            struct.pack("=IIBB", 50, 1000, 0, 17) + struct.pack(">H", 0x4000),
            struct.pack(">H", 65535) + struct.pack("=BBIIB3x", 0, 10, REDIRECT, 8, 0),
        ),
        (
            Slot(Direction.INGRESS),
            EntryValue(DENY, 9),
            struct.pack("=IIBBH", 40, 1000, 0, 0, 0),
            struct.pack(">H", 0) + struct.pack("=BBIIB3x", 1, 0, DENY, 9, 0),
        ),
    ],
    ids=["allow a port", "redirect a range", "deny all"],
)
def test_the_bytes_are_those_of_the_header(
    slot: Slot, value: EntryValue, key: bytes, data: bytes
) -> None:
    """Keys and values as `bpf/lib/policy.h` lays them out, ports in network order."""
    entries = one(slot, value, 1000)
    assert (key, data) == (entries.keys.tobytes(), entries.values.tobytes())


def test_putting_entries_together_keeps_their_bytes() -> None:
    """numpy would turn ports in network order round when it joins arrays."""
    first = one(Slot(Direction.EGRESS, Protocol.TCP, 80, 16), EntryValue(ALLOW, 1), 5)
    second = one(Slot(Direction.EGRESS, Protocol.TCP, 443, 16), EntryValue(REDIRECT, 1, 3), 6)
    both = PolicyEntries.concatenate([first, second])
    assert first.keys.tobytes() + second.keys.tobytes() == both.keys.tobytes()
    assert first.values.tobytes() + second.values.tobytes() == both.values.tobytes()
    many = second.for_identities(np.array([8, 9], np.uint32))
    assert many.keys["identity"].tolist() == [8, 9]
    assert second.keys.tobytes()[8:] == many.keys[1:].tobytes()[8:]


def test_wider_slots_are_all_that_cover_one() -> None:
    """From 80/TCP up over each prefix of the port to the protocol, and to everything."""
    wider = list(Slot(Direction.INGRESS, Protocol.TCP, 80, 16).wider())
    assert Slot(Direction.INGRESS, Protocol.TCP, 80, 15) == wider[0]
    assert [Slot(Direction.INGRESS, Protocol.TCP), Slot(Direction.INGRESS)] == wider[-2:]
    assert len(wider) == 17


def _map(max_entries: int = 16) -> FakeMap:
    return FakeMap("hash", "u4", ROOTS_DTYPE, max_entries)


def _nodes(rows: int = 64) -> PolicyNodes:
    return PolicyNodes(
        FakeMap("array", "u4", NODE_DTYPE, rows), FakeMap("array", "u4", VALUE_DTYPE, rows)
    )


def _wanted() -> PolicyEntries:
    slots = [Slot(Direction.INGRESS, Protocol.TCP, port, 16) for port in (80, 443)]
    return PolicyEntries.of([(slot, EntryValue(ALLOW, 1)) for slot in slots], 5)


def test_a_plan_is_what_differs() -> None:
    """New keys, changed values and stale keys, each once."""
    held, nodes, wanted = _map(), _nodes(), GroupedEntries.of(_wanted())
    slot = Slot(Direction.INGRESS, Protocol.TCP, 80, 16)
    old = PolicyEntries.concatenate(
        [one(slot, EntryValue(DENY, 2), 5), one(slot, EntryValue(DENY, 2), 6)]
    )
    table.sync(GroupedEntries.of(old), held, nodes)
    steps = table.drift(wanted, held, nodes)
    assert str(steps) == "1 to add, 1 to change, 1 to go"
    assert str(table.sync(wanted, held, nodes)) == str(steps)
    assert not table.drift(wanted, held, nodes)
    assert set(held) == {0, 5}


def test_a_map_of_another_layout_is_refused() -> None:
    """Writing bytes into a map that reads them otherwise would be a wrong policy."""
    with pytest.raises(LayoutError, match="key"):
        table.sync(GroupedEntries.of(_wanted()), FakeMap("hash", "u4", "u8", 4), _nodes())


def test_a_full_map_says_so() -> None:
    """What has no place is an error, not a policy with holes that nobody knows of."""
    with pytest.raises(MapFullError):
        table.sync(GroupedEntries.of(_wanted()), _map(1), _nodes())
    held, few = _map(), _nodes(8)
    with pytest.raises(MapFullError, match="all endpoints share"):
        table.sync(GroupedEntries.of(_wanted()), held, few)
    assert len(held) == 0


def test_what_nobody_can_meet() -> None:
    """A range that narrower entries fill is not in the kernel; one that they leave open is."""
    slots = [Slot(Direction.EGRESS, Protocol.TCP, *place) for place in ((80, 15), (80, 16))]
    last = Slot(Direction.EGRESS, Protocol.TCP, 81, 16)
    for filled in (False, True):
        listed = [*slots, last] if filled else slots
        entries = PolicyEntries.of([(slot, EntryValue(ALLOW, slot.bits)) for slot in listed], 7)
        found = {slot for _, slot, _ in visible(GroupedEntries.of(entries)).rows()}
        assert found == (set(slots[1:]) | {last} if filled else set(slots))


def test_grouped_entries_are_the_same_entries() -> None:
    """Whoever has equal ones shares a template; nothing is lost and nothing is added."""
    parts = [_wanted().for_identities(np.array([n], np.uint32)) for n in (9, 0, 5)]
    other = one(Slot(Direction.EGRESS), EntryValue(DENY, 3), 6)
    entries = PolicyEntries.concatenate([*parts, other])
    grouped = GroupedEntries.of(entries)
    assert (grouped.counts, grouped.members.tolist()) == ([2, 1], [5, 9, 6])
    assert len(grouped) == len(entries) == 7
    assert not table.plan(grouped.spread(), entries) and not table.plan(entries, grouped.spread())
    assert repr(grouped) == "GroupedEntries(7 entries of 3 identities)"
    assert len(GroupedEntries.of(PolicyEntries.empty())) == 0


def test_rows_are_what_entries_were_made_of() -> None:
    """So a policy that was resolved can be added to by hand."""
    rows = [
        (Slot(Direction.EGRESS), EntryValue(ALLOW, 3)),
        (Slot(Direction.INGRESS, Protocol.UDP), EntryValue(DENY, 4)),
        (Slot(Direction.INGRESS, Protocol.TCP, 80, 13), EntryValue(REDIRECT, 5, NO_PROXY)),
    ]
    found = list(PolicyEntries.of(rows, 700).rows())
    assert found == [(700, slot, value) for slot, value in rows]


def test_an_entry_that_passes_decides_nothing() -> None:
    """Action 0 is a drop in the program, and so it is in the lookup that mirrors it."""
    entries = one(Slot(Direction.INGRESS), EntryValue(precedence(0), 9), 700)
    hit = table.PolicyLookup.of(entries).lookup(Direction.INGRESS, 700, Protocol.TCP, 80)
    assert (hit.verdict, hit.drop_reason) == (Verdict.DENY, table.DROP_POLICY)
