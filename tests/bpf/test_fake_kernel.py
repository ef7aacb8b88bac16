"""What keeps `FakeMap` honest: the same random calls on it and on a map of the kernel.

Every answer and the class of every error must agree. A behaviour of `FakeMap` that no rule here
reaches does not belong into it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pyciliumlib.errors import PyCiliumError
from pyciliumlib.kernel import Map, MapType, codec_of_dtype
from pyciliumlib.kernel.kinds import NO_PREALLOC
from pyciliumlib.testing import FakeMap
from tests.expect import kernel_release
from tests.scale import examples

MAX_ENTRIES = 4
VALUE = np.dtype([("identity", "u4"), ("port", ">u2"), ("raw", "u1", (2,))])
VALUES = st.tuples(
    st.integers(0, 2**32 - 1), st.integers(0, 65535), st.binary(min_size=2, max_size=2)
)
MODES = st.sampled_from(["any", "new", "exist", "never"])
TRIE_KEY = np.dtype([("prefixlen", "u4"), ("addr", "u1", (2,))])


def outcome(call: Callable[[], Any]) -> tuple[str, Any]:
    """The answer, or the class and number of the error."""
    try:
        return "answer", call()
    except PyCiliumError as error:
        return type(error).__name__, getattr(error, "errno", None)


def rows(columns: tuple[Any, Any]) -> list[tuple[bytes, bytes]]:
    """The entries that a batch gave, in a fixed order."""
    keys, values = columns
    assert keys.flags.c_contiguous
    assert values.flags.c_contiguous
    return sorted((k.tobytes(), v.tobytes()) for k, v in zip(keys, values, strict=True))


def column(dtype: Any, items: list[Any]) -> Any:
    """Python values as an array of `dtype`."""
    codec = codec_of_dtype(dtype)
    return np.frombuffer(b"".join(map(codec.encode, items)), codec.dtype).copy()


class MapMachine(RuleBasedStateMachine):
    """One map in memory and one in the kernel, of the same type and layout."""

    type: ClassVar[MapType]
    key: ClassVar[Any]
    flags: ClassVar[int] = 0
    keys: ClassVar[st.SearchStrategy[Any]]
    deletes: ClassVar[bool] = True
    modes: ClassVar[st.SearchStrategy[Any]] = MODES
    max_entries: ClassVar[int] = MAX_ENTRIES

    def __init__(self) -> None:
        super().__init__()
        size = self.max_entries
        self.fake = FakeMap(self.type, self.key, VALUE, size)
        self.real = Map.create(self.type, self.key, VALUE, size, self.flags, "fake_check")
        assert self.fake.key_dtype == self.real.key_dtype
        assert self.fake.value_dtype == self.real.value_dtype
        assert self.fake.max_entries == self.real.max_entries

    def teardown(self) -> None:
        self.real.close()

    def both(self, call: Callable[[Any], Any]) -> Any:
        fake, real = outcome(lambda: call(self.fake)), outcome(lambda: call(self.real))
        assert fake == real
        return fake

    @rule(data=st.data())
    def lookup(self, data: st.DataObject) -> None:
        key = data.draw(self.keys)
        self.both(lambda m: m.lookup(key))
        self.both(lambda m: m[key])
        self.both(lambda m: m.get(key, "none"))
        self.both(lambda m: key in m)

    @rule(data=st.data(), value=VALUES)
    def update(self, data: st.DataObject, value: Any) -> None:
        key, mode = data.draw(self.keys), data.draw(self.modes)
        self.both(lambda m: m.update(key, value, mode))

    @rule(data=st.data(), value=VALUES)
    def set_and_delete_items(self, data: st.DataObject, value: Any) -> None:
        key = data.draw(self.keys)
        self.both(lambda m: m.__setitem__(key, value))
        self.both(lambda m: m.__delitem__(key))

    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        key = data.draw(self.keys)
        self.both(lambda m: m.delete(key))

    @rule(data=st.data())
    def pop(self, data: st.DataObject) -> None:
        key = data.draw(self.keys)
        self.both(lambda m: m.pop(key, "none"))
        self.both(lambda m: m.pop(key))

    @rule(data=st.data(), value=VALUES)
    def update_batch(self, data: st.DataObject, value: Any) -> None:
        """In order, up to the first that cannot be written."""
        mode = data.draw(self.modes)
        keys = column(self.key, data.draw(st.lists(self.keys, max_size=3)))
        values = column(VALUE, [value] * len(keys))
        values["identity"] += np.arange(len(keys), dtype="u4")
        self.both(lambda m: m.update_batch(keys, values, mode))

    @rule(data=st.data())
    def delete_batch(self, data: st.DataObject) -> None:
        keys = column(self.key, data.draw(st.lists(self.keys, max_size=3)))
        self.both(lambda m: m.delete_batch(keys))

    @rule(wrong=st.sampled_from(["dtype", "shape", "stride", "length", "list", "key", "value"]))
    def bad_input(self, wrong: str) -> None:
        """Refused alike, and nothing changes."""
        keys, values = np.zeros(2, self.real.key_dtype), np.zeros(2, VALUE)
        calls: dict[str, Callable[[Any], Any]] = {
            "dtype": lambda m: m.update_batch(keys, np.zeros(2, "u8")),
            "shape": lambda m: m.update_batch(keys.reshape(1, 2), values),
            "stride": lambda m: m.update_batch(np.zeros(4, self.real.key_dtype)[::2], values),
            "length": lambda m: m.update_batch(keys, values[:1]),
            "list": lambda m: m.update_batch([], []),
            "key": lambda m: m.lookup("no key"),
            "value": lambda m: m.update(keys[0], (1, 2)),
        }
        name, _ = self.both(calls[wrong])
        assert name == "InvalidError"

    @precondition(lambda self: self.deletes)
    @rule()
    def clear(self) -> None:
        self.both(lambda m: m.clear())

    @invariant()
    def the_same_entries(self) -> None:
        assert rows(self.fake.lookup_batch()) == rows(self.real.lookup_batch())
        for read in (Map.items, Map.keys, Map.values, iter):
            name = getattr(read, "__name__", "iter")
            fake = iter(self.fake) if name == "iter" else getattr(self.fake, name)()
            real = iter(self.real) if name == "iter" else getattr(self.real, name)()
            assert sorted(map(repr, fake)) == sorted(map(repr, real))
        assert len(self.fake) == len(self.real)
        assert bool(self.fake) == bool(self.real)


class HashMachine(MapMachine):
    """A key of two fields, one of them in network order."""

    type = MapType.HASH
    key = np.dtype([("id", "u2"), ("port", ">u2")])
    keys = st.tuples(st.integers(0, 2), st.integers(80, 82))


class ArrayMachine(MapMachine):
    """All entries are there, none goes, and there are no more."""

    type = MapType.ARRAY
    key = np.dtype("u4")
    keys = st.integers(0, MAX_ENTRIES + 1)
    deletes = False


class TrieMachine(MapMachine):
    """Prefixes of all lengths, with bits behind them, and lengths that are too long."""

    type = MapType.LPM_TRIE
    key = TRIE_KEY
    flags = NO_PREALLOC
    keys = st.tuples(
        st.sampled_from([0, 1, 7, 8, 9, 15, 16, 17]),
        st.sampled_from([b"\0\0", b"\x80\0", b"\x80\x80", b"\x80\xff", b"\xff\xff"]),
    )
    # Before Linux 6.13 a trie passes over the mode, and a full one takes no new value for a key.
    if kernel_release() < (6, 13):
        modes = st.just("any")
        max_entries = 64


SETTINGS = settings(max_examples=examples(40), stateful_step_count=20, deadline=None)
TestHash: Any = HashMachine.TestCase
TestHash.settings = SETTINGS
TestArray: Any = ArrayMachine.TestCase
TestArray.settings = SETTINGS
TestTrie: Any = TrieMachine.TestCase
TestTrie.settings = SETTINGS
