"""The files that come with the package: BPF objects and C headers."""

from __future__ import annotations

from pathlib import Path

from pyciliumlib.errors import NotFoundError, nearest

_PACKAGE = Path(__file__).parent


def object_path(name: str) -> Path:
    """The file of a BPF object: "endpoint", "policy", "clock".

    Raises NotFoundError for a name that there is none of, also where the package was not built.
    """
    path = _PACKAGE / "objects" / f"{name}.bpf.o"
    if not path.is_file():
        known = sorted(p.name.removesuffix(".bpf.o") for p in path.parent.glob("*.bpf.o"))
        have = f"there are {', '.join(known)}" if known else "none is built: run `make build`"
        raise NotFoundError(f"no BPF object {name!r}{nearest(name, known)}; {have}")
    return path


def include_dir() -> Path:
    """The directory for a compiler's -I: `#include <lib/flow.h>` and the like.

    The headers need libbpf's `bpf/bpf_helpers.h` and the kernel's `linux/*.h` beside them.
    """
    return _PACKAGE / "include"
