"""What the VM ring reports: results survive the way to the host, and the page tells the truth."""

from __future__ import annotations

import json

import attrs

from pyciliumlib.kernel.known_features import KNOWN
from tests.vm.matrix import render
from tests.vm.result import ObjectOutcome, Result, RingOutcome

GOOD = Result(
    release="6.1.0-50-amd64",
    objects=[ObjectOutcome("endpoint", "as compiled", "")],
    features={**dict.fromkeys(KNOWN, "yes"), "tcx": "no", "netkit": "unknown"},
    rings=[RingOutcome("bpf", 0, 200, 0, 3, 40)],
)


def test_a_result_survives_json() -> None:
    """The guest writes what the host reads."""
    assert Result.from_json(json.loads(json.dumps(GOOD.to_json()))) == GOOD


def test_one_rejected_object_is_a_failure() -> None:
    """A kernel passes only if every object loads and attaches."""
    assert GOOD.ok
    assert not attrs.evolve(GOOD, objects=[ObjectOutcome("endpoint", "as compiled", "no")]).ok


def test_one_failing_ring_is_a_failure() -> None:
    """pytest's exit code decides: no test collected is a failure too."""
    assert not attrs.evolve(GOOD, rings=[RingOutcome("bpf", 5, 0, 0, 0, 1)]).ok


def test_matrix_has_a_cell_for_each_kernel_and_feature() -> None:
    """Every known feature has a row; yes, no and unknown look different."""
    bad = attrs.evolve(
        GOOD,
        objects=[ObjectOutcome("endpoint", "as compiled", "rejected")],
        rings=[RingOutcome("bpf", 1, 190, 10, 0, 40)],
    )
    page = render({"5.10": bad, "6.1": GOOD})
    rows = {line.split("|")[1].strip(): line for line in page.splitlines() if "|" in line}
    for feature in KNOWN.values():
        assert f"{feature.what} (`{feature.name}`)" in rows
    assert "| - | - | Linux 6.6" in rows[f"{KNOWN['tcx'].what} (`tcx`)"]
    assert "| ? | ? |" in rows[f"{KNOWN['netkit'].what} (`netkit`)"]
    assert rows["`endpoint.bpf.o`, as compiled"].endswith("| fails | loads, attaches |")
    assert rows["bpf ring"].endswith("| 10 failed | 200 passed, 3 skipped |")
