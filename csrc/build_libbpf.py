"""Builds `pyciliumlib._libbpf`, the cffi (API mode) binding over libbpf.

`cdef/NN_topic.h` declares a topic to cffi. Where `libbpf/topic.c` exists the declarations are
our own C, and the cdef file is also the header of that C file, so nothing is declared twice;
the other cdef files name parts of libbpf's and the kernel's headers.

setuptools takes `ffibuilder` (`cffi_modules` in setup.py); `make build` compiles in place.
"""

from __future__ import annotations

import os
from pathlib import Path

from cffi import FFI

CSRC = Path(__file__).resolve().parent
ROOT = CSRC.parent

SYSTEM_HEADERS = """
#include <linux/bpf.h>
#include <bpf/bpf.h>
#include <bpf/btf.h>
#include <bpf/libbpf.h>
"""


def _relative(path: Path) -> str:
    """setuptools refuses absolute source paths, so name files from the project's root."""
    return os.path.relpath(path, ROOT)


def make_builder() -> FFI:
    """Returns the builder: every cdef in sorted order, every C file, linked with libbpf."""
    cdefs = sorted((CSRC / "cdef").glob("*.h"))
    sources = sorted((CSRC / "libbpf").glob("*.c"))
    topics = {source.stem for source in sources}
    own_headers = [cdef.name for cdef in cdefs if cdef.stem.split("_", 1)[1] in topics]

    builder = FFI()
    for cdef in cdefs:
        builder.cdef(cdef.read_text())
    builder.set_source(
        "pyciliumlib._libbpf",
        SYSTEM_HEADERS + "".join(f'#include "{name}"\n' for name in own_headers),
        sources=[_relative(source) for source in sources],
        depends=[_relative(path) for path in [*cdefs, *(CSRC / "libbpf").glob("*.h")]],
        include_dirs=[_relative(CSRC / "cdef")],
        libraries=["bpf"],
        extra_compile_args=["-std=gnu11", "-O2", "-Wall"],
    )
    return builder


ffibuilder = make_builder()
