"""Policy in the kernel: the endpoints' maps, and one policy alone on a device."""

from __future__ import annotations

from pyciliumlib.policy.program.policy_map import PolicyMap
from pyciliumlib.policy.program.tries import PolicyTries

__all__ = ["PolicyMap", "PolicyTries"]
