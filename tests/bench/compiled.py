"""Compiles what the benchmarks run: BPF objects and the C programs they are compared with."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_HERE = Path(__file__).parent
_MULTIARCH = f"/usr/include/{sysconfig.get_config_var('MULTIARCH')}"


@functools.cache
def bpf_object(name: str) -> bytes:
    """`bpf/<name>.bpf.c` as an object."""
    clang = os.environ.get("CLANG") or shutil.which("clang-19") or shutil.which("clang") or "clang"
    flags = ["-O2", "-g", "-Wall", "-Werror", "-target", "bpf", "-mcpu=v3"]
    include = [f"-I{_HERE.parents[1] / 'bpf'}", f"-I{_MULTIARCH}"]
    with tempfile.TemporaryDirectory() as directory:
        obj = Path(directory) / f"{name}.bpf.o"
        source = _HERE / "bpf" / f"{name}.bpf.c"
        subprocess.run([clang, *flags, *include, "-c", str(source), "-o", str(obj)], check=True)
        return obj.read_bytes()


@contextmanager
def c_program(name: str) -> Iterator[Path]:
    """`c/<name>.c`, compiled as its users would compile it, with the libbpf of this machine."""
    with tempfile.TemporaryDirectory() as directory:
        program = Path(directory) / name
        source = _HERE / "c" / f"{name}.c"
        cc = os.environ.get("CC", "cc")
        subprocess.run(
            [cc, "-O2", "-Wall", "-Werror", str(source), "-o", str(program), "-lbpf"], check=True
        )
        yield program
