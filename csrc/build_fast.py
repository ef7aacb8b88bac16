"""Builds `pyciliumlib._fast`, the portable C of the library: it needs no kernel, not even Linux.

`fast/cdef.h` declares it to cffi and to the C files alike, so nothing is declared twice.
"""

from __future__ import annotations

import os
from pathlib import Path

from cffi import FFI

FAST = Path(__file__).resolve().parent / "fast"
ROOT = FAST.parents[1]


def _relative(path: Path) -> str:
    """setuptools refuses absolute source paths, so name files from the project's root."""
    return os.path.relpath(path, ROOT)


def make_builder() -> FFI:
    """Returns the builder of every C file in `fast/`."""
    header = FAST / "cdef.h"
    builder = FFI()
    builder.cdef(header.read_text())
    builder.set_source(
        "pyciliumlib._fast",
        '#include <stdint.h>\n#include "cdef.h"\n',
        sources=[_relative(source) for source in sorted(FAST.glob("*.c"))],
        depends=[_relative(header)],
        include_dirs=[_relative(FAST)],
        extra_compile_args=["-std=gnu11", "-O2", "-Wall"],
    )
    return builder


ffibuilder = make_builder()
