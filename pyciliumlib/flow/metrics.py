"""Packets and bytes by direction and reason, as the programs counted them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from attrs import frozen

from pyciliumlib.flow.reasons import reason_text
from pyciliumlib.types import Direction

if TYPE_CHECKING:
    from pyciliumlib.types import MapLike

#: The programs count a packet between two endpoints of the node once, for both directions.
_BOTH: Final = 2


@frozen
class Metric:
    """One counter: `reason` 0 is "forwarded", the others are drop reasons."""

    direction: Direction
    reason: int
    packets: int
    bytes: int

    def __str__(self) -> str:
        what = "forwarded" if self.reason == 0 else reason_text(self.reason)
        return f"{self.direction!s:8} {self.packets:>12} {self.bytes:>16}  {what}"


@frozen
class Metrics:
    """All counters that are not zero, summed over the CPUs at one moment."""

    rows: tuple[Metric, ...]
    events_lost: int

    @classmethod
    def read(cls, metrics: MapLike, events_lost: MapLike | None = None) -> Metrics:
        """From the maps of a loaded object; one that tells no events has no `events_lost`."""
        keys, values = metrics.lookup_batch()
        packets, size = values["packets"].sum(axis=1), values["bytes"].sum(axis=1)
        sums: dict[tuple[int, int], tuple[int, int]] = {}
        for i in packets.nonzero()[0]:
            direction, reason = divmod(int(keys[i]), 256)
            for each in tuple(Direction) if direction == _BOTH else (Direction(direction),):
                before = sums.get((each, reason), (0, 0))
                sums[each, reason] = before[0] + int(packets[i]), before[1] + int(size[i])
        rows = tuple(Metric(Direction(way), why, *sums[way, why]) for way, why in sorted(sums))
        lost = 0 if events_lost is None else int(events_lost.lookup_batch()[1].sum())
        return cls(rows, lost)

    def packets(self, reason: int = 0, direction: Direction | None = None) -> int:
        """Packets of one reason (0 = forwarded), of one direction or both."""
        return sum(
            row.packets
            for row in self.rows
            if row.reason == reason and direction in (None, row.direction)
        )

    @property
    def dropped(self) -> int:
        """Packets dropped, for whatever reason."""
        return sum(row.packets for row in self.rows if row.reason)

    def __iter__(self) -> Iterator[Metric]:
        return iter(self.rows)

    def __str__(self) -> str:
        head = f"{'':8} {'packets':>12} {'bytes':>16}"
        return "\n".join([head, *map(str, self.rows)])
