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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, Literal

from benchmarks.compiled import bpf_object
from benchmarks.figure import Figure, at_most
from pyciliumlib.datapath import Datapath, DatapathConfig
from pyciliumlib.kernel import ObjectSpec
from pyciliumlib.kernel.tc import attach_tc
from pyciliumlib.lab import Lab, Node, Pod

STARTS = 10
LOADS = 5
PODS = 200
ATTACHED = 30
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

_TIMED = """
import time
started = time.perf_counter()
{work}
print(time.perf_counter() - started)
"""


def figures() -> Iterator[Figure]:
    """Times in ms, memory in kB."""
    yield from _imports()
    yield from _loads()
    yield from _pods()


# ------------------------------------------------------------------ import and load


def _imports() -> Iterator[Figure]:
    ours, floor = _alternate(
        lambda: _in_new_process("import pyciliumlib"),
        lambda: _in_new_process("import json"),
        STARTS,
    )
    yield Figure("import pyciliumlib", ours * 1e3, "ms", "import json", floor * 1e3, at_most(150))


def _loads() -> Iterator[Figure]:
    """The first Datapath of a process; all that it imports is not counted."""
    with Lab() as lab:
        node = lab.node()
        first: list[float] = []
        for _ in range(LOADS):
            first.append(node.call(lambda: _in_new_process(_FIRST_LOAD)))
        later = [_load_and_close(node) for _ in range(LOADS)]
    yield Figure(
        "first Datapath of a process, loaded",
        statistics.median(first) * 1e3,
        "ms",
        "a further one",
        statistics.median(later) * 1e3,
        at_most(150),
    )


_FIRST_LOAD: Final = """
import pyciliumlib as pcl
pcl.Datapath
started = time.perf_counter()
datapath = pcl.Datapath()
loaded = time.perf_counter() - started
datapath.close()
started = time.perf_counter() - loaded
"""


def _load_and_close(node: Node) -> float:
    started = time.perf_counter()
    datapath = Datapath(node)
    seconds = time.perf_counter() - started
    datapath.close()
    return seconds


def _in_new_process(work: str) -> float:
    done = subprocess.run(
        [sys.executable, "-c", _TIMED.format(work=work)], check=True, stdout=subprocess.PIPE
    )
    return float(done.stdout)


def _alternate(
    first: Callable[[], float], second: Callable[[], float], rounds: int
) -> tuple[float, float]:
    pairs = [(first(), second()) for _ in range(rounds)]
    return statistics.median(p[0] for p in pairs), statistics.median(p[1] for p in pairs)


# ------------------------------------------------------------------ pods


def _pods() -> Iterator[Figure]:
    with Lab() as lab:
        node = lab.node()
        pods = []
        making = []
        for number in range(PODS):
            started = time.perf_counter()
            pods.append(node.pod(f"p{number}"))
            making.append(time.perf_counter() - started)
        attaching = _attaching(node, pods[:ATTACHED])
        with Datapath(node, config=DatapathConfig(max_endpoints=PODS + 1)) as datapath:
            yield from _adding(datapath, pods, statistics.median(making), attaching)


def _attaching(node: Node, pods: list[Pod]) -> float:
    """Seconds that the kernel alone takes to attach two programs, for which it waits twice."""
    with ObjectSpec.open(bpf_object("empty")).load() as loaded:
        program = loaded.programs["empty"]

        def attach() -> list[float]:
            seconds, links = [], []
            for pod in pods:
                started = time.perf_counter()
                links += [attach_tc(program, pod.ifindex, hook) for hook in _HOOKS]
                seconds.append(time.perf_counter() - started)
            for link in links:
                link.detach()
                link.close()
            return seconds

        return statistics.median(node.call(attach))


def _adding(
    datapath: Datapath, pods: list[Pod], making: float, attaching: float
) -> Iterator[Figure]:
    datapath.policy.apply(_POLICY)
    _add(datapath, pods[0], 0)  # what is made once is not an endpoint's
    process, kernel, maps = _resident(), _unavailable(), _map_memory()
    adding = [_add(datapath, pod, number) for number, pod in enumerate(pods[1:], 1)]
    more = len(pods) - 1
    yield Figure(
        f"add_endpoint, median of {PODS} pods",
        statistics.median(adding) * 1e3,
        "ms",
        "attaching two empty programs",
        attaching * 1e3,
        at_most(5),
    )
    yield Figure(
        "add_endpoint, besides attaching",
        (statistics.median(adding) - attaching) * 1e3,
        "ms",
        "making the pod's namespace",
        making * 1e3,
    )
    yield Figure(
        "process memory of an endpoint",
        (_resident() - process) / more / 1e3,
        "kB",
        target=at_most(50),
    )
    yield Figure(
        "kernel memory of an endpoint, by its maps",
        (_map_memory() - maps) / more / 1e3,
        "kB",
        "all that the machine has less",
        (_unavailable() - kernel) / more / 1e3,
        at_most(1000),
    )


def _add(datapath: Datapath, pod: Pod, number: int) -> float:
    started = time.perf_counter()
    datapath.add_endpoint(pod.name, labels={"app": f"a{number % 10}"}, pod=pod)
    return time.perf_counter() - started


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
