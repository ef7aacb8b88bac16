"""Maglev: a table from which every node picks the same backend for a flow.

Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load Balancer", NSDI 2016,
section 3.4; hashes, seeds and weights are Cilium's, so that the tables are bit-identical.
"""

from __future__ import annotations

import base64
import binascii
import struct
from collections.abc import Iterable
from operator import attrgetter
from typing import TYPE_CHECKING, Final
from weakref import WeakValueDictionary

import numpy as np
from attrs import field, frozen

from pyciliumlib._fast import ffi, lib
from pyciliumlib.errors import InvalidError
from pyciliumlib.loadbalancer.backend import KEY_SIZE, Backend
from pyciliumlib.loadbalancer.flow_hash import FlowHash, FlowTuple
from pyciliumlib.loadbalancer.maglev_table import MaglevTable

if TYPE_CHECKING:
    import numpy.typing as npt

    _Numbers = npt.NDArray[np.uint32]

#: The primes that Cilium takes for the size of a table.
SIZES: Final = (251, 509, 1021, 2039, 4093, 8191, 16381, 32749, 65521, 131071)
SIZE_DEFAULT: Final = 16381
SEED_DEFAULT: Final = "JLfvgnHc2kaSUFaI"
_SEED_BYTES: Final = 12

_key, _weight = attrgetter("key"), attrgetter("weight")


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

    Equal backends share their slots while anyone holds them. Memory: 4 bytes a slot.
    """

    size: int = field(default=SIZE_DEFAULT, validator=_check_size)
    seed: MaglevSeed = field(factory=_default_seed, converter=_seed)
    _slots: WeakValueDictionary[bytes, npt.NDArray[np.int32]] = field(
        init=False, factory=WeakValueDictionary, repr=False
    )

    def build(self, backends: Iterable[Backend]) -> MaglevTable:
        """The table of these backends; their order does not matter.

        Raises InvalidError if one is there twice.
        """
        listed = list(backends)
        keys = list(map(_key, listed))
        if len(set(keys)) < len(keys):
            twice = next(one for one in listed if keys.count(one.key) > 1)
            raise InvalidError(f"backend {twice} is there twice; give it once, with one weight")
        packed = np.frombuffer(b"".join(keys), f"V{KEY_SIZE}")
        order, offsets, skips = self._place(packed)
        ordered = tuple(map(listed.__getitem__, order.tolist()))
        weights = np.fromiter(map(_weight, ordered), np.uint16, len(ordered))
        content = packed[order].tobytes() + weights.tobytes()
        slots = self._slots.get(content)
        if slots is None:
            slots = self._slots[content] = self._fill(offsets, skips, weights)
        return MaglevTable(ordered, slots, self.seed.flow)

    def placement(self, backend: Backend) -> tuple[int, int]:
        """The offset and the skip of a backend's permutation of the slots."""
        _, offsets, skips = self._place(np.frombuffer(backend.key, f"V{KEY_SIZE}"))
        return int(offsets[0]), int(skips[0])

    def slot(self, flow: FlowTuple, *, affinity: bool = False) -> int:
        """The slot of a flow in every table of this size and seed."""
        return self.seed.flow.of(flow, affinity=affinity) % self.size

    def _place(self, keys: npt.NDArray[np.void]) -> tuple[_Numbers, _Numbers, _Numbers]:
        """The order of the backends' texts; and in it where each begins and how far it steps."""
        order, offsets, skips = (np.empty(len(keys), np.uint32) for _ in range(3))
        failed = lib.pcl_maglev_place(
            ffi.from_buffer("struct pcl_backend[]", keys),
            len(keys),
            self.seed.murmur,
            self.size,
            *(ffi.from_buffer("uint32_t[]", column) for column in (order, offsets, skips)),
        )
        if failed:
            raise MemoryError(f"no memory to place {len(keys)} backends")
        return order, offsets, skips

    def _fill(
        self, offsets: _Numbers, skips: _Numbers, weights: npt.NDArray[np.uint16]
    ) -> npt.NDArray[np.int32]:
        if not len(weights):
            return np.full(self.size, -1, np.int32)
        slots = np.empty(self.size, np.uint32)
        failed = lib.pcl_maglev_fill(
            ffi.from_buffer("uint32_t[]", slots),
            self.size,
            ffi.from_buffer("uint32_t[]", offsets),
            ffi.from_buffer("uint32_t[]", skips),
            ffi.from_buffer("uint16_t[]", weights) if _in_force(weights) else ffi.NULL,
            len(weights),
        )
        if failed:
            raise MemoryError(f"no memory to place {len(weights)} backends")
        return slots.view(np.int32)


def _in_force(weights: npt.NDArray[np.uint16]) -> bool:
    """Whether weights change the turns: in Cilium they count from a mean of 2 on."""
    mean = int(weights.sum(dtype=np.uint64)) // len(weights)
    return mean > 1 and bool((weights != weights[0]).any())
