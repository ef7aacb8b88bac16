"""The ipcache: merging, lookup, listeners, and its table."""

from __future__ import annotations

import errno
import ipaddress
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from pyciliumlib.errors import InvalidError, KernelError, MapFullError, UnitError
from pyciliumlib.identity import (
    Change,
    ClusterAddresses,
    IdentityAllocator,
    IPCache,
    IPCacheEntry,
    IPCacheTable,
    IPIdentityPair,
    Labels,
    Metadata,
    NamedPort,
    Scope,
    Source,
    addr_hash,
)
from pyciliumlib.store import MemoryStore
from pyciliumlib.testing import FakeMap
from pyciliumlib.types import UpdateMode, address_to_bytes, parse_address, parse_network

KEY = np.dtype([("prefixlen", "u4"), ("addr", "u1", (16,))])
VALUE = np.dtype([("identity", "u4"), ("flags", "u4")])


def said(source: Source = Source.LOCAL, labels: Sequence[str] = (), **more: object) -> Metadata:
    return Metadata(source, Labels.parse(labels), **more)  # type: ignore[arg-type]


def test_the_longest_prefix_wins() -> None:
    """Whatever its source; the families do not mix."""
    cache = IPCache()
    cache.upsert("10.0.0.0/8", "a", said(Source.KUBE_APISERVER, identity=8))
    cache.upsert("10.1.0.0/16", "a", said(Source.GENERATED, identity=16))
    cache.upsert("::/0", "a", said(identity=6))
    found = [cache.lookup(a) for a in ("10.1.2.3", "10.2.0.0", "11.0.0.0", "fd00::1")]
    assert [entry and entry.identity for entry in found] == [16, 8, None, 6]
    assert cache.remove("10.1.0.0/16", "a")
    assert not cache.remove("10.1.0.0/16", "a")
    entry = cache.lookup("10.1.2.3")
    assert entry is not None
    assert entry.identity == 8


def test_a_lower_source_does_not_replace() -> None:
    """Of one resource, only a source of at least the same rank does."""
    cache = IPCache()
    cache.upsert("10.0.0.1", "pod", said(Source.KVSTORE, identity=500))
    cache.upsert("10.0.0.1", "pod", said(Source.GENERATED, identity=600))
    assert [entry.identity for entry in cache] == [500]
    cache.upsert("10.0.0.1", "pod", said(Source.LOCAL, identity=700))
    assert [(entry.identity, entry.source) for entry in cache] == [(700, Source.LOCAL)]


def test_precedence_of_sources() -> None:
    """The order that Cilium gives them, lowest first."""
    names = (
        "unspec restored generated api directory clustermesh k8s custom-resource kvstore local "
        "kube-apiserver"
    )
    assert [str(source) for source in sorted(Source)] == names.split()


def test_merging_one_prefix() -> None:
    """Labels are united; a scalar is the first that is given, by source and then resource."""
    with IdentityAllocator() as allocator:
        cache = IPCache(allocator)
        cache.upsert("10.0.0.1", "b", said(Source.K8S, ["fqdn:a.io"], encrypt_key=3))
        cache.upsert("10.0.0.1", "a", said(Source.API, ["cidrgroup:g"], encrypt_key=4, flags=1))
        (entry,) = cache
        identity = allocator.get(entry.identity)
        assert identity is not None
        assert identity.labels.to_json() == [
            "cidr:10.0.0.1/32",
            "fqdn:a.io",
            "cidrgroup:g",
            "reserved:world-ipv4",
        ]
        assert (entry.encrypt_key, entry.flags, entry.source) == (3, 1, Source.K8S)
        assert identity.scope is Scope.LOCAL


def test_conflicting_labels_are_told(caplog: pytest.LogCaptureFixture) -> None:
    """Of one key the higher source's label stays."""
    with IdentityAllocator() as allocator:
        cache = IPCache(allocator)
        cache.upsert("10.0.0.1", "a", said(Source.API, ["k8s:app=low"]))
        cache.upsert("10.0.0.1", "b", said(Source.K8S, ["k8s:app=high"]))
        identity = allocator.get(next(iter(cache)).identity)
        assert identity is not None
        assert identity.labels.to_json() == ["k8s:app=high"]
        assert "wins over" in caplog.text


def test_an_override_is_the_whole_truth() -> None:
    """Other labels count for nothing, those of higher sources too."""
    with IdentityAllocator() as allocator:
        cache = IPCache(allocator)
        cache.upsert("10.0.0.1", "a", said(Source.KUBE_APISERVER, ["reserved:kube-apiserver"]))
        cache.upsert("10.0.0.1", "b", said(Source.API, ["k8s:app=web"], override=True))
        identity = allocator.get(next(iter(cache)).identity)
        assert identity is not None
        assert identity.labels.to_json() == ["k8s:app=web"]


