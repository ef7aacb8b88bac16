"""All benchmarks beside their peers: one table and, of a whole run, `build/bench.json`."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import time
from pathlib import Path

from tests.bench.figure import Figure, table, write_json

PARTS = (
    "maps",
    "ring",
    "fastpath",
    "traffic",
    "footprint",
    "policy",
    "policy_maps",
    "maglev",
    "balancer",
    "balancer_nat",
    "balancer_dsr",
    "balancer_traffic",
    "director_traffic",
    "sockets",
    "services",
)
_RESULT = Path(__file__).parents[2] / "build" / "bench.json"


def main() -> int:
    """Run the parts that were asked for, by default all; 0 also where a target is missed."""
    parser = argparse.ArgumentParser(prog="tests.bench", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}")
    wanted = parser.parse_args().parts
    parts = wanted or PARTS
    unknown = [part for part in parts if part not in PARTS]
    if unknown:
        parser.error(f"no part {', '.join(unknown)}; there are {', '.join(PARTS)}")
    if os.geteuid():
        parser.error("the benchmarks load programs and make namespaces: run them as root")
    figures: list[Figure] = []
    for part in parts:
        started = time.monotonic()
        figures += importlib.import_module(f"tests.bench.{part}").figures()
        print(f"{part}: {time.monotonic() - started:.0f} s", file=sys.stderr)
    print(table(figures))
    if not wanted:
        write_json(figures, _RESULT)
    return 0


if __name__ == "__main__":
    sys.exit(main())
