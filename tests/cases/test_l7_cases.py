"""Every L7 case of the real Cilium: what a proxy lets pass."""

from __future__ import annotations

import pytest

from tests.cases import l7
from tests.cases.report import Report

REPORTS = l7.run_files()


@pytest.mark.parametrize("report", REPORTS, ids=lambda report: report.file)
def test_every_answer_is_ciliums(report: Report) -> None:
    assert report.differences == []
    assert report.probes > 0


def test_the_cases_are_there() -> None:
    """HTTP, DNS and Kafka: without their files the comparison would pass by being empty."""
    assert {report.file.rpartition("/")[2].partition(".")[0] for report in REPORTS} >= {
        "http",
        "dns",
        "kafka",
    }


def test_a_wrong_answer_is_reported() -> None:
    """The runner is able to fail."""
    report = Report("http")
    l7._compare_http(
        {
            "name": "wrong",
            "rules": [{"path": "/a"}],
            "requests": [{"method": "GET", "path": "/a", "host": "", "allowed": False}],
        },
        report,
    )
    assert len(report.differences) == 1
