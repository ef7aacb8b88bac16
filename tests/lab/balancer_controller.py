"""A process that holds a load balancer, to be killed: `python -m tests.lab.balancer_controller`.

It makes the balancer of a pin root, or goes on with it, and holds what it is told on its standard
input, a list of services a line, or several in turn without end. When its input ends it keeps it.
"""

from __future__ import annotations

import base64
import contextlib
import pickle
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from attrs import define

from pyciliumlib.errors import NotFoundError
from pyciliumlib.lab.processes import Spawner, terminate
from pyciliumlib.loadbalancer import LoadBalancerConfig, Service
from pyciliumlib.loadbalancer.program import LoadBalancer, Sizes, SocketBalancer
from pyciliumlib.loadbalancer.program.kernel_balancer import KernelBalancer
from pyciliumlib.net import NetNS

ROOT: Final = Path(__file__).parents[2]


@define(eq=False)
class Controller:
    """The process, seen by the test."""

    process: subprocess.Popen[str]

    def hold(self, services: Sequence[Service]) -> None:
        """Let it hold these services; done when this returns."""
        self._tell([list(services)], False)
        self._hear("done")

    def change_without_end(self, steps: Sequence[Sequence[Service]]) -> None:
        """Let it hold one set of services after the other, again and again."""
        self._tell([list(step) for step in steps], True)

    def kill(self) -> None:
        """As `kill -9` does."""
        self.process.kill()
        self.process.wait()

    def end(self) -> None:
        """Let it keep the balancer and end."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        assert self.process.wait(10) == 0

    def _tell(self, steps: Any, forever: bool) -> None:
        assert self.process.stdin is not None
        print(_encode((steps, forever)), file=self.process.stdin, flush=True)

    def _hear(self, word: str) -> None:
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == f"{word}\n"


@contextlib.contextmanager
def controlled(
    spawner: Spawner,
    netns: NetNS,
    pin_root: Path,
    config: LoadBalancerConfig,
    sizes: Sizes,
    cgroup: Path | None = None,
) -> Iterator[Controller]:
    """Another process has the balancer at eth0 of a namespace, or that of a cgroup's sockets."""
    words = _encode((str(pin_root), config, sizes, cgroup))
    argv = [sys.executable, "-m", "tests.lab.balancer_controller", words]
    pipe = subprocess.PIPE
    process = spawner.spawn(netns, argv, cwd=ROOT, stdin=pipe, stdout=pipe, text=True)
    try:
        made = Controller(process)
        made._hear("ready")
        yield made
    finally:
        terminate([process])
        for end in (process.stdin, process.stdout):
            end.close()


def _encode(value: Any) -> str:
    return base64.b64encode(pickle.dumps(value)).decode()


def _decode(text: str) -> Any:
    return pickle.loads(base64.b64decode(text))


def main(
    pin_root: str, config: LoadBalancerConfig, sizes: Sizes, cgroup: Path | None = None
) -> None:
    balancer: KernelBalancer
    kind, place = (LoadBalancer, "eth0") if cgroup is None else (SocketBalancer, str(cgroup))
    try:
        balancer = kind.open(pin_root)
    except NotFoundError:
        balancer = kind(place, config=config, sizes=sizes, pin_root=pin_root)
    print("ready", flush=True)
    for line in sys.stdin:
        steps, forever = _decode(line)
        while True:
            for step in steps:
                balancer.apply(step)
            if not forever:
                break
        print("done", flush=True)
    balancer.keep()


if __name__ == "__main__":
    main(*_decode(sys.argv[1]))
