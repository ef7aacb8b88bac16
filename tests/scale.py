"""How much a test does: less where every instruction is emulated."""

from __future__ import annotations

import os

#: Set by the VM ring's guest; there a test takes thirty times as long.
EMULATED = "PYCILIUM_EMULATED"


def seconds(patience: float) -> float:
    """How long to wait for what should come, or to be sure that it does not."""
    return 4 * patience if os.environ.get(EMULATED) else patience


def examples(count: int) -> int:
    """The `max_examples` of a hypothesis test, or the rounds of one for leaks, in the kernel."""
    return max(5, count // 10) if os.environ.get(EMULATED) else count
