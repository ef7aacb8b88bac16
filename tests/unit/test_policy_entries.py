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
    KEY_DTYPE,
    NO_PROXY,
    VALUE_DTYPE,
    EntryValue,
    PolicyEntries,
    Slot,
    precedence,
)
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
    return FakeMap("lpm_trie", KEY_DTYPE, VALUE_DTYPE, max_entries)


def _wanted() -> PolicyEntries:
    slots = [Slot(Direction.INGRESS, Protocol.TCP, port, 16) for port in (80, 443)]
    return PolicyEntries.of([(slot, EntryValue(ALLOW, 1)) for slot in slots], 5)


def test_a_plan_is_what_differs() -> None:
    """New keys, changed values and stale keys, each once."""
    held, wanted = _map(), _wanted()
    slot = Slot(Direction.INGRESS, Protocol.TCP, 80, 16)
    old = PolicyEntries.concatenate(
        [one(slot, EntryValue(DENY, 2), 5), one(slot, EntryValue(DENY, 2), 6)]
    )
    table.sync(old, held)
    steps = table.drift(wanted, held)
    assert str(steps) == "1 to add, 1 to change, 1 to go"
    table.apply(steps, held)
    assert not table.drift(wanted, held)
    assert len(held) == 2


def test_a_map_of_another_layout_is_refused() -> None:
    """Writing bytes into a map that reads them otherwise would be a wrong policy."""
    with pytest.raises(LayoutError, match="key"):
        table.sync(_wanted(), FakeMap("hash", "u4", "u8", 4))


def test_a_full_map_says_so() -> None:
    """What has no place is an error, not a policy with holes that nobody knows of."""
    with pytest.raises(MapFullError):
        table.sync(_wanted(), _map(1))


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
