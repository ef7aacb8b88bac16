"""The tries of policy, as rows of two arrays that all endpoints share (`bpf/lib/policy.h`).

A trie leads from protocol and port to the narrowest entry, in steps of four bits. Equal tries are
one, and so are equal parts of different tries. A row that is in use never changes: what differs
gets rows of its own, and one that nobody uses any more is written again only after `keep`.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np
from attrs import define, field

from pyciliumlib.errors import MapFullError, NotFoundError
from pyciliumlib.policy.entries import (
    KEY_DTYPE,
    PROTOCOL_BITS,
    STATIC_BITS,
    VALUE_DTYPE,
    PolicyEntries,
    pack_entry,
)
from pyciliumlib.policy.grouped import GroupedEntries
from pyciliumlib.types import Direction

if TYPE_CHECKING:
    import numpy.typing as npt

    from pyciliumlib.types import MapLike

#: The cells that an identity's tries begin with, by direction.
Roots: TypeAlias = tuple[int, int]

NODE_DTYPE: Final = np.dtype([("cell", np.uint32, (16,))])
ROOTS_DTYPE: Final = np.dtype(
    [("identity", np.uint32), ("own", np.uint32, (2,)), ("any", np.uint32, (2,))]
)
NOTHING: Final[Roots] = (0, 0)

#: What no policy has, in place of a row that is no row of ours.
_UNREADABLE: Final = PolicyEntries(
    np.array([(STATIC_BITS, 0, 0, 0, 0)], KEY_DTYPE), np.zeros(1, VALUE_DTYPE)
)

_CELL_NODE: Final = 0x80000000
_STEP: Final = 4
_CELLS: Final = 1 << _STEP
#: Bits of a path: the protocol's and the port's.
_PATH: Final = 24
_NODE: Final = struct.Struct("=16I")
#: Where an entry's bytes have its `lpm_bits`.
_LPM_BITS: Final = int(VALUE_DTYPE.fields["lpm_bits"][1])  # type: ignore[index]  # it has fields
#: An entry on its way into a trie: the path's first bits, how many, and the cell that it gets.
_Branch = tuple[int, int, int]


@define(eq=False)
class _Rows:
    """Rows of an array by number, each content once; number 0 is no row.

    Without a map they are in memory alone.
    """

    map: MapLike | None
    _pack: Callable[[Any], bytes]
    contents: dict[int, bytes] = field(factory=dict)
    _numbers: dict[bytes, int] = field(factory=dict)
    _new: list[int] = field(factory=list)
    _free: list[int] = field(factory=list)
    _next: int = 1

    def number(self, content: bytes) -> int:
        """The row that holds `content`; it may be one that `flush` is yet to write."""
        found = self._numbers.get(content)
        if found is None:
            found = self._numbers[content] = self._take()
            self.contents[found] = content
            self._new.append(found)
        return found

    def _take(self) -> int:
        if self._free:
            return self._free.pop()
        if self.map is not None and self._next >= self.map.max_entries:
            raise MapFullError(
                errno.ENOSPC,
                f"policy needs more than the {self.map.max_entries} rows that all endpoints share "
                "for protocols and ports; make them more",
            )
        self._next += 1
        return self._next - 1

    def read(self, number: int) -> bytes:
        """What the map has, nothing where there is no such row."""
        if self.map is None:
            return self.contents.get(number, b"")
        try:
            return self._pack(self.map.lookup(number))
        except NotFoundError:
            return b""

    def read_all(self) -> dict[int, bytes]:
        """All rows that the map has."""
        if self.map is None:
            return dict(self.contents)
        keys, values = self.map.lookup_batch()
        return dict(zip(keys.tolist(), map(bytes, values), strict=True))

    def flush(self) -> None:
        if self._new and self.map is not None:
            data = b"".join([self.contents[number] for number in self._new])
            self.map.update_batch(
                np.array(self._new, self.map.key_dtype), np.frombuffer(data, self.map.value_dtype)
            )
        self._new.clear()

    def forget_new(self) -> None:
        for number in self._new:
            del self._numbers[self.contents.pop(number)]
        self._free += self._new
        self._new.clear()

    def keep(self, contents: Mapping[int, bytes]) -> None:
        """Know these and no others."""
        self.contents = dict(contents)
        self._numbers = {content: number for number, content in contents.items()}
        self._next = max(contents, default=0) + 1
        self._free = [number for number in range(1, self._next) if number not in contents]


class PolicyNodes:
    """Makes tries of entries, writes them into the shared arrays, and reads them back.

    What `roots` and `rows` have made is in the kernel after `flush`. One writer at a time.
    """

    def __init__(self, nodes: MapLike | None, entries: MapLike | None) -> None:
        self._nodes = _Rows(nodes, lambda node: _NODE.pack(*node.cell))
        self._entries = _Rows(entries, pack_entry)
        self._known: dict[tuple[bytes, bytes], Roots] = {}

    # ------------------------------------------------------------------ to the kernel

    def rows(self, entries: GroupedEntries) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """The rows of an endpoint's map: first that of any identity, then one for each other.

        Raises MapFullError, then `forget_new` is to be called.
        """
        keys = np.concatenate([np.zeros(1, np.uint32), entries.members])
        values = np.zeros(len(keys), ROOTS_DTYPE)
        values["identity"] = keys
        values["any"] = self.roots(entries.anyone)
        if entries.templates:
            own = [self.roots(template) for template in entries.templates]
            values["own"][1:] = np.repeat(np.array(own, np.uint32), entries.counts, axis=0)
        return keys, values

    def roots(self, template: PolicyEntries) -> Roots:
        """The tries of one identity's entries."""
        if not len(template):
            return NOTHING
        content = template.keys.tobytes(), template.values.tobytes()
        found = self._known.get(content)
        if found is None:
            found = self._known[content] = self._build(template)
        return found

    def _build(self, template: PolicyEntries) -> Roots:
        branches: tuple[list[_Branch], list[_Branch]] = ([], [])
        raw = template.values.tobytes()
        size = VALUE_DTYPE.itemsize
        for at, (bits, _, direction, proto, port) in enumerate(template.keys.tolist()):
            cell = self._entries.number(raw[at * size : (at + 1) * size])
            branches[direction].append((proto << 16 | port, bits - STATIC_BITS, cell))
        ingress, egress = (
            self._cell(sorted(found, key=lambda branch: branch[1]), 0, 0) for found in branches
        )
        return ingress, egress

    def _cell(self, branches: list[_Branch], depth: int, wider: int) -> int:
        """The cell for what begins with `depth` bits which all `branches`, sorted by their length,
        begin with or lie before; `wider` is the entry for what they leave open."""
        narrower = []
        for branch in branches:
            if branch[1] <= depth:
                wider = branch[2]
            else:
                narrower.append(branch)
        if not narrower:
            return wider
        below: dict[int, list[_Branch]] = {}
        for branch in narrower:
            path, length, _ = branch
            first = path >> (_PATH - _STEP - depth) & (_CELLS - 1)
            for at in range(first, first + (1 << max(0, depth + _STEP - length))):
                below.setdefault(at, []).append(branch)
        cells = [wider] * _CELLS
        for at, found in below.items():
            cells[at] = self._cell(found, depth + _STEP, wider)
        return _CELL_NODE | self._nodes.number(_NODE.pack(*cells))

    def flush(self) -> None:
        """Write what is new: entries first, so that a node leads nowhere else."""
        self._entries.flush()
        self._nodes.flush()

    def forget_new(self) -> None:
        """As if what is not yet written had not been made."""
        self._known.clear()
        self._entries.forget_new()
        self._nodes.forget_new()

    def keep(self, cells: Iterable[int]) -> None:
        """Let the rows be used again that no trie of `cells` needs.

        The caller has waited for the programs that may still have been in others.
        """
        nodes, entries = self._reached(cells, self._nodes.contents, self._entries.contents)
        self._known.clear()
        self._nodes.keep(nodes)
        self._entries.keep(entries)

    def adopt(self, cells: Iterable[int]) -> None:
        """Know the tries of `cells` as the arrays have them, and no others."""
        self._known.clear()
        nodes, entries = self._reached(cells, self._nodes.read_all(), self._entries.read_all())
        self._nodes.keep(nodes)
        self._entries.keep(entries)

    def _reached(
        self, cells: Iterable[int], nodes: Mapping[int, bytes], entries: Mapping[int, bytes]
    ) -> tuple[dict[int, bytes], dict[int, bytes]]:
        """The rows of the tries of `cells`, as far as they are there."""
        reached: tuple[dict[int, bytes], dict[int, bytes]] = ({}, {})
        left = list(cells)
        while left:
            cell = left.pop()
            number = cell & ~_CELL_NODE
            here, there = (reached[0], nodes) if cell & _CELL_NODE else (reached[1], entries)
            if number in here or number not in there or not number:
                continue
            here[number] = there[number]
            if cell & _CELL_NODE:
                left += _NODE.unpack(there[number])
        return reached

    # ------------------------------------------------------------------ from the kernel

    def read(self, keys: npt.NDArray[Any], values: npt.NDArray[Any]) -> PolicyEntries:
        """The entries that programs find by rows of an endpoint's map.

        A row that tells any identity's entries otherwise than row 0, or is under another identity
        than its own, is not understood: it is shown as one entry without a verdict.
        """
        any_roots = {tuple(row) for row in values["any"][keys == 0].tolist()} or {NOTHING}
        (anyone,) = any_roots
        reader = _Reader(self._nodes, self._entries)
        right = np.all(values["any"] == np.array(anyone, np.uint32), axis=1)
        right &= values["identity"] == keys
        wrong = keys[~right]
        right &= keys != 0
        members, own = keys[right], values["own"][right]
        patterns, places = np.unique(own, axis=0, return_inverse=True)
        order = np.argsort(places.reshape(-1), kind="stable")
        return GroupedEntries(
            reader.entries(anyone),
            [*(reader.entries((one, other)) for one, other in patterns.tolist()), _UNREADABLE],
            [*np.bincount(places.reshape(-1), minlength=len(patterns)).tolist(), len(wrong)],
            np.concatenate([members[order], wrong]).astype(np.uint32),
        ).spread()


