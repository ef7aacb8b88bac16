"""What a map holds, remembered, so that a change writes what differs and can be undone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from pyciliumlib.types import MapLike, address_from_bytes

if TYPE_CHECKING:
    import numpy.typing as npt

#: Steps that undo a change, the last one first.
Undo = list[Callable[[], None]]


class Mirror:
    """A map that one writer fills. Of an array, entries that were never written are zero."""

    def __init__(self, map_: MapLike, name: str, *, array: bool = False) -> None:
        self.name = name
        self._map = map_
        self._array = array
        self._rows: dict[bytes, bytes] = {}

    @property
    def free(self) -> int:
        """How many entries can be added."""
        return self._map.max_entries - len(self._rows)

    def new_rows(self, count: int) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """Keys and values to fill in, all zero."""
        return np.zeros(count, self._map.key_dtype), np.zeros(count, self._map.value_dtype)

    def load(self) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """Remember what the map holds now, whoever wrote it; keys and values of that."""
        self._rows = self._read()
        return (
            np.frombuffer(b"".join(self._rows), self._map.key_dtype),
            np.frombuffer(b"".join(self._rows.values()), self._map.value_dtype),
        )

    def strays(self, wanted: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The keys that are there and not among these."""
        kept = set(_rows(wanted))
        return np.frombuffer(
            b"".join(row for row in self._rows if row not in kept), self._map.key_dtype
        )

    def differences(self) -> Iterator[str]:
        """How the map differs from what was written, in words."""
        there = self._read()
        for key in there.keys() - self._rows.keys():
            yield f"{self.name}: {self._key(key)} should not be there"
        for key, value in self._rows.items():
            if key not in there:
                yield f"{self.name}: {self._key(key)} is missing"
            elif there[key] != value:
                found, meant = (
                    _text(np.frombuffer(row, self._map.value_dtype)[0])
                    for row in (there[key], value)
                )
                yield f"{self.name}: {self._key(key)} is {found}, not {meant}"

    def _key(self, row: bytes) -> str:
        return _text(np.frombuffer(row, self._map.key_dtype)[0])

    def _read(self) -> dict[bytes, bytes]:
        keys, values = self._map.lookup_batch()
        rows = dict(zip(_rows(keys), _rows(values), strict=True))
        if self._array:
            nothing = bytes(self._map.value_dtype.itemsize)
            rows = {key: value for key, value in rows.items() if value != nothing}
        return rows

    def missing(self, keys: npt.NDArray[Any]) -> int:
        """How many of the keys are not there."""
        return len({row for row in _rows(keys) if row not in self._rows})

    def put(self, keys: npt.NDArray[Any], values: npt.NDArray[Any], undo: Undo) -> int:
        """Write the entries that differ; how many."""
        wanted = dict(zip(_rows(keys), _rows(values), strict=True))
        changed = {key: value for key, value in wanted.items() if self._rows.get(key) != value}
        before = {key: self._rows.get(key) for key in changed}
        if changed:
            undo.append(lambda: self._restore(before))
            self._write(changed)
        return len(changed)

    def drop(self, keys: npt.NDArray[Any], undo: Undo) -> int:
        """Delete the entries that are there; how many."""
        before = {row: self._rows[row] for row in _rows(keys) if row in self._rows}
        if before:
            undo.append(lambda: self._restore(dict(before)))
            self._delete(list(before))
        return len(before)

    def _write(self, rows: dict[bytes, bytes]) -> None:
        self._map.update_batch(
            np.frombuffer(b"".join(rows), self._map.key_dtype),
            np.frombuffer(b"".join(rows.values()), self._map.value_dtype),
        )
        self._rows.update(rows)

    def _delete(self, keys: list[bytes]) -> None:
        if self._array:
            self._write(dict.fromkeys(keys, bytes(self._map.value_dtype.itemsize)))
        else:
            self._map.delete_batch(np.frombuffer(b"".join(keys), self._map.key_dtype))
        for key in keys:
            self._rows.pop(key, None)

    def _restore(self, before: dict[bytes, bytes | None]) -> None:
        """Whatever was written of a change, make the map what it was."""
        old = {key: value for key, value in before.items() if value is not None}
        gone = [key for key, value in before.items() if value is None]
        if old:
            self._write(old)
        if gone:
            self._delete(gone)


def _text(record: Any) -> str:
    """A key or value for people: the fields with their names, addresses as such."""
    names = [name for name in record.dtype.names or () if not name.startswith("pad")]
    if not names:
        return str(address_from_bytes(record.tobytes())) if record.nbytes == 16 else str(record)
    return " ".join(f"{name} {_text(record[name])}" for name in names)


def _rows(array: npt.NDArray[Any]) -> list[bytes]:
    data, size = array.tobytes(), array.dtype.itemsize
    return [data[at : at + size] for at in range(0, len(data), size)]
