"""Kernels to boot: Debian's own packages, downloaded and unpacked, never installed.

A private apt root (own sources and state) reaches the suites this machine does not use.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import attrs

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
SOURCES = (
    "http://deb.debian.org/debian bullseye main",
    "http://deb.debian.org/debian-security bullseye-security main",
    "http://deb.debian.org/debian bookworm main",
    "http://deb.debian.org/debian bookworm-backports main",
)
APT_CONF = """\
Dir::State "{root}";
Dir::State::status "{root}/status";
Dir::Cache "{root}/cache";
Dir::Etc::sourcelist "{root}/sources.list";
Dir::Etc::sourceparts "-";
Dir::Etc::preferencesparts "-";
APT::Architecture "amd64";
APT::Sandbox::User "root";
Acquire::Languages "none";
Acquire::Retries "3";
"""
SUPPORTED = ("5.10", "6.1", "6.12")


@attrs.frozen
class Kernel:
    """An unpacked kernel: `series` as in 6.1, `release` as `uname -r` says, and its files."""

    series: str
    release: str
    root: Path

    @property
    def image(self) -> Path:
        return self.root / "boot" / f"vmlinuz-{self.release}"


def fetch(series: str, cache: Path) -> Kernel:
    """The newest Debian kernel of a series, from `cache` if it was unpacked before.

    Raises RuntimeError where the download fails, with apt's own words.
    """
    target = cache / "kernels" / series
    if not _is_complete(target):
        package, release = _newest(series, _apt_root(cache / "apt"), cache)
        _unpack(package, release, target, cache)
    release = (target / "release").read_text()
    return Kernel(series, release, target)


def _is_complete(target: Path) -> bool:
    return (target / "release").is_file()


def _apt_root(root: Path) -> dict[str, str]:
    for folder in (root / "lists" / "partial", root / "cache" / "archives" / "partial"):
        folder.mkdir(parents=True, exist_ok=True)
    (root / "status").touch()
    (root / "sources.list").write_text(
        "".join(f"deb [signed-by={KEYRING}] {source}\n" for source in SOURCES)
    )
    conf = root / "apt.conf"
    conf.write_text(APT_CONF.format(root=root))
    return {**os.environ, "APT_CONFIG": str(conf), "LC_ALL": "C"}


def _newest(series: str, env: dict[str, str], cwd: Path) -> tuple[str, str]:
    """The package ("linux-image-...=version") that linux-image-amd64 of this series points to."""
    _run(["apt-get", "-q", "update"], env, cwd)
    # "linux-image-amd64 | 6.1.176-1 | http://..." - the plain flavour: the cloud one lacks 9p.
    offered = _run(["apt-cache", "madison", "linux-image-amd64"], env, cwd)
    versions = [line.split("|")[1].strip() for line in offered.splitlines()]
    version = next((v for v in versions if v.startswith(f"{series}.")), None)
    if version is None:
        raise RuntimeError(f"no suite in {SOURCES} has Linux {series}; they have {versions}")
    shown = _run(["apt-cache", "show", f"linux-image-amd64={version}"], env, cwd)
    depends = next(line for line in shown.splitlines() if line.startswith("Depends: "))
    image = depends.removeprefix("Depends: ").split()[0]
    return f"{image}={version}", image.removeprefix("linux-image-")


def _unpack(package: str, release: str, target: Path, cache: Path) -> None:
    partial = target.with_name(f"{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(target, ignore_errors=True)
    partial.mkdir(parents=True)
    env = _apt_root(cache / "apt")
    _run(["apt-get", "-q", "download", package], env, partial)
    (deb,) = partial.glob("*.deb")
    _run(["dpkg-deb", "-x", str(deb), str(partial)], env, partial)
    deb.unlink()
    if not (partial / "lib").exists():  # merged-/usr packages
        (partial / "lib").symlink_to("usr/lib")
    _run(["depmod", "-b", str(partial), release], env, partial)
    (partial / "release").write_text(release)
    partial.rename(target)


def _run(command: list[str], env: dict[str, str], cwd: Path) -> str:
    result = subprocess.run(command, env=env, cwd=cwd, capture_output=True, text=True, check=False)
    if result.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{result.stdout}{result.stderr}")
    return result.stdout
