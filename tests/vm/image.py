"""A disk image of what Python reads most: over 9p each file costs milliseconds, and there are
thousands. The guest mounts it read-only and binds its folders over the same paths.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import attrs

ROOT = Path(__file__).resolve().parents[2]
#: Folders of the tree that a guest needs; build/ must stay visible, the kernel's modules are there.
TREE = ("bpf", "docs", "examples", "pyciliumlib", "tests")
#: Large, and no test imports them.
UNUSED = shutil.ignore_patterns(
    *("mypy", "mypyc", "pip", "ruff", "virtme", "vng*", "*.partial"),
    *("test", "idlelib", "ensurepip", "lib2to3", "config-*"),
)


@attrs.frozen
class Image:
    """A file system image, and the folders (by their paths on the host) that it holds."""

    path: Path
    folders: tuple[Path, ...]


def build_image(path: Path) -> Image:
    """Write the image anew; it takes some seconds."""
    stdlib = Path(os.__file__).parent
    folders = (*(ROOT / name for name in TREE), Path(sys.prefix), stdlib)
    stage = path.with_suffix(".stage")
    shutil.rmtree(stage, ignore_errors=True)
    path.unlink(missing_ok=True)
    try:
        for folder in folders:
            # The stdlib of an interpreter that is no Debian package holds its own site-packages.
            ignore = _unused_stdlib if folder == stdlib else UNUSED
            shutil.copytree(
                folder,
                stage / folder.relative_to("/"),
                symlinks=True,
                ignore=ignore,
                copy_function=_link_or_copy,
            )
        _make_filesystem(stage, path)
    finally:
        shutil.rmtree(stage, ignore_errors=True)
    return Image(path, folders)


def _unused_stdlib(folder: str, names: list[str]) -> set[str]:
    return set(UNUSED(folder, names)) | ({"site-packages"} & set(names))


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without hard links
        shutil.copy2(source, target)


def _make_filesystem(stage: Path, path: Path) -> None:
    used = sum(entry.lstat().st_size + 4096 for entry in stage.rglob("*"))
    size = f"{used * 12 // 10 // 2**20 + 32}M"
    options = ["-q", "-F", "-m", "0", "-O", "^has_journal", "-d", str(stage)]
    subprocess.run(["mkfs.ext4", *options, str(path), size], check=True)
