"""Maps of every kind in the kernel: one entry, many, all, and while others write."""

from __future__ import annotations

import gc
import ipaddress
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from pyciliumlib import errors
from pyciliumlib.kernel import Map, MapType, kinds, possible_cpus
from pyciliumlib.kernel.codec import AddressCodec, IntCodec
from pyciliumlib.kernel.layout import Field, PrefixCodec
from pyciliumlib.types import MapLike

KEY = np.dtype([("address", "u1", (16,)), ("port", ">u2"), ("proto", "u1"), ("pad", "u1")])
VALUE = np.dtype([("packets", "<u8"), ("mark", "<u4"), ("flags", "<u4")])
LPM_KEY = np.dtype([("prefixlen", "<u4"), ("data", "u1", (8,))])
CPUS = possible_cpus()

HASHES = [MapType.HASH, MapType.LRU_HASH]
PER_CPU_HASHES = [MapType.PERCPU_HASH, MapType.LRU_PERCPU_HASH]
NOT_FOUND = errors.NotFoundError


@pytest.fixture(params=[True, False], ids=["batches", "one by one"])
def batches(request: pytest.FixtureRequest) -> bool:
    """Whether the kernel's batches may be used, or the loop over single entries must do."""
    return bool(request.param)


def new_map(type_: MapType, entries: int = 1000, batches: bool = True) -> Map:
    """A map of any kind with the keys and values of this file."""
    index = type_ in kinds.ARRAYS
    trie = type_ == MapType.LPM_TRIE
    made = Map.create(
        type_,
        "u4" if index else LPM_KEY if trie else KEY,
        VALUE,
        entries,
        kinds.NO_PREALLOC if trie else 0,
        f"a1_{type_.name.lower()}",
    )
    made._layout.batch = batches
    return made


def rows(type_: MapType, count: int) -> tuple[Any, Any]:
    """`count` entries for `new_map(type_)`."""
    numbers = np.arange(count)
    if type_ in kinds.ARRAYS:
        keys: Any = numbers.astype("u4")
    elif type_ == MapType.LPM_TRIE:
        keys = np.zeros(count, LPM_KEY)
        keys["prefixlen"] = 64
        keys["data"] = numbers.astype(">u8").view("u1").reshape(count, 8)
    else:
        keys = np.zeros(count, KEY)
        keys["address"][:, :8] = numbers.astype(">u8").view("u1").reshape(count, 8)
        keys["port"] = 80
    values = np.zeros((count, CPUS) if type_ in kinds.PER_CPU else count, VALUE)
    values["packets"] = (numbers[:, None] * 10 + np.arange(CPUS)) if values.ndim == 2 else numbers
    values["mark"] = 7
    return keys, values


def as_sets(keys: Any, values: Any) -> set[tuple[bytes, bytes]]:
    return {(k.tobytes(), v.tobytes()) for k, v in zip(keys, values, strict=True)}


@pytest.mark.parametrize("type_", [*HASHES, MapType.LPM_TRIE])
def test_a_map_is_a_mapping(type_: MapType) -> None:
    """Items, lookups, `in`, `get`, `del`, `len` and iteration agree with a dict."""
    with new_map(type_) as m:
        keys, values = rows(type_, 5)
        model = {
            m.spec.key.decode(k.tobytes()): m.spec.value.decode(v.tobytes())
            for k, v in zip(keys, values, strict=True)
        }
        for key, value in model.items():
            m[key] = value
        assert dict(m.items()) == model
        assert set(m) == set(m.keys()) == set(model)
        assert sorted(m.values()) == sorted(model.values())
        first, *others = model
        assert m[first] == m.lookup(first) == m.get(first) == model[first]
        assert first in m and len(m) == 5
        del m[first]
        assert first not in m and m.get(first) is None and m.get(first, 3) == 3
        assert m.delete(first) is False and m.delete(others[0]) is True
        with pytest.raises(KeyError, match="has no"):
            m[first]
        with pytest.raises(errors.NotFoundError):
            del m[first]
        m.clear()
        assert len(m) == 0 and list(m.items()) == []
        assert isinstance(m, MapLike)


