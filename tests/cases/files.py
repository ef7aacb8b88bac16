"""Where the cases are, and how they are read."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

DEFAULT = Path(__file__).resolve().parents[3] / "shared" / "cases"


def root() -> Path:
    """The folder of cases: `PYCILIUM_CASES`, or the one beside the project."""
    return Path(os.environ.get("PYCILIUM_CASES", DEFAULT))


def find(folder: str, base: Path | None = None) -> list[Path]:
    """The files of one subfolder; FileNotFoundError if the cases are not there at all."""
    base = base or root()
    if not base.is_dir():
        raise FileNotFoundError(f"no cases in {base}; set PYCILIUM_CASES to their folder")
    return sorted(
        path for path in (base / folder).glob("*") if path.name.endswith((".json", ".json.gz"))
    )


def load(path: Path) -> list[dict[str, Any]]:
    """The cases of a file."""
    return list(load_whole(path)["cases"])


def load_whole(path: Path) -> dict[str, Any]:
    """A file with what stands beside its cases."""
    data = path.read_bytes()
    return dict(json.loads(gzip.decompress(data) if path.suffix == ".gz" else data))