def visible(entries: GroupedEntries) -> PolicyEntries:
    """Those that some packet finds: not one whose slot narrower ones fill wholly."""
    scratch = PolicyNodes(None, None)
    return scratch.read(*scratch.rows(entries))


class _Reader:
    """Reads tries, each row once."""

    def __init__(self, nodes: _Rows, entries: _Rows) -> None:
        self._sources = nodes, entries
        self._nodes: dict[int, tuple[int, ...]] = {}
        self._entries: dict[int, bytes] = {}

    def entries(self, roots: Roots) -> PolicyEntries:
        """The entries of the tries, those of identity 0."""
        found: dict[tuple[int, ...], int] = {}
        for direction, cell in zip(Direction, roots, strict=True):
            self._walk(direction, cell, 0, 0, found)
        keys = np.array(list(found), KEY_DTYPE) if found else np.zeros(0, KEY_DTYPE)
        data = b"".join([self._entry(number) for number in found.values()])
        return PolicyEntries(keys, np.frombuffer(data, VALUE_DTYPE))

    def _walk(
        self, direction: int, cell: int, path: int, depth: int, found: dict[tuple[int, ...], int]
    ) -> None:
        if cell & _CELL_NODE:
            if depth < _PATH:
                for at, below in enumerate(self._node(cell & ~_CELL_NODE)):
                    shift = _PATH - _STEP - depth
                    self._walk(direction, below, path | at << shift, depth + _STEP, found)
        elif cell and (entry := self._entry(cell)):
            bits = entry[_LPM_BITS] if entry[_LPM_BITS] >= PROTOCOL_BITS else 0
            path = path >> (_PATH - bits) << (_PATH - bits)
            found[STATIC_BITS + bits, 0, direction, path >> 16, path & 0xFFFF] = cell

    def _node(self, number: int) -> tuple[int, ...]:
        if number not in self._nodes:
            content = self._sources[0].read(number)
            self._nodes[number] = _NODE.unpack(content) if content else ()
        return self._nodes[number]

    def _entry(self, number: int) -> bytes:
        if number not in self._entries:
            self._entries[number] = self._sources[1].read(number)
        return self._entries[number]