@pytest.mark.parametrize(
    ("contributions", "number"),
    [
        ([["reserved:host"]], 1),
        ([["reserved:remote-node"], ["cidr:10.0.0.1/32", "reserved:world-ipv4"]], 6),
        ([["reserved:remote-node"], ["reserved:kube-apiserver"]], 7),
        ([["reserved:health"]], 4),
        ([["reserved:world-ipv4"]], None),
    ],
)
def test_nodes_are_not_the_world(contributions: list[list[str]], number: int | None) -> None:
    """A prefix rule does not apply to a node that has the address."""
    with IdentityAllocator() as allocator:
        cache = IPCache(allocator)
        cache.update(
            ("10.0.0.1", f"r{index}", said(labels=labels))
            for index, labels in enumerate(contributions)
        )
        (entry,) = cache
        if number is None:
            assert entry.identity > Scope.LOCAL
        else:
            assert number == entry.identity


def test_numbers_live_as_long_as_their_prefixes() -> None:
    """The last prefix with the labels lets the number go, after the listeners have heard."""
    with IdentityAllocator() as allocator:
        cache = IPCache(allocator)
        known_when_told = []

        def listener(changes: Sequence[Change]) -> None:
            for change in changes:
                number = (change.new or change.old).identity  # type: ignore[union-attr]
                known_when_told.append(allocator.get(number) is not None)

        cache.listen(listener)
        before = allocator.identities()
        cache.upsert("10.0.0.1", "a", said(labels=["cidr:10.0.0.0/8"]))
        cache.upsert("10.0.0.1", "a", said(labels=["cidr:10.0.0.0/8"], flags=1))
        assert len(allocator.identities()) == len(before) + 1
        cache.remove("10.0.0.1", "a")
        assert before == allocator.identities()
        assert known_when_told == [True, True, True]


def test_an_update_is_whole_or_nothing() -> None:
    """A fault in one of many leaves all as it was, and no number behind."""
    with IdentityAllocator() as allocator:
        cache = IPCache(allocator)
        cache.upsert("10.0.0.1", "a", said(identity=500))
        before = (cache.entries(), allocator.identities())
        with pytest.raises(ValueError, match="reserved"):
            cache.update(
                [
                    ("10.0.0.1", "a", None),
                    ("10.0.0.2", "a", said(labels=["cidr:10.0.0.0/8"])),
                    ("10.0.0.3", "a", said(labels=["reserved:init", "k8s:x=1;k8s:y=2"])),
                ]
            )
        with pytest.raises(UnitError):
            cache.update([("10.0.0.1", "a", None), ("banana", "a", said(identity=1))])
        assert before == (cache.entries(), allocator.identities())
        assert cache.said_about("10.0.0.2") == {}


def test_labels_need_an_allocator() -> None:
    """Without one only numbers can be said."""
    with pytest.raises(InvalidError, match="allocator"):
        IPCache().upsert("10.0.0.1", "a", said(labels=["cidr:10.0.0.0/8"]))


@pytest.mark.parametrize(
    "arguments",
    [
        {"identity": 0},
        {"identity": 1 << 32},
        {"override": True},
        {"encrypt_key": 256},
        {"flags": -1},
    ],
)
def test_metadata_that_is_refused(arguments: dict[str, object]) -> None:
    """Numbers that do not fit, an override that says nothing."""
    with pytest.raises(InvalidError):
        said(**arguments)  # type: ignore[arg-type]


def test_a_listener_that_fails_undoes_the_update() -> None:
    """Those that were told already hear of the way back."""
    cache = IPCache()
    heard: list[Change] = []
    cache.listen(heard.extend)

    def refuse(changes: Sequence[Change]) -> None:
        if changes:
            raise MapFullError(28, "full")

    cache.listen(refuse)
    with pytest.raises(MapFullError):
        cache.upsert("10.0.0.1", "a", said(identity=500))
    assert len(cache) == 0
    assert [(change.old, change.new) for change in heard] == [
        (None, heard[0].new),
        (heard[0].new, None),
    ]


# the table


def tables(max_entries: int = 64, cells: int = 16) -> tuple[FakeMap, FakeMap]:
    return (
        FakeMap("lpm_trie", KEY, VALUE, max_entries, "ipcache"),
        FakeMap("array", "u4", "u8", cells, "ipcache_rev"),
    )