@pytest.mark.parametrize(
    ("mode", "present", "error"),
    [
        ("any", True, None),
        ("any", False, None),
        ("new", True, errors.ExistsError),
        ("new", False, None),
        ("exist", True, None),
        ("exist", False, errors.NotFoundError),
        ("replace", True, errors.InvalidError),
    ],
)
def test_update_modes(mode: Any, present: bool, error: type[Exception] | None) -> None:
    """Each mode writes or refuses, by entry and by batch, and a refusal changes nothing."""
    keys, values = rows(MapType.HASH, 1)
    for write in ("update", "update_batch"):
        with new_map(MapType.HASH) as m:
            if present:
                m.update(keys[0], (1, 1, 1))
            before = dict(m.items())
            arguments = (keys[0], values[0]) if write == "update" else (keys, values)
            if error is None:
                getattr(m, write)(*arguments, mode=mode)
                assert m[keys[0]].mark == 7
            else:
                with pytest.raises(error):
                    getattr(m, write)(*arguments, mode=mode)
                assert dict(m.items()) == before


@pytest.mark.parametrize(
    "type_", [*HASHES, *PER_CPU_HASHES, MapType.ARRAY, MapType.PERCPU_ARRAY, MapType.LPM_TRIE]
)
def test_batches_agree_with_single_entries(type_: MapType, batches: bool) -> None:
    """What a batch writes, single lookups read, and the other way round."""
    count = 500
    keys, values = rows(type_, count)
    with new_map(type_, 4 * count, batches) as m:
        if type_ in kinds.ARRAYS:
            count = 4 * count
            keys, values = rows(type_, count)
        assert m.update_batch(keys, values) == count
        for at in (0, 17, count - 1):
            single = m[keys[at]]
            expected = [m.spec.value.decode(v.tobytes()) for v in np.atleast_1d(values[at])]
            assert list(single) == expected if type_ in kinds.PER_CPU else single == expected[0]
        assert as_sets(*m.lookup_batch()) == as_sets(keys, values)
        assert len(m) == count


@pytest.mark.parametrize("type_", [*HASHES, *PER_CPU_HASHES, MapType.LPM_TRIE])
def test_batch_delete_passes_over_missing_keys(type_: MapType, batches: bool) -> None:
    """Keys that are not there (evicted ones, for an LRU) are skipped, and not counted."""
    keys, values = rows(type_, 400)
    with new_map(type_, 4000, batches) as m:
        m.update_batch(keys[:300:2].copy(), values[:300:2].copy())
        assert m.delete_batch(keys) == 150
        assert len(m) == 0
        assert m.delete_batch(keys[:0]) == 0


@pytest.mark.parametrize("type_", [*HASHES, *PER_CPU_HASHES, MapType.LPM_TRIE])
def test_lookup_and_delete_takes_all(type_: MapType, batches: bool) -> None:
    """All entries are returned and gone."""
    keys, values = rows(type_, 300)
    with new_map(type_, 3000, batches) as m:
        m.update_batch(keys, values)
        assert as_sets(*m.lookup_and_delete_batch()) == as_sets(keys, values)
        taken = m.lookup_and_delete_batch()
        assert len(m) == len(taken[0]) == len(taken[1]) == 0


@pytest.mark.parametrize("type_", [*HASHES, *PER_CPU_HASHES, MapType.LPM_TRIE])
def test_pop(type_: MapType) -> None:
    """The value, once; the other entries stay."""
    keys, values = rows(type_, 3)
    with new_map(type_) as m:
        m.update_batch(keys, values)
        expected = m[keys[1]]
        assert m.pop(keys[1]) == expected
        assert m.pop(keys[1], 5) == 5
        with pytest.raises(NOT_FOUND, match="has no"):
            m.pop(keys[1])
        assert as_sets(*m.lookup_batch()) == as_sets(keys[::2], values[::2])


@pytest.mark.parametrize("type_", [MapType.ARRAY, MapType.PERCPU_ARRAY])
def test_an_array_pops_nothing(type_: MapType) -> None:
    """Its entries cannot be deleted, whether they are asked for with a default or without."""
    with new_map(type_, 4) as m, pytest.raises(errors.InvalidError, match="write zero"):
        m.pop(1, 0)


def test_reading_grows_past_the_first_buffer(batches: bool) -> None:
    """A map many times as large as the first buffer comes whole."""
    count = 100_000
    keys, values = rows(MapType.HASH, count)
    with new_map(MapType.HASH, count, batches) as m:
        m._layout.room = 1000
        assert m.update_batch(keys, values) == count
        found, cells = m.lookup_batch()
        gc.collect()  # the columns own their memory
        order = np.argsort(cells["packets"])
        assert (found[order] == keys).all() and (cells[order] == values).all()


