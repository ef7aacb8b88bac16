"""What the library costs before the first packet: import, load, pods, memory.

Import and load are timed in new processes, as a user meets them. Kernel memory is what the maps
say of themselves (fdinfo's memlock), and beside it what the machine has less afterwards.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Literal, TypeAlias

from attrs import frozen

from pyciliumlib.datapath import Datapath, DatapathConfig
from pyciliumlib.kernel import ObjectSpec
from pyciliumlib.kernel.probe import probe
from pyciliumlib.kernel.tc import attach_tc
from pyciliumlib.lab import Lab, Node, Pod
from tests.bench.compiled import bpf_object
from tests.bench.figure import Figure, at_most

STARTS = 10
LOADS = 5
PODS = 200
ATTACHED = 30
Backend: TypeAlias = Literal["tcx", "clsact"]
_BACKENDS: Final[tuple[Backend, ...]] = ("tcx", "clsact")
_PAGE: Final = os.sysconf("SC_PAGESIZE")

_HOOKS: Final[tuple[Literal["ingress", "egress"], ...]] = ("ingress", "egress")
#: Each of the ten kinds of pods may reach two others, so every endpoint's trie holds entries.
_POLICY: Final = "---".join(
    f"""
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {{name: a{number}, namespace: default}}
spec:
  endpointSelector: {{matchLabels: {{app: a{number}}}}}
  ingress:
  - fromEndpoints:
    - matchLabels: {{app: a{(number + 1) % 10}}}
    - matchLabels: {{app: a{(number + 2) % 10}}}
    toPorts: [{{ports: [{{port: "8080", protocol: TCP}}, {{port: "8443", protocol: TCP}}]}}]
"""
    for number in range(10)
)


def figures() -> Iterator[Figure]:
    """Times in ms, memory in kB."""
    yield from _imports()
    yield from _loads()
    yield from _pods()


# ------------------------------------------------------------------ import and load


def _imports() -> Iterator[Figure]:
    modules = ("pyciliumlib", "json")
    rounds = [
        [_from_new_process(_IMPORT.format(module=module))[0] for module in modules]
        for _ in range(STARTS)
    ]
    ours, floor = (statistics.median(times) * 1e3 for times in zip(*rounds, strict=True))
    yield Figure("import pyciliumlib", ours, "ms", "import json", floor, at_most(150))


def _loads() -> Iterator[Figure]:
    """The first Datapath of a process, beside a further one; their imports are another figure."""
    with Lab() as lab:
        node = lab.node()
        rounds = [
            (*node.call(lambda: _from_new_process(_FIRST_LOAD)), _load_and_close(node))
            for _ in range(LOADS)
        ]
    imports, first, further = (
        statistics.median(times) * 1e3 for times in zip(*rounds, strict=True)
    )
    yield Figure("import all that a Datapath needs", imports, "ms")
    yield Figure("first Datapath, loaded", first, "ms", "a further one", further, at_most(150))


_IMPORT: Final = """
import time
started = time.perf_counter()
import {module}
print(time.perf_counter() - started)
"""

_FIRST_LOAD: Final = """
import time
started = time.perf_counter()
import pyroute2
import pyciliumlib
pyciliumlib.Datapath
imported = time.perf_counter()
datapath = pyciliumlib.Datapath()
loaded = time.perf_counter()
datapath.close()
print(imported - started, loaded - imported)
"""


def _load_and_close(node: Node) -> float:
    started = time.perf_counter()
    datapath = Datapath(node)
    seconds = time.perf_counter() - started
    datapath.close()
    return seconds


def _from_new_process(program: str) -> list[float]:
    """The numbers that a Python program prints."""
    done = subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.PIPE)
    return [float(number) for number in done.stdout.split()]


# ------------------------------------------------------------------ pods


def _pods() -> Iterator[Figure]:
    with Lab() as lab:
        node = lab.node()
        pods, making = [], []
        grown: list[Memory] = []
        for number in range(PODS):
            started = time.perf_counter()
            pods.append(node.pod(f"p{number}"))
            making.append(time.perf_counter() - started)
        for backend in _BACKENDS if probe("tcx").has("tcx") else _BACKENDS[1:]:
            floor = _attaching(node, pods[:ATTACHED], backend)
            config = DatapathConfig(max_endpoints=PODS + 1, tc=backend)
            with Datapath(node, config=config) as datapath:
                datapath.policy.apply(_POLICY)
                _add(datapath, 0, pods[0])  # what is made once is not an endpoint's
                before = Memory.now()
                adding = [_add(datapath, n, pod) for n, pod in enumerate(pods) if n]
                grown.append(Memory.now().less(before).over(len(adding)))
            yield _added(backend, adding, floor)
        yield Figure("making a pod's namespace", statistics.median(making) * 1e3, "ms")
    # What the first round let go of, a second one would find and not count.
    once = grown[0]
    yield Figure("process memory of an endpoint", once.process, "kB", target=at_most(50))
    yield Figure(
        "kernel memory of an endpoint, by its maps",
        once.maps,
        "kB",
        "what the machine has less",
        once.machine,
        at_most(1000),
    )


def _added(backend: Backend, adding: list[float], floor: float) -> Figure:
    return Figure(
        f"add_endpoint by {backend}, median of {PODS} pods",
        statistics.median(adding) * 1e3,
        "ms",
        "attaching two empty programs",
        floor * 1e3,
        at_most(5),
    )


def _add(datapath: Datapath, number: int, pod: Pod) -> float:
    started = time.perf_counter()
    datapath.add_endpoint(pod.name, labels={"app": f"a{number % 10}"}, pod=pod)
    return time.perf_counter() - started


def _attaching(node: Node, pods: list[Pod], backend: Backend) -> float:
    """Seconds that the kernel alone takes; with tcx it waits for a grace period twice."""
    with ObjectSpec.open(bpf_object("empty")).load() as loaded:
        program = loaded.programs["empty"]

        def attach() -> list[float]:
            seconds, links = [], []
            for pod in pods:
                started = time.perf_counter()
                links += [attach_tc(program, pod.ifindex, hook, backend=backend) for hook in _HOOKS]
                seconds.append(time.perf_counter() - started)
            for link in links:
                link.detach()
                link.close()
            return seconds

        return statistics.median(node.call(attach))


# ------------------------------------------------------------------ memory


@frozen
class Memory:
    """Kilobytes: of this process, of the BPF maps that it holds, in use on the machine."""

    process: float
    maps: float
    machine: float

    @classmethod
    def now(cls) -> Memory:
        return cls(_resident() / 1e3, _map_memory() / 1e3, _unavailable() / 1e3)

    def less(self, other: Memory) -> Memory:
        return Memory(
            self.process - other.process, self.maps - other.maps, self.machine - other.machine
        )

    def over(self, count: int) -> Memory:
        return Memory(self.process / count, self.maps / count, self.machine / count)


def _resident() -> int:
    """Bytes of memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE


def _unavailable() -> int:
    """Bytes of memory that are in use on this machine."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    kilobytes = {name: int(rest.split()[0]) for name, rest in (line.split(":") for line in lines)}
    return (kilobytes["MemTotal"] - kilobytes["MemAvailable"]) * 1024


def _map_memory() -> int:
    """Bytes that the BPF maps open in this process take, each map once."""
    memory = {}
    for info in Path("/proc/self/fdinfo").iterdir():
        try:
            fields = dict(line.split(":", 1) for line in info.read_text().splitlines())
        except FileNotFoundError:
            continue  # the descriptor of the directory that is being read
        if "map_id" in fields:
            memory[int(fields["map_id"])] = int(fields["memlock"])
    return sum(memory.values())