def identity_of(entries: FakeMap, address: str) -> int | None:
    key = np.zeros(1, KEY)
    key["prefixlen"] = 128
    key["addr"] = np.frombuffer(address_to_bytes(parse_address(address)), np.uint8)
    found = entries.get(key[0])
    return None if found is None else found.identity


def bumped(before: list[int], revisions: FakeMap) -> list[int]:
    after = list(revisions.values())
    return [cell for cell in range(len(after)) if after[cell] != before[cell]]


def test_the_table_follows() -> None:
    """It begins with what is there and hears of every change; drift is nothing."""
    entries, revisions = tables()
    cache = IPCache()
    cache.upsert("10.0.0.1", "a", said(identity=500))
    table = IPCacheTable(entries, revisions)
    cancel = table.follow(cache)
    cache.upsert("10.0.0.0/8", "a", said(identity=600))
    assert [identity_of(entries, a) for a in ("10.0.0.1", "10.9.9.9")] == [500, 600]
    cache.upsert("10.0.0.1", "a", said(identity=700))
    cache.remove("10.0.0.0/8", "a")
    assert [identity_of(entries, a) for a in ("10.0.0.1", "10.9.9.9")] == [700, 9]
    assert not table.drift(cache)
    assert str(table.drift(cache)) == "nothing to do"
    cancel()
    cache.remove("10.0.0.1", "a")
    assert identity_of(entries, "10.0.0.1") == 700
    assert str(table.drift(cache)) == "- 10.0.0.1/32 700"


def test_ipv6_prefixes_do_not_cover_ipv4() -> None:
    """In 16 bytes `::/0` holds IPv4; the entry for all of IPv4 stands in between."""
    for dual_stack, world in ((True, 9), (False, 2)):
        entries, revisions = tables()
        cache = IPCache()
        IPCacheTable(entries, revisions, dual_stack).follow(cache)
        cache.upsert("::/0", "a", said(identity=666))
        assert [identity_of(entries, a) for a in ("10.0.0.1", "fd00::1")] == [world, 666]
        cache.upsert("0.0.0.0/0", "a", said(identity=444))
        assert identity_of(entries, "10.0.0.1") == 444
        cache.remove("0.0.0.0/0", "a")
        assert identity_of(entries, "10.0.0.1") == world


def test_cells_are_bumped_by_what_changes() -> None:
    """A prefix bumps its cell, an address its own, both the first; nothing bumps nothing."""
    entries, revisions = tables()
    cache = IPCache()
    IPCacheTable(entries, revisions).follow(cache)
    own = 2 + addr_hash(address_to_bytes(parse_address("10.0.0.1"))) % 14
    steps: list[tuple[str, int | None, list[int]]] = [
        ("10.0.0.1", 500, [0, own]),
        ("10.0.0.1", 500, []),
        ("10.0.0.1", 501, [0, own]),
        ("10.0.0.0/8", 600, [0, 1]),
        ("10.0.0.1", None, [0, own]),
        ("10.0.0.0/8", None, [0, 1]),
    ]
    for prefix, number, expected in steps:
        before = list(revisions.values())
        cache.update([(prefix, "a", None if number is None else said(identity=number))])
        assert expected == bumped(before, revisions), prefix


class _Order(FakeMap):
    """Writes down in which order the maps are written."""

    log: list[str]
    last: Any

    def update_batch(self, keys: np.ndarray, values: np.ndarray) -> int:
        self.log.append(f"write {self.name}")
        return super().update_batch(keys, values)

    def delete_batch(self, keys: np.ndarray) -> int:
        self.log.append(f"delete {self.name}")
        return super().delete_batch(keys)

    def update(self, key: Any, value: Any, mode: UpdateMode = "any") -> None:
        self.log.append(f"write {self.name}")
        self.last = key
        super().update(key, value, mode)


def test_order_of_writing() -> None:
    """Additions before deletions, and the cells last, so that no flow keeps an old answer."""
    log: list[str] = []
    entries = _Order("lpm_trie", KEY, VALUE, 64, "ipcache")
    revisions = _Order("array", "u4", "u8", 16, "ipcache_rev")
    entries.log = revisions.log = log
    cache = IPCache()
    cache.upsert("10.0.0.1", "a", said(identity=500))
    IPCacheTable(entries, revisions).follow(cache)
    log.clear()
    cache.update([("10.0.0.1", "a", None), ("10.0.0.2", "a", said(identity=500))])
    assert log == ["write ipcache", "delete ipcache", *["write ipcache_rev"] * 3]
    assert revisions.last == 0


