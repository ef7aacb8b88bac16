"""What the verifier looks at when an object is loaded: it is most of the time until a first packet.

A function that is verified again for each way to it shows here first (bpf/lib/work.h).
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest

import pyciliumlib as pcl
from pyciliumlib.kernel import ObjectSpec

OBJECTS: Final = Path(pcl.__file__).parent / "objects"
#: Instructions of the most expensive program; a microsecond each, more or less.
MOST: Final = {
    "clock": 100,
    "endpoint": 55_000,
    "host": 25_000,
    "loadbalancer": 260_000,
    "loadbalancer_backend": 25_000,
    "loadbalancer_backend_tc": 40_000,
    "loadbalancer_tc": 260_000,
    "policy": 25_000,
    "socket": 12_000,
}


#: What the defaults leave out, and how much there is then.
WHOLE: Final = [("host", {"node_port": True, "hooks_enabled": True}, 50_000)]


def test_every_object_has_a_limit() -> None:
    assert {path.name.removesuffix(".bpf.o") for path in OBJECTS.glob("*.bpf.o")} == MOST.keys()


@pytest.mark.parametrize(
    ("name", "config", "most"), [*((name, {}, most) for name, most in MOST.items()), *WHOLE]
)
def test_the_verifier_ends_soon(name: str, config: dict[str, bool], most: int) -> None:
    spec = ObjectSpec.open(OBJECTS / f"{name}.bpf.o")
    spec.config.update(config)
    with spec.load() as loaded:
        seen = {p.name: p.info.verified_insns for p in loaded.programs.values()}
    if not any(seen.values()):
        pytest.skip("the kernel does not tell before Linux 5.16")
    assert max(seen.values()) <= most, seen
