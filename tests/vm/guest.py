"""Runs inside a VM: loads and attaches every object, probes, runs the kernel rings.

    python -m tests.vm.guest FOLDER all|bpf|smoke|traffic|none SECONDS

writes FOLDER/result.json and exits with 1 if anything failed.

The root file system is the host's, read-only; only FOLDER and what is in memory can be written.
"""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

from pyciliumlib.errors import PyCiliumError, VerifierError
from pyciliumlib.kernel import Object, ObjectSpec, ProgramSpec, ProgramType
from pyciliumlib.kernel.bpffs import ensure_bpffs
from pyciliumlib.kernel.cgroup import attach_cgroup
from pyciliumlib.kernel.mounts import find_cgroup2
from pyciliumlib.kernel.probe import probe
from pyciliumlib.kernel.tc import attach_tc
from pyciliumlib.kernel.xdp import attach_xdp
from tests.scale import EMULATED
from tests.vm.result import ObjectOutcome, Result, RingOutcome

ROOT = Path(__file__).resolve().parents[2]
DEVICE = "pcl-vm0"
_TRAFFIC = ("tests/lab/test_datapath_paths.py", "tests/lab/test_datapath_policy.py")
#: All of the bpf ring; of the lab ring the tests that are marked as its smoke, and of these the
#: quick ones: packets of all kinds between pods, node and world, under policy.
RINGS = {
    "bpf": ["tests/bpf"],
    "lab smoke": ["tests/lab", "-m", "smoke"],
    "lab traffic": [*_TRAFFIC, "-m", "smoke"],
}
#: Switches for newer helpers, and the feature that each of them needs.
NEEDED = {"set_retval": "helper_set_retval"}
#: Which of them run, by what was asked for.
CHOSEN = {
    "all": ["bpf", "lab smoke"],
    "bpf": ["bpf"],
    "smoke": ["lab smoke"],
    "traffic": ["lab traffic"],
    "none": [],
}


def main(folder: Path, rings: str, seconds: float) -> int:
    deadline = time.monotonic() + seconds
    ensure_bpffs()
    make_device()
    result = Result(
        release=platform.release(),
        objects=[*load_objects()],
        features={name: answer.support.value for name, answer in probe().items()},
        rings=[run_ring(name, folder, deadline) for name in CHOSEN[rings]],
    )
    (folder / "result.json").write_text(json.dumps(result.to_json(), indent=1))
    print(result.summary())
    return 0 if result.ok else 1


def make_device() -> None:
    subprocess.run(["ip", "link", "add", DEVICE, "type", "veth"], check=True)
    subprocess.run(["ip", "link", "set", DEVICE, "up"], check=True)


def load_objects() -> Iterator[ObjectOutcome]:
    """Each object as compiled, and with every switch on: what is off, the verifier prunes."""
    paths = sorted((ROOT / "pyciliumlib" / "objects").glob("*.bpf.o"))
    if not paths:
        raise SystemExit("pyciliumlib/objects is empty: run `make build`")
    for path in paths:
        for variant in ("as compiled", "every switch on"):
            spec = ObjectSpec.open(path)
            if variant != "as compiled":
                switches = [name for name, value in spec.config.items() if is_switch(name, value)]
                if not switches:
                    continue
                spec.config.update(dict.fromkeys(switches, True))
            start = time.monotonic()
            problem = try_object(spec)
            print(f"{spec.name} ({variant}) took {time.monotonic() - start:.1f} s", flush=True)
            yield ObjectOutcome(spec.name, variant, problem)


def is_switch(name: str, value: object) -> bool:
    """Whether a setting can be turned on here."""
    needed = NEEDED.get(name)
    return isinstance(value, bool) and (needed is None or probe(needed).has(needed))


def try_object(spec: ObjectSpec) -> str:
    """Load it and attach each of its programs; the problem, or an empty string."""
    try:
        with spec.load() as loaded:
            for program in spec.programs.values():
                if program.autoload:
                    attach(loaded, program)
    except VerifierError as error:
        return f"{error}\n{error.log}"
    except PyCiliumError as error:
        return str(error)
    return ""


def attach(loaded: Object, spec: ProgramSpec) -> None:
    """Attach a program by whatever this kernel has for its type, and detach it again."""
    program = loaded.programs[spec.name]
    if spec.type is ProgramType.SCHED_CLS:
        attach_tc(program, DEVICE, "ingress").close()
        attach_tc(program, DEVICE, "egress").close()
    elif spec.type is ProgramType.XDP:
        attach_xdp(program, DEVICE).close()
    elif spec.section.startswith("cgroup/"):
        attach_cgroup(program, find_cgroup2(), spec.section).close()
    else:
        raise SystemExit(f"{spec.name}: the VM ring cannot attach {spec.section!r} yet")


def run_ring(name: str, folder: Path, deadline: float) -> RingOutcome:
    """Run pytest over a ring until `deadline` (monotonic); what it said goes to the log."""
    report = folder / f"{name.replace(' ', '-')}.xml"
    options = ["-q", "-p", "no:cacheprovider", "--durations=15", f"--junitxml={report}"]
    env = {**os.environ, "HYPOTHESIS_STORAGE_DIRECTORY": "/tmp/hypothesis", "CI": "true"}
    command = [sys.executable, "-m", "pytest", *options, *RINGS[name]]
    start = time.monotonic()
    with subprocess.Popen(command, cwd=ROOT, env={**env, EMULATED: "1"}) as process:
        try:
            status = process.wait(deadline - start)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)  # pytest still says what failed until now
            status = process.wait() or 1
    seconds = round(time.monotonic() - start)
    if not report.exists():
        return RingOutcome(name, status, 0, 0, 0, seconds)
    suite = ElementTree.parse(report).getroot()[0].attrib
    ran, skipped = int(suite["tests"]), int(suite["skipped"])
    failed = int(suite["failures"]) + int(suite["errors"])
    return RingOutcome(name, status, ran - skipped - failed, failed, skipped, seconds)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])))