def test_a_full_map_changes_nothing() -> None:
    """Neither the map nor the ipcache."""
    entries, revisions = tables(max_entries=2)
    cache = IPCache()
    IPCacheTable(entries, revisions).follow(cache)
    cache.upsert("10.0.0.1", "a", said(identity=500))
    before = (list(entries), list(revisions.values()), cache.entries())
    with pytest.raises(MapFullError, match="larger"):
        cache.upsert("10.0.0.2", "a", said(identity=500))
    assert before == (list(entries), list(revisions.values()), cache.entries())


class _Failing(FakeMap):
    """Fails once, after it has written one entry of a batch: as a kernel that is out of memory."""

    failures = 0

    def update_batch(self, keys: np.ndarray, values: np.ndarray) -> int:
        if not self.failures:
            return super().update_batch(keys, values)
        self.failures -= 1
        super().update_batch(keys[:1], values[:1])
        raise KernelError(errno.ENOMEM, "out of memory")


def test_a_write_that_fails_half_way_is_put_back() -> None:
    """The map is again what the ipcache is, and flows look again at what was changed meanwhile."""
    entries = _Failing("lpm_trie", KEY, VALUE, 64, "ipcache")
    revisions = tables()[1]
    cache = IPCache()
    IPCacheTable(entries, revisions).follow(cache)
    cache.upsert("10.0.0.1", "a", said(identity=500))
    before = sorted(map(repr, entries.items())), cache.entries()
    cells = list(revisions.values())
    entries.failures = 1
    with pytest.raises(KernelError, match="out of memory"):
        cache.update(
            [(f"10.0.0.{number}", "a", said(identity=600 + number)) for number in (1, 2, 3)]
        )
    assert before == (sorted(map(repr, entries.items())), cache.entries())
    assert bumped(cells, revisions)
    cache.upsert("10.0.0.2", "a", said(identity=502))
    assert identity_of(entries, "10.0.0.2") == 502


def test_sync_mends_drift() -> None:
    """What somebody else changed is found, put right, and then gone."""
    entries, revisions = tables()
    cache = IPCache()
    for number in range(1, 6):
        cache.upsert(f"10.0.0.{number}", "a", said(identity=500 + number))
    table = IPCacheTable(entries, revisions)
    table.sync(cache)
    keys, values = entries.lookup_batch()
    entries.delete_batch(keys[1:2])
    values["identity"][2] = 9999
    entries.update_batch(keys[2:3], values[2:3])
    entries.update(((24 + 96), address_to_bytes(parse_address("192.168.0.0"))), (77, 0))
    plan = table.drift(cache)
    assert (len(plan.adds), len(plan.changes), len(plan.deletes)) == (1, 1, 1)
    table.sync(cache)
    assert not table.drift(cache)
    assert len(table.sync(cache)) == 0


def test_the_hash_is_that_of_the_header() -> None:
    """`addr_hash` of bpf/lib/addr.h, written out with Python's numbers."""
    for text in ("10.0.0.1", "fd00::1", "::", "255.255.255.255", "ffff::ffff"):
        data = address_to_bytes(ipaddress.ip_address(text))
        low, high = (int.from_bytes(data[i : i + 8], "little") for i in (0, 8))
        mixed = (low * 0x9E3779B97F4A7C15 % 2**64) ^ high
        assert mixed * 0xFF51AFD7ED558CCD % 2**64 >> 32 == addr_hash(data)


def test_a_table_needs_three_cells() -> None:
    """One for prefixes and at least one for addresses."""
    with pytest.raises(InvalidError):
        IPCacheTable(tables()[0], tables(cells=2)[1])


# the form in the store


def test_pairs_of_prefixes() -> None:
    """A prefix has a mask and a length in its key; Go's escapes are kept."""
    pair = IPIdentityPair(
        parse_network("10.0.0.0/9"), 5, pod="<a>&", named_ports=(NamedPort("http", 80, "TCP"),)
    )
    assert pair.key() == "cilium/state/ip/v1/default/10.0.0.0/9"
    assert '"Mask":"/4AAAA=="' in pair.encode()
    assert '"K8sPodName":"\\u003ca\\u003e\\u0026"' in pair.encode()
    assert pair == IPIdentityPair.decode(pair.key(), pair.encode())


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("a/10.0.0.1", "{"),
        ("a/10.0.0.1", "[]"),
        ("a/10.0.0.1", "{}"),
        ("a/10.0.0.1", '{"IP":"10.0.0.2","ID":5}'),
        ("a/210.0.0.1", '{"IP":"10.0.0.1","ID":5}'),
        ("a/10.0.0.1", '{"IP":"10.0.0.1","ID":"5"}'),
        ("a/10.0.0.1", '{"IP":"10.0.0.1","ID":4294967296}'),
        ("a/10.0.0.1", '{"IP":"10.0.0.1","ID":5,"Mask":"/wD/AA=="}'),
        ("a/10.0.0.1", '{"IP":"10.0.0.1","ID":5,"Mask":"?"}'),
        ("a/10.0.0.1", '{"IP":"10.0.0.1","ID":5,"Metadata":7}'),
    ],
)
def test_pairs_that_are_refused(key: str, value: str) -> None:
    """Malformed, or about another address than the key says."""
    with pytest.raises(InvalidError, match="store key"):
        IPIdentityPair.decode(key, value)


