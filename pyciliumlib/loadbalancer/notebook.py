"""Tables for notebooks: escaped, capped, without scripts."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Final

from attrs import frozen

#: Rows that are shown.
ROWS_MAX: Final = 40
_TEXT_MAX: Final = 200
_BAR_WIDTH: Final = 320
_COLOURS: Final = ("#4c78a8", "#f58518", "#bab0ac")


@frozen
class Bar:
    """A bar of parts that are shares, 0 to 1, of its full length."""

    parts: tuple[float, ...]

    def to_html(self) -> str:
        """The parts side by side, each in its colour."""
        return "".join(
            f"<span style='display:inline-block;height:.8em;background:{colour};"
            f"width:{round(_BAR_WIDTH * part)}px'></span>"
            for part, colour in zip(self.parts, _COLOURS, strict=False)
        )


def table(caption: str, head: Sequence[str], rows: Sequence[Sequence[str | Bar]]) -> str:
    """A table of the first rows, and how many more there are."""
    left = len(rows) - ROWS_MAX
    more = f"<p>and {left} more</p>" if left > 0 else ""
    body = "".join(map(_row, rows[:ROWS_MAX]))
    titles = "".join(f"<th>{_text(title)}</th>" for title in head)
    return f"<p>{_text(caption)}</p><table><tr>{titles}</tr>{body}</table>{more}"


def _row(cells: Sequence[str | Bar]) -> str:
    shown = (cell.to_html() if isinstance(cell, Bar) else _text(cell) for cell in cells)
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in shown) + "</tr>"


def _text(text: str) -> str:
    return html.escape(text if len(text) <= _TEXT_MAX else text[: _TEXT_MAX - 1] + "…")
