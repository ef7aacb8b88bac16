"""Pages that list what the code knows list all of it, and no more."""

from __future__ import annotations

import re
from pathlib import Path

from pyciliumlib import DropReason

DOCS = Path(__file__).parents[2] / "docs"
_ROW = re.compile(r"^\| (\d+) \| `(\w+)` \| (.+?) \| (.+?) \|$", re.MULTILINE)


def test_drop_reasons() -> None:
    """The table has each reason's number, name and text, in order, and explains it."""
    rows = _ROW.findall((DOCS / "drop-reasons.md").read_text(encoding="utf-8"))
    told = [(int(number), name, text) for number, name, text, _ in rows]
    known = sorted((r.value, r.name, r.text) for r in DropReason if r is not DropReason.FORWARDED)
    assert told == known
