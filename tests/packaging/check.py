"""Run from an installed wheel, where there is nothing to compile with: see run.py beside it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pyciliumlib as pcl

HERE = Path(pcl.__file__).parent


def main() -> None:
    for tool in ("clang-19", "clang", "gcc", "cc"):
        compiler = shutil.which(tool)
        assert compiler is None or not works(compiler), f"{tool} still works: nothing was hidden"
    assert not Path("/usr/include/linux/bpf.h").exists()

    names = [path.name.removesuffix(".bpf.o") for path in (HERE / "objects").glob("*.bpf.o")]
    assert "endpoint" in names, names
    for name in names:
        spec = pcl.ObjectSpec.open(pcl.object_path(name))
        with spec.load() as loaded:
            assert set(loaded.programs) == set(spec.programs)
        print(f"{name}: loaded {len(spec.programs)} programs, {len(spec.maps)} maps")
    assert (pcl.include_dir() / "lib" / "common.h").is_file()

    mapped = {Path(line.split()[-1]) for line in Path("/proc/self/maps").read_text().splitlines()}
    for library in ("libbpf", "libelf"):
        (path,) = [path for path in mapped if path.name.startswith(library)]
        assert path.parent.name == "pyciliumlib.libs", f"{path} is not the wheel's own"
    print(f"pyciliumlib {pcl.__version__} with libbpf of its own")


def works(compiler: str) -> bool:
    try:
        return subprocess.run([compiler, "--version"], capture_output=True).returncode == 0
    except PermissionError:
        return False


if __name__ == "__main__":
    main()
