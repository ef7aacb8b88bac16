"""The Maglev cases: tables and flow hashes, held against the library's."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from pyciliumlib.errors import InvalidError
from pyciliumlib.loadbalancer import Backend, FlowTuple, Maglev, MaglevTable
from tests.cases import files
from tests.cases.report import Report


def run_files() -> list[Report]:
    """Every file of the folder, by what its cases hold."""
    return [_run(path) for path in files.find("maglev")]


def _run(path: Path) -> Report:
    report = Report(f"maglev/{path.name}")
    data = files.load_whole(path)
    for case in data["cases"]:
        report.cases += 1
        if "backends" in case:
            _compare_table(case, report)
        else:
            _compare_selection(case, data["seed"], path.parent, report)
    return report


def _compare_table(case: dict[str, Any], report: Report) -> None:
    name = case["name"]
    try:
        maglev = Maglev(case["m"], case["seed"])
    except InvalidError:
        report.compare(f"{name}: refused", True, "error" in case)
        return
    report.compare(f"{name}: refused", False, "error" in case)
    backends = [_backend(item) for item in case["backends"]]
    numbers = {
        backend: item["id"] for backend, item in zip(backends, case["backends"], strict=True)
    }
    table = maglev.build(backends)
    slots = table.ids([numbers[backend] for backend in table.backends])
    counts = {str(numbers[backend]): count for backend, count in table.counts().items()}
    placements = [list(maglev.placement(backend)) for backend in backends]
    report.compare(f"{name}: texts", [b.hash_string for b in backends], case["hash_strings"])
    report.compare(f"{name}: offset, skip", placements, case["offset_skip"])
    report.compare(f"{name}: counts", {k: v for k, v in counts.items() if v}, case["counts"])
    report.compare(f"{name}: first 32", slots[:32].tolist(), case["first32"])
    digest = hashlib.sha256(slots.astype("<u4").tobytes()).hexdigest()
    report.compare(f"{name}: sha256", digest, case["sha256_le_u32"])


def _backend(item: dict[str, Any]) -> Backend:
    return Backend(
        item["ip"],
        item["port"],
        item["proto"],
        item["weight"],
        cluster_id=item.get("cluster_id", 0),
        internal=item.get("scope") == "internal",
    )


def _compare_selection(case: dict[str, Any], seed: str, folder: Path, report: Report) -> None:
    flow = FlowTuple(case["client_ip"], case["client_port"], case["service_port"], case["proto"])
    hashed = Maglev(seed=seed).seed.flow.of(flow, affinity=case["affinity"])
    report.compare(f"hash of {flow}", hashed, case["hash"])
    for size, slot in case["index"].items():
        found = Maglev(int(size), seed).slot(flow, affinity=case["affinity"])
        report.compare(f"slot of {flow} in {size}", found, slot)
    tables = _tables(folder)
    for key, number in case.items():
        if key.startswith("backend_in_"):
            table, numbers = tables[key.removeprefix("backend_in_")]
            chosen = numbers[table.select(flow, affinity=case["affinity"])]
            report.compare(f"backend of {flow} in {key}", chosen, number)


_built: dict[Path, dict[str, tuple[MaglevTable, dict[Backend, int]]]] = {}


def _tables(folder: Path) -> dict[str, tuple[MaglevTable, dict[Backend, int]]]:
    """The tables that selections name, by name."""
    if folder not in _built:
        _built[folder] = {
            case["name"]: (
                Maglev(case["m"], case["seed"]).build(map(_backend, case["backends"])),
                {_backend(item): item["id"] for item in case["backends"]},
            )
            for case in files.load(folder / "tables.json")
            if "error" not in case
        }
    return _built[folder]
