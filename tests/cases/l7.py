"""The cases of HTTP, DNS and Kafka rules, held against the matchers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pyciliumlib.policy.l7 import DNSMatcher, HTTPMatcher, HTTPRequest, KafkaMatcher, KafkaRequest
from pyciliumlib.policy.l7.kafka import api_keys
from pyciliumlib.policy.l7.reader import read_fqdns, read_http, read_kafka
from pyciliumlib.policy.peers import select_name
from pyciliumlib.policy.schema import Problems
from tests.cases import files
from tests.cases.report import Report


def run_files() -> list[Report]:
    """Every file of both folders."""
    return [_run(folder, path) for folder in ("l7", "kafka") for path in files.find(folder)]


def _run(folder: str, path: Path) -> Report:
    report = Report(f"{folder}/{path.name}")
    for case in files.load(path):
        report.cases += 1
        if "selector" in case:
            _compare_names(case, report)
        elif "expanded_api_keys" in case:
            _compare_kafka(case, report)
        else:
            _compare_http(case, report)
    return report


def _compare_names(case: Mapping[str, Any], report: Report) -> None:
    name = str(case["selector"])
    problems = Problems()
    rules = list(read_fqdns([case["selector"]], "", problems))
    report.compare(f"{name}: refused", bool(problems), "error" in case)
    if problems or "error" in case:
        return
    (requirement,) = select_name(rules[0]).requirements
    label = f"{requirement.source}:{requirement.key}"
    report.compare(f"{name}: label", label, case["identity_label"])
    matcher = DNSMatcher(rules)
    for asked, expected in case["match"].items():
        report.compare(f"{name}: {asked!r}", asked in matcher, expected)


def _compare_http(case: Mapping[str, Any], report: Report) -> None:
    name, problems = case["name"], Problems()
    rules = list(read_http(case["rules"], "", problems))
    report.compare(f"{name}: refused", bool(problems), "error" in case)
    if problems or "error" in case:
        return
    matcher = HTTPMatcher(rules)
    for asked in case["requests"]:
        request = HTTPRequest(
            asked["method"], asked["path"], asked["host"], asked.get("headers", ())
        )
        outcome = matcher.match(request)
        report.compare(f"{name}: {asked}", outcome.allowed, asked["allowed"])
        if "headers_after" in asked:
            after: dict[str, list[str]] = {}
            for key, value in outcome.headers:
                after.setdefault(key, []).append(value)
            joined = {key: ",".join(values) for key, values in after.items()}
            report.compare(f"{name}: {asked}", joined, asked["headers_after"])
        for field, told in (("log_missing", outcome.missing), ("log_rejected", outcome.rejected)):
            names = [key for key, _ in told] if outcome.allowed else asked.get(field, [])
            report.compare(f"{name}: {field} of {asked}", names, asked.get(field, []))


def _compare_kafka(case: Mapping[str, Any], report: Report) -> None:
    name, problems = case["name"], Problems()
    rules = list(read_kafka(case["rules"], "", problems))
    report.compare(f"{name}: refused", bool(problems), "error" in case)
    if problems or "error" in case:
        return
    keys = [api_keys(rule) for rule in rules]
    expanded = [None if found is None else sorted(found) for found in keys]
    report.compare(f"{name}: keys", expanded, case["expanded_api_keys"])
    matcher = KafkaMatcher(rules)
    for asked in case["requests"]:
        request = KafkaRequest(
            asked["api_key"], asked["api_version"], asked["client_id"], asked["topics"]
        )
        report.compare(f"{name}: {asked}", matcher.allows(request), asked["allowed"])
