"""The bits that tell a program at a glance that a packet is for no service.

Layouts and hash are those of `bpf/lib/lb_filter.h`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

import numpy as np

from pyciliumlib.errors import InvalidError
from pyciliumlib.types import MapLike

if TYPE_CHECKING:
    import numpy.typing as npt

#: What a bit of an address stands for, beside its ports and protocols.
OTHER_PORTS: Final = 0
FRAGMENTS: Final = 0xFFFFFF
_BITS: Final = 64
_MIX: Final = tuple(map(np.uint64, (0x9E3779B97F4A7C15, 0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53)))


def port_bit(port: int, protocol: int) -> int:
    """What stands for a port (as a little-endian machine reads it from a packet) and protocol."""
    return protocol << 16 | (port & 0xFF) << 8 | port >> 8


def filter_hashes(
    addresses: npt.NDArray[np.uint8], whats: npt.NDArray[np.uint64]
) -> npt.NDArray[np.uint32]:
    """The hashes of n 16-byte addresses, shape (n, 16), each with what it stands for."""
    halves = np.ascontiguousarray(addresses).view(np.uint64)
    mixed = (halves[:, 0] * _MIX[0] ^ halves[:, 1] ^ whats) * _MIX[1]
    mixed = (mixed ^ mixed >> np.uint64(32)) * _MIX[2]
    return (mixed >> np.uint64(32)).astype(np.uint32)


class FilterTable:
    """Keeps a map of bits; each is set while somebody needs it, counted here."""

    def __init__(self, cells: MapLike) -> None:
        count = cells.max_entries
        if count & (count - 1):
            raise InvalidError(f"a filter has a power of two of cells, not {count}")
        self._map = cells
        self._users = np.zeros(count * _BITS, np.uint16)
        self._words = np.zeros(count, np.uint64)

    def bits(self, needed: list[tuple[bytes, int]]) -> npt.NDArray[np.int64]:
        """The places of the bits of (16-byte address, what it stands for)."""
        if not needed:
            return np.empty(0, np.int64)
        addresses = np.frombuffer(b"".join(a for a, _ in needed), np.uint8).reshape(-1, 16)
        hashes = filter_hashes(addresses, np.array([what for _, what in needed], np.uint64))
        return (hashes % np.uint32(len(self._users))).astype(np.int64)

    def change(self, added: npt.NDArray[np.int64], removed: npt.NDArray[np.int64]) -> None:
        """Count users in and out, and write the cells whose bits change."""
        np.add.at(self._users, added, np.uint16(1))
        np.subtract.at(self._users, removed, np.uint16(1))
        self._write(np.unique(np.concatenate([added, removed]) // _BITS))

    def load(self) -> None:
        """Before the first change: know what the map holds, whoever wrote it."""
        self._words = self._read()

    def mend(self) -> None:
        """Let the map hold what is needed, and nothing else."""
        self._write(np.arange(len(self._words)))

    def differences(self) -> Iterator[str]:
        """How the map differs from what is needed, in words."""
        found, needed = self._read(), self._needed(np.arange(len(self._words)))
        for cell in np.flatnonzero(found != needed):
            yield f"filter: cell {cell} is {found[cell]:#x}, not {needed[cell]:#x}"

    def _read(self) -> npt.NDArray[np.uint64]:
        _, words = self._map.lookup_batch()
        return words.astype(np.uint64)

    def _needed(self, cells: npt.NDArray[np.int64]) -> npt.NDArray[np.uint64]:
        users = self._users.reshape(-1, _BITS)[cells] > 0
        words: npt.NDArray[np.uint64] = np.packbits(users, axis=1, bitorder="little").view("<u8")
        return words[:, 0]

    def _write(self, cells: npt.NDArray[np.int64]) -> None:
        words = self._needed(cells)
        differ = words != self._words[cells]
        cells, words = cells[differ], words[differ]
        if len(cells):
            self._words[cells] = words  # also where writing fails half-way, so that it is undone
            self._map.update_batch(
                cells.astype(self._map.key_dtype), words.astype(self._map.value_dtype)
            )
