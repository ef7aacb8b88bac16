"""What a VM found out, on its way from the guest to the host."""

from __future__ import annotations

from typing import Any

import attrs


@attrs.frozen
class ObjectOutcome:
    """One object under one configuration; `problem` is empty where it loaded and attached."""

    name: str
    variant: str
    problem: str


@attrs.frozen
class RingOutcome:
    """One run of pytest; `status` is its exit code."""

    name: str
    status: int
    passed: int
    failed: int
    skipped: int
    seconds: int


@attrs.frozen
class Result:
    """All that a kernel answered; `features` maps a probe's name to yes, no or unknown."""

    release: str
    objects: list[ObjectOutcome]
    features: dict[str, str]
    rings: list[RingOutcome]

    @property
    def ok(self) -> bool:
        return not any(o.problem for o in self.objects) and all(r.status == 0 for r in self.rings)

    def to_json(self) -> dict[str, Any]:
        return attrs.asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Result:
        return cls(
            release=data["release"],
            objects=[ObjectOutcome(**each) for each in data["objects"]],
            features=data["features"],
            rings=[RingOutcome(**each) for each in data["rings"]],
        )

    def summary(self) -> str:
        """A few lines for a terminal."""
        lines = [f"Linux {self.release}: {'ok' if self.ok else 'FAILED'}"]
        for each in self.objects:
            lines.append(f"  {each.name} ({each.variant}): {each.problem or 'loads and attaches'}")
        for ring in self.rings:
            lines.append(
                f"  {ring.name}: {ring.passed} passed, {ring.failed} failed, "
                f"{ring.skipped} skipped in {ring.seconds} s"
                + (f" (pytest exited with {ring.status})" if ring.status else "")
            )
        return "\n".join(lines)
