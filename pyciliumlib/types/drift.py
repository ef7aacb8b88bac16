"""How a kernel differs from what was meant, in words."""

from __future__ import annotations

from attrs import frozen


@frozen
class Drift:
    """Every difference, in words; false where there is none."""

    differences: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.differences)

    def __str__(self) -> str:
        return "\n".join(self.differences) or "the kernel holds what it should"
