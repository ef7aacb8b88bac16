"""Real TCP between two pods: under policy, and by plain routing between the same namespaces.

Each round measures both, one right after the other and in changing order, so that what else the
machine does meets both alike.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Final

from pyciliumlib.datapath import Datapath
from pyciliumlib.kernel import ObjectSpec, Program
from pyciliumlib.kernel.tc import attach_tc, attached_tc
from pyciliumlib.lab import Lab, Pod
from tests.bench.compiled import bpf_object
from tests.bench.figure import Figure, ratio_at_least, spread
from tests.bench.load import STREAM_PORT, serve_streams, stream

ROUNDS = 10
STATS_ROUNDS = 3
_STATS: Final = Path("/proc/sys/kernel/bpf_stats_enabled")
_POLICY: Final = f"""
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {{name: sink, namespace: default}}
spec:
  endpointSelector: {{matchLabels: {{app: sink}}}}
  ingress:
  - fromEndpoints: [{{matchLabels: {{app: source}}}}]
    toPorts: [{{ports: [{{port: "{STREAM_PORT}", protocol: TCP}}]}}]
---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {{name: source, namespace: default}}
spec:
  endpointSelector: {{matchLabels: {{app: source}}}}
  egress:
  - toEndpoints: [{{matchLabels: {{app: sink}}}}]
    toPorts: [{{ports: [{{port: "{STREAM_PORT}", protocol: TCP}}]}}]
"""


def figures() -> Iterator[Figure]:
    """Throughput, and the time of a run of the program, under real traffic."""
    with Lab() as lab:
        node = lab.node()
        pair = Pair(node.pod("source"), node.pod("sink"))
        yield from _throughput(pair)
        yield from _time_of_a_run(pair)


class Pair:
    """Two pods with a stream from one to the other, in and out of the datapath."""

    def __init__(self, source: Pod, sink: Pod) -> None:
        self.source = source
        self.sink = sink
        serve_streams(sink)

    @contextmanager
    def under_policy(self) -> Iterator[None]:
        """Both pods are endpoints, of a datapath that lets go of them afterwards."""
        with Datapath(self.source.node) as datapath:
            datapath.policy.apply(_POLICY)
            for pod in (self.source, self.sink):
                datapath.add_endpoint(pod.name, labels={"app": pod.name}, pod=pod)
            yield

    def stream(self) -> float:
        """Gbit/s of one TCP stream."""
        return stream(self.source, self.sink.ip4).rate


# ------------------------------------------------------------------ throughput


def _throughput(pair: Pair) -> Iterator[Figure]:
    plain: list[float] = []
    policy: list[float] = []
    for number in range(ROUNDS):
        for turn in (policy, plain) if number % 2 else (plain, policy):
            with pair.under_policy() if turn is policy else nullcontext():
                turn.append(pair.stream())
    yield from spread(
        "iperf3 pod to pod, policy on", policy, "Gbit/s", "plain veth routing, no BPF", plain,
        ratio_at_least(1.05),
    )  # fmt: skip


# ------------------------------------------------------------------ time of a run


def _time_of_a_run(pair: Pair) -> Iterator[Figure]:
    spec = ObjectSpec.open(bpf_object("empty"))
    empty, ours = [], []
    with spec.load() as floor, _statistics():
        for _ in range(STATS_ROUNDS):
            empty.append(_empty_program(pair, floor.programs["empty"]))
            with pair.under_policy():
                ours.append(_endpoint_program(pair))
    floor_ns, total_ns = statistics.median(empty), statistics.median(ours)
    name = "endpoint program under iperf3, each run"
    yield Figure(name, total_ns, "ns", "an empty program", floor_ns)
    yield Figure(f"{name}, net", total_ns - floor_ns, "ns")


def _empty_program(pair: Pair, program: Program) -> float:
    node, ifindex = pair.source.node, pair.source.ifindex
    link = node.call(lambda: attach_tc(program, ifindex, "ingress"))
    try:
        return _while_streaming(pair, program)
    finally:
        node.call(link.detach)
        link.close()


def _endpoint_program(pair: Pair) -> float:
    node, ifindex = pair.source.node, pair.source.ifindex
    (found,) = node.call(lambda: attached_tc(ifindex, "ingress"))
    with Program.from_id(found.prog_id) as program:
        return _while_streaming(pair, program)


@contextmanager
def _statistics() -> Iterator[None]:
    """Let the kernel time each run of a program."""
    before = _STATS.read_text()
    _STATS.write_text("1")
    try:
        yield
    finally:
        _STATS.write_text(before)


def _while_streaming(pair: Pair, program: Program) -> float:
    """Nanoseconds of a run of the program on the device of the stream's source."""
    before = program.info
    pair.stream()
    after = program.info
    return (after.run_time_ns - before.run_time_ns) / (after.run_cnt - before.run_cnt)
