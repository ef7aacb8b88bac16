"""A process that holds a datapath, to be killed: `python -m tests.lab.controller JSON`.

It puts endpoints under policy at a pin root, tells the identities of prefixes, and waits.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from attrs import frozen

from pyciliumlib.datapath import Datapath
from pyciliumlib.lab import Node, Pod
from pyciliumlib.loadbalancer import Service
from pyciliumlib.net import NetNS
from pyciliumlib.types import parse_address
from tests.lab.scenes import BareNode

ROOT = Path(__file__).parents[2]


@frozen
class Controller:
    """The process, and the identities that it gave to prefixes."""

    process: subprocess.Popen[str]
    identities: dict[str, int]

    def kill(self) -> None:
        """As `kill -9` does."""
        self.process.kill()
        self.process.wait()


@contextlib.contextmanager
def controlled(
    pin_root: Path,
    node: Node,
    pods: list[Pod],
    documents: list[Any],
    hooks: Mapping[str, tuple[Path, str]] | None = None,
    services: Mapping[str, list[str]] | None = None,
) -> Iterator[Controller]:
    """Another process has the datapath of `node`; each pod is an endpoint with its name as app.

    `hooks` are users' programs by slot: an object file and the program's name. `services` are
    backends by frontend.
    """
    plan = {
        "pin_root": str(pin_root),
        "netns": str(node.netns.name),
        "addresses": [str(address) for address in node.addresses],
        "pods": {pod.name: str(pod.netns.name) for pod in pods},
        "documents": documents,
        "services": dict(services or {}),
        "hooks": {slot: [str(obj), name] for slot, (obj, name) in (hooks or {}).items()},
    }
    argv = [sys.executable, "-m", "tests.lab.controller", json.dumps(plan)]
    with subprocess.Popen(
        argv, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            yield Controller(process, json.loads(process.stdout.readline()))
        finally:
            process.kill()


def main(plan: dict[str, Any]) -> None:
    netns = NetNS.open(plan["netns"])
    node = BareNode(netns, tuple(parse_address(text) for text in plan["addresses"]))
    dp = Datapath(node, pin_root=plan["pin_root"])
    for name, guest in plan["pods"].items():
        dp.add_endpoint(name, {"app": name}, netns=guest)
    dp.policy.apply(plan["documents"])
    dp.services.apply(
        Service(f"service-{number}", [frontend], backends)
        for number, (frontend, backends) in enumerate(plan["services"].items())
    )
    for slot, (obj, program) in plan["hooks"].items():
        dp.hooks.attach(slot, obj, program)
    numbers = {str(entry.prefix): entry.identity for entry in dp.ipcache}
    print(json.dumps(numbers), flush=True)
    sys.stdin.readline()
    dp.keep()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
