"""Every policy case of the real Cilium: the model, the map entries, and (as root) the program."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cases import files, policy
from tests.cases.wire import Wire, wire

FILES = files.find("policy")


def test_the_cases_are_there() -> None:
    """Without cases the comparison would pass by being empty."""
    assert sum(len(files.load(path)) for path in FILES) > 0


@pytest.fixture(scope="module")
def packets() -> Iterator[Wire | None]:
    """The programs to send the probes to, for root."""
    if os.geteuid() != 0:
        yield None
        return
    with wire() as made:
        yield made


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_verdict_is_ciliums(path: Path, packets: Wire | None) -> None:
    """No probe differs, and no document is refused or accepted against Cilium."""
    report = policy.run_file(path.name, files.load(path), packets)
    assert [(result.name, result.differences) for result in report.differing] == []


def test_a_wrong_answer_is_reported(packets: Wire | None) -> None:
    """The runner is able to fail: a verdict turned round is a difference of every way."""
    case = next(
        copy.deepcopy(case)
        for path in FILES
        for case in files.load(path)
        if case.get("expected", {}).get("valid") and case["probes"]
    )
    probe = case["probes"][0]
    probe["verdict"] = "deny" if probe["verdict"] == "allow" else "allow"
    probe["reason"] = "nothing"
    probe["policies"] = ["CiliumNetworkPolicy:none/none"]
    ways = 4 if packets is None else 5
    assert len(policy.run_case(case, packets).differences) == ways
