"""Three faces of the ipcache: a naive list, the model's lookup, the entries of the table."""

from __future__ import annotations

import ipaddress
from typing import Any

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from pyciliumlib.identity import (
    IPCache,
    IPCacheTable,
    Metadata,
    Source,
    addr_hash,
)
from pyciliumlib.testing import FakeMap
from pyciliumlib.types import Address, Network, address_to_bytes

KEY = np.dtype([("prefixlen", "u4"), ("addr", "u1", (16,))])
VALUE = np.dtype([("identity", "u4"), ("flags", "u4")])
CELLS = 8
# Few addresses and many lengths, so that prefixes lie inside each other and change often.
ADDRESSES: list[Address] = [
    ipaddress.ip_address(text)
    for text in ("10.0.0.1", "10.0.0.2", "10.128.0.1", "192.0.2.1", "::1", "fd00::1", "fd00::2")
]
PREFIXES = st.builds(
    lambda address, length: ipaddress.ip_network(
        (address, min(length, address.max_prefixlen)), strict=False
    ),
    st.sampled_from(ADDRESSES),
    st.sampled_from([0, 1, 8, 16, 31, 32, 64, 127, 128]),
)
METADATA = st.none() | st.builds(
    lambda source, identity: Metadata(source, identity=identity),
    st.sampled_from(Source),
    st.integers(1, 5),
)
RESOURCES = st.sampled_from(["a", "b"])


class IPCacheMachine(RuleBasedStateMachine):
    """Says and takes back; after each step all three must agree, and the cells must tell."""

    @initialize(dual_stack=st.booleans())
    def start(self, dual_stack: bool) -> None:
        self.dual_stack = dual_stack
        self.said: dict[tuple[Network, str], Metadata] = {}
        self.entries = FakeMap("lpm_trie", KEY, VALUE, 256)
        self.revisions = FakeMap("array", "u4", "u8", CELLS)
        self.cache = IPCache()
        self.table = IPCacheTable(self.entries, self.revisions, dual_stack)
        self.table.follow(self.cache)
        self.before = self.snapshot()

    def world(self, address: Address) -> int:
        if not self.dual_stack:
            return 2
        return 9 if address.version == 4 else 10

    def naive(self, address: Address) -> int:
        """The longest prefix that says anything, by its highest source and first resource."""
        best: tuple[int, int, str, int] | None = None
        for (prefix, resource), metadata in self.said.items():
            if address in prefix:
                assert metadata.identity is not None
                candidate = (-prefix.prefixlen, -metadata.source, resource, metadata.identity)
                best = candidate if best is None else min(best, candidate)
        return self.world(address) if best is None else best[-1]

    def by_model(self, address: Address) -> int:
        entry = self.cache.lookup(address)
        return self.world(address) if entry is None else entry.identity

    def by_table(self, address: Address) -> int:
        """What bpf/lib/ipcache.h does: one lookup of all 128 bits; a miss is the world."""
        found = self.entries.get((128, address_to_bytes(address)))
        return self.world(address) if found is None else int(found.identity)

    def snapshot(self) -> dict[Address, tuple[int, int, int]]:
        """Identity, and the cells of prefixes and of each address, as a program reads them."""
        cells = list(self.revisions.values())
        return {
            address: (
                self.by_table(address),
                cells[1],
                cells[2 + addr_hash(address_to_bytes(address)) % (CELLS - 2)],
            )
            for address in ADDRESSES
        }

    @rule(
        updates=st.lists(
            st.tuples(
                PREFIXES,
                RESOURCES,
                METADATA,
            ),
            max_size=4,
        )
    )
    def update(self, updates: list[tuple[Network, str, Metadata | None]]) -> None:
        self.cache.update(updates)
        for prefix, resource, metadata in updates:
            before = self.said.get((prefix, resource))
            if metadata is None:
                self.said.pop((prefix, resource), None)
            elif before is None or metadata.source >= before.source:
                self.said[prefix, resource] = metadata

    @rule()
    def somebody_else_writes(self) -> None:
        """A wiped map is put right by one sync."""
        self.entries.clear()
        self.table.sync(self.cache)

    @invariant()
    def all_agree(self) -> None:
        for address in ADDRESSES:
            assert self.naive(address) == self.by_model(address) == self.by_table(address)
        assert not self.table.drift(self.cache)

    @invariant()
    def no_change_is_silent(self) -> None:
        """Where an address has another identity, its cell or the epoch has another number."""
        now = self.snapshot()
        for address, (identity, *cells) in now.items():
            was, *old = self.before[address]
            assert identity == was or cells != old, address
        self.before = now


TestIPCache: Any = IPCacheMachine.TestCase
TestIPCache.settings = settings(max_examples=60, stateful_step_count=20, deadline=None)
