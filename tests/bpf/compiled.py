"""Compiles the tests' small BPF programs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
from pathlib import Path

PRELUDE = """
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
char _license[] SEC("license") = "Dual BSD/GPL";
"""


def compile_bpf(source: str, directory: Path, *includes: Path) -> Path:
    """The object file of `source` (after PRELUDE), in `directory`; `includes` are searched too."""
    clang = os.environ.get("CLANG") or shutil.which("clang-19") or shutil.which("clang")
    assert clang, "the tests need clang"
    code, obj = directory / "test.bpf.c", directory / "test.bpf.o"
    code.write_text(PRELUDE + source)
    multiarch = f"/usr/include/{sysconfig.get_config_var('MULTIARCH')}"
    flags = ["-O2", "-g", "-Wall", "-Werror", "-target", "bpf", "-mcpu=v3", f"-I{multiarch}"]
    flags += [f"-I{path}" for path in includes]
    subprocess.run([clang, *flags, "-c", str(code), "-o", str(obj)], check=True)
    return obj