def test_a_bucket_longer_than_the_buffer() -> None:
    """A batch buffer too small for one hash bucket (ENOSPC) grows until it fits."""
    numbers = np.arange(2, dtype="u4")
    for _ in range(30):  # each map has two buckets and its own hash seed
        with Map.create(MapType.HASH, "u4", "u4", 2) as m:
            m._layout.room = 1
            m.update_batch(numbers, numbers)
            assert dict(m.items()) == {0: 0, 1: 1}


def test_a_full_map_says_how_far_it_came(batches: bool) -> None:
    """MapFullError names the first entry without room; those before it are written."""
    keys, values = rows(MapType.HASH, 100)
    with new_map(MapType.HASH, 60, batches) as m:
        with pytest.raises(errors.MapFullError, match="write entry 60 of 100") as caught:
            m.update_batch(keys, values)
        assert isinstance(caught.value, OSError) and len(m) == 60
        with pytest.raises(errors.MapFullError, match="60 entries are taken"):
            m[keys[99]] = values[99]
        m[keys[0]] = values[1]  # replacing is fine
        assert as_sets(*m.lookup_batch()) >= as_sets(keys[1:60], values[1:60])


def test_a_full_trie() -> None:
    """The trie's ENOSPC is a MapFullError too."""
    keys, values = rows(MapType.LPM_TRIE, 11)
    with new_map(MapType.LPM_TRIE, 10) as m:
        with pytest.raises(errors.MapFullError, match="entry 10 of 11"):
            m.update_batch(keys, values)


def test_an_lru_never_fills() -> None:
    """An LRU makes room; every entry that is left has its own value."""
    keys, values = rows(MapType.LRU_HASH, 3000)
    with new_map(MapType.LRU_HASH, 1000) as m:
        assert m.update_batch(keys, values) == 3000
        left = as_sets(*m.lookup_batch())
        assert 0 < len(left) <= 1000 and left < as_sets(keys, values)


def test_arrays_have_slots() -> None:
    """Every index is a key, an index beyond is not there, and nothing can be deleted."""
    with Map.create(MapType.ARRAY, "u4", "u8", 4) as m:
        assert dict(m.items()) == {0: 0, 1: 0, 2: 0, 3: 0} and len(m) == 4
        m[3] = 9
        assert m[3] == 9 and 3 in m and 4 not in m
        with pytest.raises(errors.NotFoundError, match="has 4 slots"):
            m[4] = 1
        for call in (
            lambda: m.delete(0),
            lambda: m.delete_batch(np.zeros(1, "u4")),
            m.lookup_and_delete_batch,
        ):
            with pytest.raises(errors.InvalidError, match="cannot be deleted"):
                call()


def test_a_trie_finds_the_longest_prefix() -> None:
    """Lookups are by longest prefix, `del` is by the very prefix."""
    key = PrefixCodec(
        "key", 20, [Field("prefixlen", 0, IntCodec(4)), Field("addr", 4, AddressCodec())]
    )
    with Map.create(MapType.LPM_TRIE, key, "u4", 10, kinds.NO_PREALLOC) as m:
        m["10.0.0.0/8"], m["10.1.0.0/16"], m["fd00::/64"], m["0.0.0.0/0"] = 8, 16, 64, 1
        assert [m["10.1.2.3"], m["10.2.0.1"], m["fd00::5"], m["192.0.2.1"]] == [16, 8, 64, 1]
        assert "2001:db8::1" not in m and m.delete("10.1.0.0/17") is False
        del m["10.1.0.0/16"]
        assert m["10.1.2.3"] == 8
        assert set(m) == {ipaddress.ip_network(n) for n in ("10.0.0.0/8", "fd00::/64", "0.0.0.0/0")}


