"""Policy cases: documents, a subject, peers, and the verdict of each probe.

Every probe is put to the model, to a lookup in the resolved map entries, and, where a `Wire` is
given, as a packet to the loaded program.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from attrs import define, field, frozen

from pyciliumlib.errors import PolicyError, UnsupportedError
from pyciliumlib.policy import Direction, Reason
from pyciliumlib.policy.model import Authentication, Source
from pyciliumlib.policy.table import PolicyLookup
from pyciliumlib.policy.verdict import Decision
from tests.cases.scene import Question, Scene, scene, unknown_options
from tests.cases.wire import Wire

#: By Cilium's name for who authenticates.
_AUTHENTICATION = {
    "": Authentication.DISABLED,
    "disabled": Authentication.DISABLED,
    "spire": Authentication.REQUIRED,
    "test-always-fail": Authentication.TEST_ALWAYS_FAIL,
}
#: By Cilium's name for why. What nothing denies, and the local host, have an allow rule there.
_REASONS = {
    Reason.RULE: "rule",
    Reason.NO_DEFAULT_DENY: "rule",
    Reason.LOCALHOST: "rule",
    Reason.L7: "l7",
    Reason.DENY_RULE: "deny-rule",
    Reason.DEFAULT_DENY: "default-deny",
    Reason.NO_ENFORCEMENT: "no-enforcement",
}
#: They call their verdicts otherwise.
_LEGACY_VERDICTS = {"allowed": ("allow", "redirect"), "denied": ("deny",)}


@frozen
class Result:
    """How a case came out: how many probes it put, and what differed; or why it could not run.

    `packets` of the probes went through the program too.
    """

    name: str
    probes: int = 0
    packets: int = 0
    differences: tuple[str, ...] = ()
    unsupported: tuple[str, ...] = ()


@define
class Report:
    """The results of one file."""

    file: str
    results: list[Result] = field(factory=list)

    @property
    def differing(self) -> list[Result]:
        return [result for result in self.results if result.differences]

    @property
    def unsupported(self) -> list[Result]:
        return [result for result in self.results if result.unsupported]

    def __str__(self) -> str:
        probes = sum(result.probes for result in self.results)
        packets = sum(result.packets for result in self.results)
        wrong = sum(len(result.differences) for result in self.results)
        lines = [
            f"{self.file}: {len(self.results)} cases, {probes} probes ({packets} as packets too), "
            f"{wrong} differ (in {len(self.differing)} cases), "
            f"{len(self.unsupported)} cases not supported yet"
        ]
        kinds: dict[str, int] = {}
        for result in self.unsupported:
            for kind in set(result.unsupported):
                kinds[kind] = kinds.get(kind, 0) + 1
        lines += [f"    not supported: {kind} ({count})" for kind, count in sorted(kinds.items())]
        return "\n".join(lines)


def run_file(name: str, cases: list[dict[str, Any]], wire: Wire | None = None) -> Report:
    """Run all cases of a file."""
    return Report(name, [run_case(case, wire) for case in cases])


def run_case(case: Mapping[str, Any], wire: Wire | None = None) -> Result:
    """Compare one case."""
    name = case["name"]
    expected_valid = case.get("expected", {}).get("valid", not case.get("error"))
    if unknown := unknown_options(case):
        return Result(name, unsupported=tuple(f"option {option}" for option in unknown))
    try:
        ready = scene(case)
    except UnsupportedError as error:
        return Result(name, unsupported=tuple(map(_kind_of, error.problems)))
    except PolicyError as error:
        return Result(name, differences=(f"refused: {error}",) if expected_valid else ())
    if not expected_valid:
        return Result(name, differences=("accepted, and should be refused",))
    differences = [*_enforced(ready), *_compare(ready)]
    packets = 0
    if wire is not None:
        packets, differing = wire.compare(ready)
        differences += differing
    return Result(name, len(case["probes"]), packets, tuple(differences))


def _kind_of(problem: str) -> str:
    """The field (or kind of object) that a problem is about."""
    path, _, text = problem.partition(": not supported yet: ")
    field_name = path.rpartition(".")[2].rpartition(": ")[2].partition("[")[0]
    return text.partition(" objects")[0] if field_name == "kind" else field_name


def _enforced(ready: Scene) -> Iterator[str]:
    for direction in Direction:
        wanted = ready.case.get("expected", {}).get(f"{direction}_enforced")
        if wanted is not None and wanted != (direction in ready.policy.enforced):
            yield f"{direction} enforced: {not wanted}, Cilium says {wanted}"


def _compare(ready: Scene) -> Iterator[str]:
    table = PolicyLookup.of(ready.policy.entries())
    for probe, asked in ready.questions():
        decision = ready.repository.decide(ready.subject, asked.peer, asked.direction, asked.target)
        hit = table.lookup(asked.direction, asked.identity, asked.protocol, asked.port)
        wanted = _LEGACY_VERDICTS.get(probe["verdict"], (probe["verdict"],))
        mode = _AUTHENTICATION[probe.get("auth", "")]
        for what, said in (("model", decision), ("table", hit)):
            if said.verdict.value not in wanted:
                yield f"{asked}: {what} says {said.verdict}, Cilium {probe['verdict']}"
            if said.authentication is not mode:
                yield f"{asked}: {what} says authentication {said.authentication}, Cilium {mode}"
        yield from _compare_reason(probe, asked, decision)


def _compare_reason(probe: Mapping[str, Any], asked: Question, decision: Decision) -> Iterator[str]:
    """Why, where Cilium says that: the same reason, for rules that the explanation names too."""
    if "reason" not in probe:
        return
    policies = {name for name in probe.get("policies", ()) if not name.startswith("reserved:")}
    reason, wanted = _REASONS[decision.reason], probe["reason"]
    if wanted == "deny-rule" and not policies:
        wanted = "default-deny"  # an entry that Cilium makes for it, where a tier passes on
    if reason != wanted:
        yield f"{asked}: for {reason}, in Cilium {wanted}"
    if missing := policies - {_in_cilium(clause.source) for clause in decision.clauses}:
        yield f"{asked}: not for {', '.join(sorted(missing))}, in Cilium it is"


def _in_cilium(source: Source) -> str:
    place = f"{source.kind}:{source.namespace}" if source.namespace else source.kind
    return f"{place}/{source.name}"
