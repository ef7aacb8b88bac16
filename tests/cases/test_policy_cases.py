"""Every policy case of the real Cilium, through the model and through the map entries."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest

from tests.cases import files, policy

FILES = files.find("policy")


def test_the_cases_are_there() -> None:
    """Without cases the comparison would pass by being empty."""
    assert sum(len(files.load(path)) for path in FILES) > 0


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_verdict_is_ciliums(path: Path) -> None:
    """No probe differs, and no document is refused or accepted against Cilium."""
    report = policy.run_file(path.name, files.load(path))
    assert [(result.name, result.differences) for result in report.differing] == []


def test_a_wrong_answer_is_reported() -> None:
    """The runner is able to fail: a verdict turned round is a difference of both ways."""
    case = next(
        copy.deepcopy(case)
        for path in FILES
        for case in files.load(path)
        if case.get("expected", {}).get("valid")
        and case["probes"]
        and not policy.run_case(case).unsupported
    )
    probe = case["probes"][0]
    probe["verdict"] = "deny" if probe["verdict"] == "allow" else "allow"
    assert len(policy.run_case(case).differences) == 2
