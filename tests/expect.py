"""A skip has to be earned: `expect("tcx")` in a test that needs a feature."""

from __future__ import annotations

import gzip
import os
import re
from pathlib import Path

import pytest

from pyciliumlib.kernel.features import Support
from pyciliumlib.kernel.known_features import KNOWN
from pyciliumlib.kernel.probe import probe


def expect(name: str, *, since: tuple[int, int] | None = None, config: str | None = None) -> None:
    """Go on if the kernel has the feature; skip only with a good reason, else fail.

    A good reason is a kernel before `since` (default: the release that the feature is known to
    have come with), or the kernel's own word that `config` (`CONFIG_X`) is not set.
    """
    answer = probe(name)[name]
    if answer.support is Support.YES:
        return
    since = since or KNOWN[name].since
    release = kernel_release()
    if answer.support is Support.NO:
        if since is not None and release < since:
            pytest.skip(f"{name} is of Linux {since[0]}.{since[1]}, this is {os.uname().release}")
        if config is not None and _not_set(config):
            pytest.skip(f"{name}: this kernel was built without {config}")
    pytest.fail(
        f"Linux {os.uname().release} should have {name}, but the probe says "
        f"{answer.support.value}: {answer.reason}"
    )


def kernel_release() -> tuple[int, int]:
    """The running kernel's (major, minor); for tests only, the library never asks."""
    match = re.match(r"(\d+)\.(\d+)", os.uname().release)
    assert match is not None
    return int(match[1]), int(match[2])


def _not_set(config: str) -> bool:
    for path in (Path("/proc/config.gz"), Path(f"/boot/config-{os.uname().release}")):
        if path.exists():
            raw = path.read_bytes()
            text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode()
            return not re.search(rf"^{config}=[ym]$", text, re.MULTILINE)
    return False
