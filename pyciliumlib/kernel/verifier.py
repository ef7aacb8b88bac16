"""Out of libbpf's messages about a load that failed: which program or map, and why."""

from __future__ import annotations

import errno
import os
import re
from typing import Final, NoReturn

from pyciliumlib.errors import VerifierError
from pyciliumlib.kernel.failures import raise_for

_LOG: Final = re.compile(
    r"^libbpf: prog '(?P<program>[^']*)': -- BEGIN PROG LOAD LOG --\n(?P<log>.*?)"
    r"^-- END PROG LOAD LOG --",
    re.MULTILINE | re.DOTALL,
)
_REJECTED: Final = re.compile(r"^libbpf: prog '([^']*)': BPF program load failed", re.MULTILINE)
_MAP: Final = re.compile(
    r"^libbpf: (?:map '([^']*)': failed to create|Error in bpf_create_map_xattr\(([^)]*)\))",
    re.MULTILINE,
)
_KSYM: Final = re.compile(r"^libbpf: extern \(\w+ ksym\) '([^']*)': not found", re.MULTILINE)
# What the verifier adds after its verdict.
_STATISTICS: Final = re.compile(
    r"processed \d+ insns|verification time|stack depth|insns processed|max_states|peak_states"
    r"|mark_read|^\s*$"
)
_SOURCE: Final = re.compile(r"^; (?P<code>.*?)(?: @ (?P<place>\S+:\d+))?\s*$")


def summarize(log: str) -> tuple[str, str]:
    """The verdict in one line, and the line of C it was reached at (empty if unknown).

    >>> summarize('''0: (b7) r0 = 0
    ... ; return *value; @ user.bpf.c:12
    ... 1: (61) r0 = *(u32 *)(r0 +0)
    ... R0 invalid mem access 'scalar'
    ... processed 2 insns (limit 1000000) max_states_per_insn 0 total_states 0
    ... ''')
    ("R0 invalid mem access 'scalar'", 'user.bpf.c:12: return *value;')
    """
    summary = source = ""
    for line in reversed(log.splitlines()):
        if not summary:
            if not _STATISTICS.search(line):
                summary = line.strip()
        elif match := _SOURCE.match(line):
            code, place = match["code"].strip(), match["place"]
            source = f"{place}: {code}" if place else code
            break
    return summary or "the verifier gave no reason", source


def raise_load_failure(name: str, code: int, messages: str) -> NoReturn:
    """Raise what a failed bpf_object__load() means; `messages` are libbpf's warnings."""
    code = abs(code)
    if match := _LOG.search(messages):
        summary, source = summarize(match["log"])
        raise VerifierError(code, match["program"], summary, match["log"], source)
    if code == errno.EPERM:
        raise_for(code, f"load object {name!r}")
    if match := _KSYM.search(messages):
        raise_for(
            errno.EOPNOTSUPP, f"load object {name!r}", f"this kernel has no function {match[1]}()"
        )
    if match := _MAP.search(messages):
        raise_for(code, f"create map {match[1] or match[2]!r} of object {name!r}", _MAP_HINT)
    if match := _REJECTED.search(messages):
        raise_for(
            code,
            f"load program {match[1]!r} of object {name!r}",
            "the kernel gave no reason: it may not know the program's type or attach type",
        )
    said = "; ".join(line.removeprefix("libbpf: ") for line in messages.strip().splitlines())
    raise_for(code, f"load object {name!r}", said or os.strerror(code))


_MAP_HINT: Final = (
    "this kernel may not know its type or a flag, its size may be too large, or memory is short"
)
