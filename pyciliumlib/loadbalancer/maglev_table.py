"""A built table: who serves a flow, how even the shares are, and what a change moves."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from attrs import field, frozen

from pyciliumlib.errors import InvalidError, NotFoundError
from pyciliumlib.loadbalancer import notebook
from pyciliumlib.loadbalancer.backend import Backend
from pyciliumlib.loadbalancer.flow_hash import FlowHash, FlowTuple
from pyciliumlib.loadbalancer.notebook import Bar

if TYPE_CHECKING:
    import numpy.typing as npt


@frozen
class Share:
    """A backend's slots before a change and after it: those that it keeps, loses and gains."""

    backend: Backend
    kept: int
    lost: int
    gained: int


@frozen
class Disruption:
    """What the change from one table to another moves, in slots.

    `ideal` is what has to move: the slots of backends that went, or those that new ones are due.
    `extra` are slots whose backend is in both tables and lost them to another such one. `shares`
    are those of each backend of either table, whoever changes most first.
    """

    size: int
    moved: int
    extra: int
    ideal: int
    shares: tuple[Share, ...] = field(default=(), repr=False)

    def _repr_html_(self) -> str:
        """Bars for notebooks: the slots that a backend keeps, gains, and loses."""
        most = max((one.kept + one.gained + one.lost for one in self.shares), default=1) or 1
        return notebook.table(
            str(self),
            ("backend", "kept", "gained", "lost", ""),
            [(str(one.backend), str(one.kept), str(one.gained), str(one.lost),
              Bar((one.kept / most, one.gained / most, one.lost / most)))
             for one in self.shares],
        )  # fmt: skip

    def __str__(self) -> str:
        def share(slots: int) -> str:
            return f"{slots} ({100 * slots / self.size:.1f} %)"

        return (
            f"{share(self.moved)} of {self.size} slots move; {share(self.ideal)} have to, "
            f"{share(self.extra)} go from one surviving backend to another"
        )


@frozen(eq=False, repr=False)
class MaglevTable:
    """The slots of a table.

    `backends` are in the order of their hash strings; `slots` holds a position among them for
    each slot, shape (size,), int32, -1 in all of them if there are no backends. Read-only.
    """

    backends: tuple[Backend, ...]
    slots: npt.NDArray[np.int32]
    _hash: FlowHash = field(repr=False)

    def __attrs_post_init__(self) -> None:
        self.slots.flags.writeable = False

    @property
    def size(self) -> int:
        """The number of slots, a prime."""
        return len(self.slots)

    def ids(self, ids: npt.ArrayLike) -> npt.NDArray[np.uint32]:
        """The slots as a map holds them: the backend's id, shape (size,).

        `ids` are numbers above 0 in the order of `backends`; 0 in the result is "no backend".
        """
        numbers = np.asarray(ids, np.uint32)
        if numbers.shape != (len(self.backends),):
            raise InvalidError(f"{len(self.backends)} backends need as many ids, in their order")
        return np.append(numbers, np.uint32(0)).take(self.slots, mode="wrap")  # -1 is the last

    def select(self, flow: FlowTuple, *, affinity: bool = False) -> Backend:
        """The backend of a new flow; with `affinity` the client's port does not count.

        Raises NotFoundError if there are no backends.
        """
        if not self.backends:
            raise NotFoundError("the table has no backends")
        slot = self._hash.of(flow, affinity=affinity) % self.size
        return self.backends[int(self.slots[slot])]

    def select_columns(
        self,
        clients: npt.NDArray[np.uint8],
        client_ports: npt.NDArray[np.uint16],
        service_ports: npt.NDArray[np.uint16],
        protocols: npt.NDArray[np.uint8],
    ) -> npt.NDArray[np.int32]:
        """The positions of the backends of n flows; for the columns see `FlowHash.of_columns`."""
        hashes = self._hash.of_columns(clients, client_ports, service_ports, protocols)
        return np.asarray(self.slots[hashes % np.uint32(self.size)], np.int32)

    def counts(self) -> dict[Backend, int]:
        """How many slots each backend has."""
        if not self.backends:
            return {}
        found = np.bincount(self.slots, minlength=len(self.backends)).tolist()
        return dict(zip(self.backends, found, strict=True))

    def imbalance(self) -> float:
        """The largest share of a backend over what its weight is due; 1.0 is even."""
        if not self.backends:
            return 1.0
        weights = np.array([backend.weight for backend in self.backends], np.float64)
        if weights.sum() // len(weights) <= 1:  # then they take turns evenly
            weights[:] = 1
        counts = np.bincount(self.slots, minlength=len(weights))
        due = weights > 0
        return float((counts[due] * weights.sum() / weights[due]).max() / self.size)

    def disruption(self, other: MaglevTable) -> Disruption:
        """What replacing this table by `other` moves; InvalidError if their sizes differ."""
        if other.size != self.size:
            raise InvalidError(f"tables of {self.size} and {other.size} slots do not compare")
        known: dict[Backend, int] = {}

        def numbers(table: MaglevTable) -> npt.NDArray[np.int64]:
            named = [known.setdefault(_identity(b), len(known)) for b in table.backends]
            return np.array([*named, -1], np.int64)

        ours, theirs = numbers(self), numbers(other)
        before, after = ours[self.slots], theirs[other.slots]
        moved = before != after
        gone = ~np.isin(before, theirs[:-1])
        new = ~np.isin(after, ours[:-1])
        ideal = int(np.count_nonzero(gone | new))
        extra = int(np.count_nonzero(moved & ~gone & ~new))
        shares = _shares(list(known), before, after)
        return Disruption(self.size, int(np.count_nonzero(moved)), extra, ideal, shares)

    def __repr__(self) -> str:
        return f"<MaglevTable of {self.size} slots, {len(self.backends)} backends>"

    def _repr_html_(self) -> str:
        """Bars of the backends' slots, for notebooks; the first of them."""
        counts = self.counts()
        most = max(counts.values(), default=1) or 1
        return notebook.table(
            f"{self.size} slots, {len(self.backends)} backends, the largest share "
            f"{self.imbalance():.3f} of its due",
            ("backend", "weight", "slots", ""),
            [(str(backend), str(backend.weight), str(count), Bar((count / most,)))
             for backend, count in counts.items()],
        )  # fmt: skip


def _shares(
    backends: list[Backend], before: npt.NDArray[np.int64], after: npt.NDArray[np.int64]
) -> tuple[Share, ...]:
    """Of each backend, by its number in the slots."""

    def counted(numbers: npt.NDArray[np.int64]) -> list[int]:
        found: list[int] = np.bincount(numbers[numbers >= 0], minlength=len(backends)).tolist()
        return found

    same = before == after
    columns = counted(before[same]), counted(before[~same]), counted(after[~same])
    found = (Share(*row) for row in zip(backends, *columns, strict=True))
    return tuple(sorted(found, key=lambda one: -(one.lost + one.gained)))


def _identity(backend: Backend) -> Backend:
    """The backend without its weight: one that is weighed anew is still the same."""
    return Backend(
        backend.address,
        backend.port,
        backend.protocol,
        cluster_id=backend.cluster_id,
        internal=backend.internal,
    )
