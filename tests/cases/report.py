"""What comparing a file of cases came to."""

from __future__ import annotations

from attrs import define, field


@define
class Report:
    """What a file said: how much was compared, and what differs."""

    file: str
    cases: int = 0
    probes: int = 0
    differences: list[str] = field(factory=list)

    def compare(self, what: str, ours: object, theirs: object) -> None:
        """Count a probe, and note it if it differs."""
        self.probes += 1
        if ours != theirs:
            self.differences.append(f"{what}: {ours!r:.80}, in Cilium {theirs!r:.80}")

    def __str__(self) -> str:
        return (
            f"{self.file}: {self.cases} cases, {self.probes} probes, {len(self.differences)} differ"
        )
