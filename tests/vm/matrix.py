"""Writes docs/support-matrix.md: kernel by feature, as the probes answered in the VMs."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

from pyciliumlib.kernel.known_features import KNOWN
from tests.vm.result import Result

PAGE = Path(__file__).resolve().parents[2] / "docs" / "support-matrix.md"
HEAD = """\
# Support matrix

Written by `make test-vm` from what `pyciliumlib.probe()` answered on each kernel; not by hand.
The kernels are Debian's; another build of the same release may leave something out, so ask
`probe()` on yours.
"""
SIGNS = {"yes": "yes", "no": "-", "unknown": "?"}


def write_matrix(results: dict[str, Result]) -> None:
    """Write the page; `results` by series, oldest first."""
    PAGE.write_text(render(results))


def render(results: dict[str, Result]) -> str:
    """The page as text."""
    head = ["", *results]
    lines = [HEAD, "## What was tested\n", _row(head), _row(["---"] * len(head))]
    lines.append(_row(["release", *(r.release for r in results.values())]))
    for name in next(iter(results.values())).objects:
        cells = [_loads(result, name.name, name.variant) for result in results.values()]
        lines.append(_row([f"`{name.name}.bpf.o`, {name.variant}", *cells]))
    for ring in dict.fromkeys(ring.name for result in results.values() for ring in result.rings):
        cells = [_tests(result, ring) for result in results.values()]
        lines.append(_row([f"{ring} ring", *cells]))
    for group, features in groupby(KNOWN.values(), key=lambda feature: feature.group):
        lines += ["", f"## {group.capitalize()}\n"]
        lines += [_row(["feature", *results, "since"]), _row(["---"] * (len(head) + 1))]
        for feature in features:
            cells = [SIGNS[result.features[feature.name]] for result in results.values()]
            lines.append(_row([f"{feature.what} (`{feature.name}`)", *cells, feature.origin]))
    return "\n".join(lines) + "\n"


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _loads(result: Result, name: str, variant: str) -> str:
    found = [each for each in result.objects if (each.name, each.variant) == (name, variant)]
    return "loads, attaches" if found and not found[0].problem else "fails"


def _tests(result: Result, name: str) -> str:
    ring = next((each for each in result.rings if each.name == name), None)
    if ring is None:
        return "not run"
    skipped = f", {ring.skipped} skipped" if ring.skipped else ""
    return f"{ring.passed} passed{skipped}" if ring.status == 0 else f"{ring.failed} failed"
