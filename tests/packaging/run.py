"""Installs the wheel into a clean virtual environment and uses it without compiler and headers.

    python -m tests.packaging.run dist      # the folder that holds the wheel; needs root

In a mount namespace of its own the compilers are unusable and /usr/include and the source tree
are empty, so what works there works on a machine that never had them.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
COMPILER = re.compile(
    r"(clang|gcc|cc|c99|cpp|ld|as|llc|opt|llvm-\w+|[\w-]+-linux-gnu-gcc)(-[\d.]+)?"
)
SCRIPTS = (
    ROOT / "tests" / "packaging" / "check.py",
    *(
        ROOT / "examples" / name
        for name in ("quickstart.py", "policy_map.py", "identity_ipcache.py")
    ),
)


def main(dist: Path) -> int:
    wheels = list(dist.glob("*.whl"))
    if len(wheels) != 1:
        raise SystemExit(f"{dist} must hold one wheel and holds {len(wheels)}: run `make wheel`")
    with tempfile.TemporaryDirectory(prefix="pcl-wheel-") as name:
        elsewhere = Path(name)
        python = install(wheels[0], elsewhere)
        for script in SCRIPTS:
            copy = shutil.copy(script, elsewhere)
            print(f"running {script.relative_to(ROOT)} from the wheel", flush=True)
            command = shlex.join([str(python), "-I", "-W", "error", copy])
            run_hidden([*hiding(), f"cd {shlex.quote(name)}", f"exec {command}"])
    print("the wheel works without compiler, headers and sources")
    return 0


def install(wheel: Path, elsewhere: Path) -> Path:
    """A new environment with the wheel and what it depends on; returns its Python."""
    subprocess.run([sys.executable, "-m", "venv", str(elsewhere / "venv")], check=True)
    python = elsewhere / "venv" / "bin" / "python"
    subprocess.run(
        [str(python), "-m", "pip", "install", "-q", "--only-binary=:all:", str(wheel)], check=True
    )
    return python


def hiding() -> Iterator[str]:
    """Shell commands that hide what a user's machine would lack."""
    yield "mount -t tmpfs none /usr/include"
    yield f"mount -t tmpfs none {shlex.quote(str(ROOT))}"
    for path in sorted(set(compilers())):
        yield f"mount --bind /dev/null {shlex.quote(str(path))}"


def compilers() -> Iterator[Path]:
    for folder in map(Path, os.get_exec_path()):
        for path in folder.iterdir() if folder.is_dir() else ():
            if COMPILER.fullmatch(path.name) and path.is_file():
                yield path.resolve()


def run_hidden(commands: list[str]) -> None:
    """Run shell commands in a mount namespace that ends with them."""
    script = "set -e\n" + "\n".join(commands)
    subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", script], check=True
    )


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
