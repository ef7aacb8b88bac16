"""Maglev: a table from which every node picks the same backend for a flow.

Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load Balancer", NSDI 2016,
section 3.4; hashes, seeds and weights are Cilium's, so that the tables are bit-identical.
"""

from __future__ import annotations

import base64
import binascii
import itertools
import struct
from collections.abc import Iterable, Sequence
from operator import attrgetter
from typing import TYPE_CHECKING, Final
from weakref import WeakValueDictionary

import numpy as np
from attrs import field, frozen

from pyciliumlib._fast import ffi, lib
from pyciliumlib.errors import InvalidError
from pyciliumlib.loadbalancer.backend import Backend
from pyciliumlib.loadbalancer.flow_hash import FlowHash, FlowTuple
from pyciliumlib.loadbalancer.maglev_table import MaglevTable

if TYPE_CHECKING:
    import numpy.typing as npt

#: The primes that Cilium takes for the size of a table.
SIZES: Final = (251, 509, 1021, 2039, 4093, 8191, 16381, 32749, 65521, 131071)
SIZE_DEFAULT: Final = 16381
SEED_DEFAULT: Final = "JLfvgnHc2kaSUFaI"
_SEED_BYTES: Final = 12
#: Placements that are kept: a rebuild hashes only the backends that are new.
_PLACES_MAX: Final = 1 << 17

_hash_string = attrgetter("hash_string")


@frozen
class MaglevSeed:
    """The seeds of a cluster: of the backends' hash, and of the flow hash of each family."""

    murmur: int
    flow: FlowHash

    @classmethod
    def parse(cls, text: str) -> MaglevSeed:
        """From the base64 text of 12 bytes, as `bpf-lb-maglev-hash-seed` has it.

        Raises InvalidError for anything else.
        """
        try:
            data = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError) as error:
            raise InvalidError(f"seed {text!r} is no base64: {error}") from error
        if len(data) != _SEED_BYTES:
            raise InvalidError(
                f"seed {text!r} holds {len(data)} bytes and not {_SEED_BYTES}; "
                "make one with `head -c12 /dev/urandom | base64 -w0`"
            )
        murmur, ipv4, ipv6 = struct.unpack(">III", data)
        return cls(murmur, FlowHash(ipv4, ipv6))


def _seed(value: str | MaglevSeed) -> MaglevSeed:
    return value if isinstance(value, MaglevSeed) else MaglevSeed.parse(value)


def _default_seed() -> MaglevSeed:
    return MaglevSeed.parse(SEED_DEFAULT)


def _check_size(_: object, __: object, size: int) -> None:
    if isinstance(size, bool) or size not in SIZES:
        raise InvalidError(
            f"table size {size!r}: write one of {', '.join(map(str, SIZES))}; "
            "about 100 slots for each backend keep the shares even"
        )


@frozen(eq=False)
class Maglev:
    """Builds tables of one size and seed, which are to be the same on all nodes of a cluster.

    >>> table = Maglev(251).build([Backend("10.0.0.1", 80), Backend("10.0.0.2", 80)])
    >>> sorted(table.counts().values())
    [125, 126]

    Equal backends share one table while anyone holds it. Memory: 4 bytes a slot.
    """

    size: int = field(default=SIZE_DEFAULT, validator=_check_size)
    seed: MaglevSeed = field(factory=_default_seed, converter=_seed)
    _offsets: dict[str, int] = field(init=False, factory=dict, repr=False)
    _skips: dict[str, int] = field(init=False, factory=dict, repr=False)
    _tables: WeakValueDictionary[tuple[Backend, ...], MaglevTable] = field(
        init=False, factory=WeakValueDictionary, repr=False
    )

    def build(self, backends: Iterable[Backend]) -> MaglevTable:
        """The table of these backends; their order does not matter.

        Raises InvalidError if one is there twice.
        """
        ordered = tuple(sorted(backends, key=_hash_string))
        texts = tuple(map(_hash_string, ordered))
        if len(set(texts)) < len(texts):
            twice = next(one for one, other in itertools.pairwise(texts) if one == other)
            raise InvalidError(f"backend {twice} is there twice; give it once, with one weight")
        table = self._tables.get(ordered)
        if table is None:
            weights = [backend.weight for backend in ordered]
            table = MaglevTable(ordered, self._fill(texts, weights), self.seed.flow)
            self._tables[ordered] = table
        return table

    def placement(self, backend: Backend) -> tuple[int, int]:
        """The offset and the skip of a backend's permutation of the slots."""
        text = backend.hash_string
        self._place([text])
        return self._offsets[text], self._skips[text]

    def slot(self, flow: FlowTuple, *, affinity: bool = False) -> int:
        """The slot of a flow in every table of this size and seed."""
        return self.seed.flow.of(flow, affinity=affinity) % self.size

    def _fill(self, texts: Sequence[str], weights: Sequence[int]) -> npt.NDArray[np.int32]:
        count = len(texts)
        if not count:
            return np.full(self.size, -1, np.int32)
        self._place(texts)
        offsets = np.fromiter(map(self._offsets.__getitem__, texts), np.uint32, count)
        skips = np.fromiter(map(self._skips.__getitem__, texts), np.uint32, count)
        slots = np.empty(self.size, np.uint32)
        failed = lib.pcl_maglev_fill(
            ffi.from_buffer("uint32_t[]", slots),
            self.size,
            ffi.from_buffer("uint32_t[]", offsets),
            ffi.from_buffer("uint32_t[]", skips),
            ffi.from_buffer("uint16_t[]", np.array(weights, np.uint16))
            if _in_force(weights)
            else ffi.NULL,
            count,
        )
        if failed:
            raise MemoryError(f"no memory to place {count} backends")
        return slots.view(np.int32)

    def _place(self, texts: Sequence[str]) -> None:
        """Work out offset and skip of those texts that are not placed yet."""
        unknown = [text.encode() for text in texts if text not in self._offsets]
        if not unknown:
            return
        if len(self._offsets) + len(unknown) > _PLACES_MAX:
            self._offsets.clear()
            self._skips.clear()
            unknown = [text.encode() for text in texts]
        ends = np.cumsum([len(text) for text in unknown], dtype=np.uint64)
        hashes = np.empty((len(unknown), 2), np.uint64)
        lib.pcl_murmur3_128(
            ffi.from_buffer("uint8_t[]", b"".join(unknown)),
            ffi.from_buffer("uint64_t[]", ends),
            len(unknown),
            self.seed.murmur,
            ffi.from_buffer("uint64_t[]", hashes),
        )
        offsets = (hashes[:, 0] % np.uint64(self.size)).tolist()
        skips = (hashes[:, 1] % np.uint64(self.size - 1) + np.uint64(1)).tolist()
        for text, offset, skip in zip(unknown, offsets, skips, strict=True):
            self._offsets[text.decode()], self._skips[text.decode()] = offset, skip


def _in_force(weights: Sequence[int]) -> bool:
    """Whether weights change the turns: in Cilium they count from a mean of 2 on."""
    return sum(weights) // len(weights) > 1 and min(weights) != max(weights)
