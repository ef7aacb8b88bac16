"""Zero trust, shown: policies are applied, every pair of hosts talks, and each cell is explained.

Exits with 1 if in any cell the wire did not show what the policy model said, with 2 if it could
not run. Nothing is left behind, also when it is stopped by Ctrl-C, SIGTERM or SIGHUP. Needs root.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import FrameType

from attrs import frozen
from scene import HERE, OUTSIDERS, PODS, Scene, build

import pyciliumlib as pcl

TIMEOUT = 0.4  # seconds: a packet that is dropped is not answered, however long one waits
CLIENTS = 16  # at once
FAMILIES = (("IPv4", 0), ("IPv6", 1))
STAGES = (
    ("Stage 1: the policies as written", "policies.yaml"),
    ("Stage 2: with the two missing allows", "complete.yaml"),
)


@frozen
class Cell:
    """One attempt: what the model expects, what was seen in each family, and why."""

    src: str
    dst: str
    port: str
    expected: str
    seen: tuple[str, ...]
    why: str

    @property
    def agrees(self) -> bool:
        return all(seen == self.expected for seen in self.seen)


def attempts(scene: Scene) -> Iterator[tuple[str, str, str]]:
    """Every pair of hosts that has at least one pod, with every port of the second."""
    pods = {pod[0] for pod in PODS}
    for src in scene.hosts:
        for dst in scene.hosts:
            if src != dst and pods & {src, dst}:
                yield from ((src, dst, port) for port in scene.ports[dst])


def explain(scene: Scene, src: str, dst: str, port: str) -> pcl.Explanation:
    """What the policy model says of a pair; hosts outside are known by their addresses."""
    ends = [name if name not in dict(OUTSIDERS) else scene.hosts[name].ip4 for name in (src, dst)]
    return scene.datapath.policy.explain(ends[0], ends[1], port)


def expected(scene: Scene, src: str, dst: str, port: str) -> tuple[str, str]:
    """What the policy model says, without a packet: the verdict, and in short why."""
    explanation = explain(scene, src, dst, port)
    if explanation.verdict is pcl.Verdict.ALLOW:
        return "open", ""
    denied = [d for d in explanation.decisions if d.verdict is pcl.Verdict.DENY]
    if denied:
        return "dropped", f"Policy denied at {denied[0].direction} of {denied[0].subject}"
    redirected = next(d for d in explanation.decisions if d.verdict is pcl.Verdict.REDIRECT)
    return "no proxy", f"L7 rule at {redirected.direction} of {redirected.subject}, no proxy yet"


def seen(scene: Scene, src: str, dst: str, port: str, family: int) -> str:
    """What a real client saw, told apart from a refusal by the server's machine."""
    result = scene.hosts[src].connect(scene.hosts[dst].addresses[family], port, timeout=TIMEOUT)
    return "open" if result.ok else result.error


def run_stage(scene: Scene) -> tuple[list[Cell], list[pcl.Flow]]:
    """All attempts at once, and the flows that the datapath told of them."""
    todo = list(attempts(scene))
    list(scene.datapath.flows())  # what came before is not of this stage
    pool = ThreadPoolExecutor(CLIENTS)
    try:
        jobs = [
            [pool.submit(seen, scene, *attempt, family) for _, family in FAMILIES]
            for attempt in todo
        ]
        results = [tuple(job.result() for job in pair) for pair in jobs]
    finally:
        pool.shutdown(cancel_futures=True)  # who stops the demo does not wait for the rest of them
    flows = list(scene.datapath.flows())
    reasons = drop_reasons(scene, flows)
    cells = []
    for attempt, pair in zip(todo, results, strict=True):
        verdict, why = expected(scene, *attempt)
        wire = tuple(judge(reasons.get((*attempt, family)), got) for family, got in enumerate(pair))
        cells.append(Cell(*attempt, verdict, wire, why))
    return cells, flows


def drop_reasons(
    scene: Scene, flows: list[pcl.Flow]
) -> dict[tuple[str, str, str, int], pcl.DropReason | None]:
    """Why the datapath dropped something, by (from, to, port, family)."""
    names = {address: name for name, host in scene.hosts.items() for address in host.addresses}
    return {
        (
            names.get(flow.src, ""),
            names.get(flow.dst, ""),
            f"{flow.dport}/{flow.protocol_name}",
            int(flow.src.version == 6),
        ): flow.drop_reason
        for flow in flows
        if flow.dropped
    }


def judge(reason: pcl.DropReason | None, got: str) -> str:
    """What was seen on the wire: the client's result and the datapath's reason together."""
    if got == "timeout" and reason is pcl.DropReason.NO_PROXY:
        return "no proxy"
    if got == "timeout" and reason in (pcl.DropReason.POLICY, pcl.DropReason.POLICY_DENY):
        return "dropped"
    return got if reason is None else f"{got}, {reason}"


def show(title: str, cells: list[Cell], flows: list[pcl.Flow]) -> bool:
    """Print a stage; whether every cell agrees."""
    print(f"\n{title}\n")
    print(f"  {'from':<15}{'to':<15}{'port':<10}{'expected':<10}{'IPv4':<10}{'IPv6':<10}why")
    for cell in cells:
        mark = " " if cell.agrees else "!"
        ends = f"{cell.src:<15}{cell.dst:<15}{cell.port:<10}"
        wire = "".join(f"{text:<10}" for text in cell.seen)
        print(f"{mark} {ends}{cell.expected:<10}{wire}{cell.why}".rstrip())
    wrong = sum(not cell.agrees for cell in cells)
    opened = sum(cell.expected == "open" for cell in cells)
    print(f"\n  {len(cells)} pairs x 2 families: {opened} open; {wrong} differ from the model")
    drops = [flow for flow in flows if flow.dropped and flow.type is pcl.FlowType.DROP]
    forwarded = [flow for flow in flows if flow.type is pcl.FlowType.TRACE and flow.is_new]
    print(f"\n  live flows ({len(flows)} events; a few of each kind):")
    for flow in [*forwarded[:4], *drops[:4], *drops[-2:]]:
        print(f"    {flow}")
    return wrong == 0


def explain_closed(scene: Scene, cells: list[Cell]) -> None:
    """Print for each cell that is not open which rule, or which missing rule, closes it."""
    closed = [cell for cell in cells if cell.expected != "open"]
    print(f"\n  why the {len(closed)} closed paths are closed:\n")
    for cell in closed:
        print(f"    {explain(scene, cell.src, cell.dst, cell.port)}".replace("\n", "\n    "))


def run() -> int:
    """Build, show both stages, clean up; 1 if any cell disagrees."""
    with pcl.Lab() as lab:
        node = lab.node()
        with pcl.Datapath(node) as datapath:
            scene = build(lab, datapath, node)
            right = True
            for title, name in STAGES:
                datapath.policy.apply(HERE / name)
                cells, flows = run_stage(scene)
                right &= show(f"{title} ({name})", cells, flows)
                explain_closed(scene, cells)
            print(f"\n{datapath.metrics()}")
            drift = datapath.drift()
            print(f"\n  drift: {drift}")
    return 0 if right and not drift else 1


def stop(number: int, _frame: FrameType | None) -> None:
    """End by the way out of every `with`, as the default of SIGTERM and SIGHUP does not."""
    sys.exit(128 + number)


def main() -> int:
    """Run it as a program: what goes wrong is told in words."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)
    try:
        return run()
    except pcl.PyCiliumError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