def test_per_cpu_values() -> None:
    """A per-CPU entry is one value for each possible CPU, of odd sizes too (padded to 8)."""
    layout = np.dtype([("a", "<u2"), ("b", "u1")])
    with Map.create(MapType.PERCPU_HASH, "u4", layout, 8) as m:
        m[1] = [(cpu, 5) for cpu in range(CPUS)]
        assert m[1] == tuple((cpu, 5) for cpu in range(CPUS))
        keys, values = m.lookup_batch()
        assert values.shape == (1, CPUS) and list(values["a"][0]) == list(range(CPUS))
        more = np.zeros((3, CPUS), layout)
        more["a"] = np.arange(3 * CPUS).reshape(3, CPUS)
        assert m.update_batch(np.arange(3, dtype="u4"), more) == 3
        assert m[2] == tuple((2 * CPUS + cpu, 0) for cpu in range(CPUS))
        with pytest.raises(errors.InvalidError, match=f"list of {CPUS} values"):
            m[1] = (1, 5) * CPUS
        with pytest.raises(errors.InvalidError, match="shape"):
            m.update_batch(keys, np.zeros(1, layout))


@pytest.mark.parametrize("type_", [MapType.ARRAY_OF_MAPS, MapType.HASH_OF_MAPS])
def test_maps_in_maps(type_: MapType) -> None:
    """A map of maps takes open maps, gives ids, and opens what is inside with its types."""
    with (
        Map.create(MapType.HASH, KEY, VALUE, 10, name="a1_inner") as inner,
        Map.create(type_, "u4", "u4", 4, inner=inner) as outer,
        Map.create(MapType.ARRAY, "u4", "u4", 1) as other,
    ):
        key = (bytes(16), 80, 6, 0)
        inner[key] = (1, 2, 3)
        outer[2] = inner
        assert dict(outer.items()) == {2: inner.info.id} and len(outer) == 1
        with outer.open_inner(2) as again:
            assert again[key].mark == 2
        with pytest.raises(errors.InvalidError, match="another kind"):
            outer[1] = other
        with pytest.raises(errors.InvalidError, match="pass the open map"):
            outer[1] = inner.fd
        del outer[2]
        with pytest.raises(errors.NotFoundError):
            outer.open_inner(2)
        with pytest.raises(errors.InvalidError, match="holds no maps"):
            inner.open_inner(key)


def test_a_ring_buffer_has_no_entries() -> None:
    """All that would read or write entries is refused."""
    with Map.create(MapType.RINGBUF, None, None, 4096) as m:
        calls: list[Callable[[], object]] = [
            lambda: m[b""],
            lambda: m.update(b"", b""),
            lambda: list(m.items()),
            m.lookup_batch,
            lambda: len(m),
        ]
        for call in calls:
            with pytest.raises(errors.InvalidError, match="no entries"):
                call()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda k, v: (list(k), v), "numpy array"),
        (lambda k, v: (k[::2], v[::2]), "not C-contiguous"),
        (lambda k, v: (v, v), "takes dtype"),
        (lambda k, v: (k, v["packets"].copy()), "takes dtype"),
        (lambda k, v: (k.reshape(2, 2), v), "shape"),
        (lambda k, v: (k, v[:3].copy()), "4 keys and 3 values"),
    ],
)
def test_columns_must_be_exact(spoil: Any, message: str) -> None:
    """Columns of another dtype, shape, length or order are refused before a byte is copied."""
    keys, values = rows(MapType.HASH, 4)
    with new_map(MapType.HASH) as m:
        with pytest.raises(errors.InvalidError, match=message):
            m.update_batch(*spoil(keys, values))
        assert len(m) == 0


def test_gaps_in_keys_are_zero() -> None:
    """Rubbish between the fields of a numpy key does not make it another key."""
    layout = np.dtype({"names": ["a", "b"], "formats": ["u1", "<u4"], "offsets": [0, 4]})
    keys = np.frombuffer(b"\x01\xaa\xbb\xcc\x02\x00\x00\x00", layout)
    with Map.create(MapType.HASH, layout, "u4", 4) as m:
        m.update_batch(keys, np.array([5], "u4"))
        assert m[(1, 2)] == 5
        assert m.delete_batch(keys) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((MapType.ARRAY, "u8", "u4", 1), "4-byte index"),
        ((MapType.HASH, "u4", "u4", 0), "between 1 and"),
        ((MapType.HASH, "u4", "u4", 1 << 32), "between 1 and"),
        ((MapType.HASH, "u4", None, 1), "at least one byte"),
        ((MapType.LPM_TRIE, "u8", "u4", 1), "NO_PREALLOC"),
        ((MapType.LPM_TRIE, "u4", "u4", 1, 1), "4-byte prefixlen"),
        ((MapType.RINGBUF, None, None, 5000), "power of two"),
        ((MapType.RINGBUF, "u4", None, 4096), "neither keys nor values"),
        ((MapType.ARRAY_OF_MAPS, "u4", "u4", 1), "needs `inner`"),
        ((MapType.HASH, "O", "u4", 1), "cannot hold"),
    ],
)
def test_impossible_maps_are_refused(arguments: tuple[Any, ...], message: str) -> None:
    """What no kernel takes is refused with the reason instead of EINVAL."""
    with pytest.raises(errors.InvalidError, match=message):
        Map.create(*arguments)


