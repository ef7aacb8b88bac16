"""One measured figure beside its peer's, and the table of them all."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from attrs import frozen


@frozen
class Target:
    """What a figure must reach: its ratio to the peer's, or the value itself."""

    sign: str
    bound: float
    of_ratio: bool = False

    def met(self, figure: Figure) -> bool:
        """Whether the figure is on the right side of the bound."""
        number = figure.ratio if self.of_ratio else figure.value
        if number is None:
            raise ValueError(f"{figure.name} has no peer, so its ratio has no target")
        return number >= self.bound if self.sign == ">=" else number <= self.bound

    def __str__(self) -> str:
        return f"{'x ' if self.of_ratio else ''}{self.sign} {self.bound:g}"


def at_least(bound: float) -> Target:
    return Target(">=", bound)


def at_most(bound: float) -> Target:
    return Target("<=", bound)


def ratio_at_least(bound: float) -> Target:
    return Target(">=", bound, of_ratio=True)


def ratio_at_most(bound: float) -> Target:
    return Target("<=", bound, of_ratio=True)


@frozen
class Figure:
    """`value` in `unit`, and what the peer, or the floor, took in the same run."""

    name: str
    value: float
    unit: str
    peer: str = ""
    peer_value: float | None = None
    target: Target | None = None

    @property
    def ratio(self) -> float | None:
        """The value in units of the peer's."""
        return self.value / self.peer_value if self.peer_value else None

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "value": self.value,
            "unit": self.unit,
            "peer": self.peer,
            "peer_value": self.peer_value,
            "ratio": self.ratio,
        }

    def cells(self) -> list[str]:
        """The figure as a row of the table."""
        verdict = ""
        if self.target:
            verdict = f"{self.target}  {'met' if self.target.met(self) else 'MISSED'}"
        return [
            self.name,
            _number(self.value),
            self.unit,
            self.peer,
            _number(self.peer_value),
            "" if self.ratio is None else f"{self.ratio:.2f}",
            verdict,
        ]


def spread(
    name: str,
    values: Sequence[float],
    unit: str,
    peer: str,
    peer_values: Sequence[float],
    target: Target | None = None,
) -> Iterator[Figure]:
    """Of rounds that measured both: the medians, which have the target, and how far they vary."""
    both = (values, peer_values)
    middle, slowest, fastest = ([of(one) for one in both] for of in (statistics.median, min, max))
    yield Figure(f"{name}, median of {len(values)}", middle[0], unit, peer, middle[1], target)
    yield Figure(f"{name}, slowest", slowest[0], unit, peer, slowest[1])
    yield Figure(f"{name}, fastest", fastest[0], unit, peer, fastest[1])


_HEAD = ("figure", "value", "unit", "beside", "its value", "ratio", "target")
_RIGHT = {1, 4, 5}


def table(figures: Iterable[Figure]) -> str:
    """All figures as text, one a line."""
    rows = [list(_HEAD), *(figure.cells() for figure in figures)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(_HEAD))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if i in _RIGHT else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def write_json(figures: Iterable[Figure], path: Path) -> None:
    """All figures as a list of objects."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([figure.to_json() for figure in figures], indent=1) + "\n")


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