def test_nodes_learn_of_each_other(caplog: pytest.LogCaptureFixture) -> None:
    """What one publishes the other finds, until it is withdrawn, changed to nonsense, or closed."""
    here, there = parse_address("192.0.2.1"), parse_address("192.0.2.2")
    with MemoryStore() as store:
        caches = IPCache(), IPCache()
        one, other = (
            ClusterAddresses(store, cache, host)
            for cache, host in zip(caches, (here, there), strict=True)
        )
        for number in (1, 2, 3):
            one.publish(IPIdentityPair(parse_network(f"10.0.0.{number}"), 500 + number, here))
        with pytest.raises(InvalidError, match="this node is"):
            other.publish(IPIdentityPair(parse_network("10.0.0.9"), 5, here))
        assert other.poll() == 3
        one.poll()
        assert caches[0].entries() == []
        found = caches[1].lookup("10.0.0.1")
        assert found is not None
        assert (found.identity, found.tunnel_peer, found.source) == (501, here, Source.KVSTORE)
        assert one.withdraw("10.0.0.1")
        store.put("cilium/state/ip/v1/default/10.0.0.2", '{"IP":"10.0.0.7","ID":5}')
        store.put("cilium/state/ip/v1/default/banana", "{}")
        other.poll()
        assert [str(entry.prefix) for entry in caches[1]] == ["10.0.0.3/32"]
        assert "banana" in caplog.text
        assert "10.0.0.7" in caplog.text
        one.close()
        other.poll()
        assert caches[1].entries() == []
        other.close()


def test_what_the_ipcache_refuses_is_tried_again() -> None:
    """With what came meanwhile; of an address that changed, what it is now."""
    here, there = parse_address("192.0.2.1"), parse_address("192.0.2.2")
    refusals = [True, True]

    def refuse(changes: Sequence[Change]) -> None:
        if changes and refusals:
            refusals.pop()
            raise MapFullError(28, "full")

    cache = IPCache()
    cache.listen(refuse)
    with (
        MemoryStore() as store,
        ClusterAddresses(store, IPCache(), there) as other,
        ClusterAddresses(store, cache, here) as one,
    ):
        for number in (1, 2):
            other.publish(IPIdentityPair(parse_network(f"10.0.0.{number}"), 500 + number, there))
        with pytest.raises(MapFullError):
            one.poll()
        assert cache.entries() == []
        other.withdraw("10.0.0.1")
        other.publish(IPIdentityPair(parse_network("10.0.0.2"), 600, there))
        with pytest.raises(MapFullError):
            one.poll(timeout=60.0)
        other.publish(IPIdentityPair(parse_network("10.0.0.3"), 503, there))
        assert one.poll() == 3
        assert [(str(e.prefix), e.identity) for e in sorted(cache, key=str)] == [
            ("10.0.0.2/32", 600), ("10.0.0.3/32", 503),
        ]  # fmt: skip
        assert one.poll() == 0


@pytest.mark.parametrize("number", [0, 1, Scope.LOCAL + 1, Scope.REMOTE_NODE + 1, 0x0300_0001])
def test_a_node_cannot_say_what_is_another_thing_here(
    number: int, caplog: pytest.LogCaptureFixture
) -> None:
    """The local host and this node's own numbers are nobody else's to give: the world remains."""
    here, there = parse_address("192.0.2.1"), parse_address("192.0.2.2")
    with MemoryStore() as store:
        cache = IPCache()
        with ClusterAddresses(store, IPCache(), there) as other:
            with ClusterAddresses(store, cache, here) as one:
                other.publish(IPIdentityPair(parse_network("10.0.0.1"), number, there))
                one.poll()
        assert cache.entries() == []
        assert "ignored" in caplog.text


def test_entries_read_well() -> None:
    """In a REPL and in a log."""
    entry = IPCacheEntry(parse_network("10.0.0.0/8"), 5, Source.K8S)
    assert str(entry) == "10.0.0.0/8 is 5 (k8s)"