def test_a_frozen_map_refuses_writes() -> None:
    """EPERM on a frozen map says so, and not that a capability is missing."""
    with Map.create(MapType.ARRAY, "u4", "u4", 1) as m:
        m.freeze()
        with pytest.raises(errors.KernelError, match="frozen") as caught:
            m[0] = 1
        assert not isinstance(caught.value, errors.PrivilegeError)
        assert m[0] == 0


def test_a_map_is_found_by_its_number() -> None:
    """`from_id` opens it typed by size alone; a number nobody has is NotFoundError."""
    with Map.create(MapType.HASH, "u4", "u8", 3, name="a1_by_id") as m:
        m[1] = 2
        with Map.from_id(m.info.id) as same:
            assert (same.name, dict(same.items()), same.info.id) == ("a1_by_id", {1: 2}, m.info.id)
        gone = m.info.id
    with pytest.raises(errors.NotFoundError, match="no map number"):
        for _ in range(100):  # the kernel frees a map a grace period after its last descriptor
            Map.from_id(gone).close()
            threading.Event().wait(0.05)


class Churn:
    """Deletes and adds entries in a thread while the test reads."""

    def __init__(self, m: Map, keys: Any, values: Any) -> None:
        self._map, self._keys, self._values = m, keys, values
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.rounds = 0

    def _run(self) -> None:
        while not self._stop.is_set():
            self._map.delete_batch(self._keys)
            self._map.update_batch(self._keys, self._values)
            self.rounds += 1

    def __enter__(self) -> Churn:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(30)
        assert not self._thread.is_alive()


@pytest.mark.parametrize("type_", [*HASHES, MapType.LPM_TRIE])
def test_a_snapshot_is_right_while_others_write(type_: MapType, batches: bool) -> None:
    """No key comes twice, none that stays is missed, and reading ends."""
    count = 2000
    keys, values = rows(type_, count)
    stay = {key.tobytes() for key in keys[::2]}
    come_and_go = np.ascontiguousarray(keys[1::2])
    with new_map(type_, 10 * count, batches) as m:
        m.update_batch(keys, values)
        with Churn(m, come_and_go, np.ascontiguousarray(values[1::2])) as churn:
            for _round in range(60):
                found, cells = m.lookup_batch()
                seen = [key.tobytes() for key in found]
                assert len(seen) == len(set(seen)), "a key came twice"
                assert stay <= set(seen), "a key that stayed was missed"
                assert len(found) == len(cells)
        assert churn.rounds > 0


def test_lookup_and_delete_loses_nothing(batches: bool) -> None:
    """What one thread adds once and another takes is taken exactly once."""
    count = 20_000
    keys, values = rows(MapType.HASH, count)
    with new_map(MapType.HASH, count, batches) as m:
        writer = threading.Thread(
            target=lambda: [
                m.update_batch(k, v)
                for k, v in zip(np.split(keys, 100), np.split(values, 100), strict=True)
            ]
        )
        writer.start()
        taken: list[bytes] = []
        while writer.is_alive():
            taken += [key.tobytes() for key in m.lookup_and_delete_batch()[0]]
        writer.join()
        taken += [key.tobytes() for key in m.lookup_and_delete_batch()[0]]
        assert len(taken) == count and set(taken) == {key.tobytes() for key in keys}


def test_iteration_while_deleting_in_the_loop(batches: bool) -> None:
    """Deleting each key of a loop over the map visits every entry once."""
    keys, values = rows(MapType.HASH, 300)
    with new_map(MapType.HASH, 300, batches) as m:
        m.update_batch(keys, values)
        assert sum(m.delete(key) for key in m) == 300
        assert len(m) == 0


@pytest.fixture(autouse=True)
def _no_leak() -> Iterator[None]:
    """Every map of a test is closed: a forgotten one would warn, and warnings are errors."""
    yield
    gc.collect()
