"""From the kernel's errno to the exception that says what to do."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Final, NoReturn

from pyciliumlib.errors import FeatureError, InvalidError, KernelError, PrivilegeError

#: The kernel's own number for "not supported", which user space has no name for.
ENOTSUPP: Final = 524

_CAPABILITIES: Final = {"CAP_NET_ADMIN": 12, "CAP_SYS_ADMIN": 21, "CAP_BPF": 39}
_UNPRIVILEGED_BPF: Final = Path("/proc/sys/kernel/unprivileged_bpf_disabled")


def effective_capabilities(status: str | None = None) -> set[str]:
    """Those of CAP_BPF, CAP_NET_ADMIN and CAP_SYS_ADMIN that this thread has.

    `status` is the text of a `/proc/<pid>/status`, by default this thread's.
    """
    text = Path("/proc/thread-self/status").read_text() if status is None else status
    for line in text.splitlines():
        if line.startswith("CapEff:"):
            mask = int(line.split()[1], 16)
            return {name for name, bit in _CAPABILITIES.items() if mask >> bit & 1}
    return set()


def _missing_capability() -> str:
    """What is likely missing for BPF: CAP_SYS_ADMIN stands for both of the others."""
    held = effective_capabilities()
    if "CAP_SYS_ADMIN" in held:
        return (
            "every capability that BPF asks for is there, so a security module, a container's "
            "seccomp filter or kernel lockdown refuses it"
        )
    missing = [name for name in ("CAP_BPF", "CAP_NET_ADMIN") if name not in held]
    if missing:
        return (
            f"{' and '.join(missing)} {'are' if len(missing) > 1 else 'is'} missing: run it as "
            "root or grant the capability (before Linux 5.8, CAP_SYS_ADMIN)"
        )
    return "CAP_SYS_ADMIN is missing: going by ids and some program types ask for it"


def number_of(number: int) -> int:
    """A number by which the kernel may know something; InvalidError for what can be none."""
    if not 0 <= number < 1 << 32:
        raise InvalidError(f"the kernel numbers nothing {number}; numbers are 0 to {(1 << 32) - 1}")
    return number


def raise_for(code: int, doing: str, hint: str = "") -> NoReturn:
    """Raise what the errno `code` (positive or negative) means for `doing`, "create map 'x'".

    `hint` is the likely cause and the mend, where the caller knows better than the errno.
    """
    code = abs(code)
    if code in (errno.EPERM, errno.EACCES) and not hint:
        raise PrivilegeError(code, f"cannot {doing}: {_missing_capability()}")
    if code == errno.ENOSYS:
        raise FeatureError(
            code,
            f"cannot {doing}: this kernel was built without bpf(2) (CONFIG_BPF_SYSCALL)",
            "bpf",
        )
    if code in (ENOTSUPP, errno.EOPNOTSUPP):
        raise FeatureError(code, f"cannot {doing}: {hint or 'this kernel does not do that'}", doing)
    raise KernelError(code, f"cannot {doing}" + (f": {hint}" if hint else ""))
