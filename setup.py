"""Builds what metadata in pyproject.toml cannot say: the BPF objects and the cffi modules.

`python setup.py build_bpf` compiles `bpf/*.bpf.c` into `pyciliumlib/objects/` and copies
`bpf/lib/*.h` to `pyciliumlib/include/lib/`; a wheel and an editable install do both by themselves.
$CLANG and $LLVM_STRIP name other tools.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from setuptools import Command, setup
from setuptools.command.build_py import build_py
from setuptools.errors import ExecError, SetupError

ROOT = Path(__file__).resolve().parent
BPF = ROOT / "bpf"
OBJECTS = ROOT / "pyciliumlib" / "objects"
INCLUDE = ROOT / "pyciliumlib" / "include" / "lib"

# v3 (32-bit registers and jumps) is what Linux 5.10, the oldest kernel supported, understands;
# atomics that return a value would need v4 of the set and are not used.
# The compilation folder is set so that source lines in a verifier log name bpf/..., wherever built.
BPF_FLAGS = [
    *("-O2", "-g", "-target", "bpf", "-mcpu=v3", "-Wall", "-Werror", "-I", "bpf"),
    "-fdebug-compilation-dir=.",
]


class build_bpf(Command):
    """Compile what changed in bpf/ and lay the headers beside the package."""

    description = "compile the BPF objects and copy the BPF headers into the package"
    user_options: ClassVar = [("force", "f", "compile everything, changed or not")]
    boolean_options: ClassVar = ["force"]

    def initialize_options(self) -> None:
        self.force = False

    def finalize_options(self) -> None:
        self.force = bool(self.force)

    def run(self) -> None:
        headers = sorted((BPF / "lib").rglob("*.h"))
        sources = sorted(BPF.glob("*.bpf.c"))
        self._copy_headers(headers)
        self._compile(sources, newest_input=_newest([*headers, Path(__file__)]))

    def _copy_headers(self, headers: list[Path]) -> None:
        wanted = {INCLUDE / header.relative_to(BPF / "lib"): header for header in headers}
        for target, header in wanted.items():
            if self.force or not _is_newer(target, header.stat().st_mtime):
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(header, target)
        _remove_others(INCLUDE, "*.h", wanted)

    def _compile(self, sources: list[Path], newest_input: float) -> None:
        wanted = {OBJECTS / f"{source.stem}.o": source for source in sources}
        _remove_others(OBJECTS, "*.bpf.o", wanted)
        stale = {
            target: source
            for target, source in wanted.items()
            if self.force or not _is_newer(target, max(newest_input, source.stat().st_mtime))
        }
        if not stale:
            return
        clang = find_tool("clang", "CLANG")
        strip = find_tool("llvm-strip", "LLVM_STRIP")
        OBJECTS.mkdir(parents=True, exist_ok=True)
        for target, source in stale.items():
            self.announce(f"{Path(clang).name} {source.relative_to(ROOT)}", level=2)
            compile_object(clang, strip, source, target)


def compile_object(clang: str, strip: str, source: Path, target: Path) -> None:
    """Compile one object; `target` appears whole or not at all."""
    partial = target.with_suffix(f".{os.getpid()}.partial")  # two builds may run at once
    name = str(source.relative_to(ROOT))
    command = [clang, *BPF_FLAGS, *_uapi_include(), "-c", name, "-o", str(partial)]
    try:
        subprocess.run(command, cwd=ROOT, check=True)
        # -g drops the DWARF and keeps .BTF and .BTF.ext.
        subprocess.run([strip, "-g", str(partial)], check=True)
        partial.replace(target)
    except subprocess.CalledProcessError as error:
        raise ExecError(f"{name} does not compile; the command was: {' '.join(command)}") from error
    finally:
        partial.unlink(missing_ok=True)


def find_tool(name: str, variable: str) -> str:
    """The path of an LLVM tool: what $VARIABLE says, else the newest on PATH."""
    named = os.environ.get(variable)
    if named:
        path = shutil.which(named)
        if path is None:
            raise SetupError(f"${variable} is {named!r}, and there is no such program on PATH")
        return path
    versions = sorted(_versions_on_path(name))
    path = f"{name}-{versions[-1]}" if versions else name
    found = shutil.which(path)
    if found is None:
        raise SetupError(
            f"{name} is needed to compile the BPF objects and is not on PATH; "
            f"install it (Debian and Ubuntu: apt-get install clang llvm) or set ${variable}. "
            "A released wheel brings the objects compiled and needs no compiler."
        )
    return found


def _versions_on_path(name: str) -> Iterator[int]:
    pattern = re.compile(rf"{re.escape(name)}-(\d+)$")
    for folder in map(Path, os.get_exec_path()):
        if folder.is_dir():
            matches = (pattern.match(entry.name) for entry in folder.iterdir())
            yield from (int(match[1]) for match in matches if match)


def _uapi_include() -> list[str]:
    """Debian keeps asm/types.h in a folder of the machine's name, unknown to `-target bpf`."""
    folder = Path(f"/usr/include/{platform.machine()}-linux-gnu")
    return ["-I", str(folder)] if folder.is_dir() else []


def _newest(paths: list[Path]) -> float:
    return max(path.stat().st_mtime for path in paths)


def _is_newer(target: Path, moment: float) -> bool:
    return target.exists() and target.stat().st_mtime >= moment


def _remove_others(folder: Path, pattern: str, wanted: dict[Path, Path]) -> None:
    """A source that is gone must not live on as a stale file in the wheel."""
    for path in folder.rglob(pattern):
        if path not in wanted:
            path.unlink()


class build_py_with_bpf(build_py):
    """The objects and headers are package data, so they have to be there before it is listed."""

    def run(self) -> None:
        self.run_command("build_bpf")
        super().run()


setup(
    cmdclass={"build_bpf": build_bpf, "build_py": build_py_with_bpf},
    cffi_modules=[
        f"csrc/{script.name}:ffibuilder" for script in sorted((ROOT / "csrc").glob("build_*.py"))
    ],
    # cffi builds against CPython's limited API, so one wheel serves every version from 3.10 on.
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
