"""Boots other kernels under qemu and runs the kernel rings in them.

    python -m tests.vm.run 5.10 6.1 6.12

Exits 1 if anything failed on any. When all supported kernels ran, docs/support-matrix.md is
written. Emulated (no KVM needed), so nothing here says anything about speed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.vm.image import Image, build_image
from tests.vm.kernels import SUPPORTED, Kernel, fetch
from tests.vm.matrix import write_matrix
from tests.vm.result import Result

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / "build" / "vm"
#: Seconds of a kernel's time that are not the guest's: until it is up, and to say what it found.
BOOT_AND_END = 120


def main() -> int:
    parser = argparse.ArgumentParser(description="run the kernel rings on other kernels")
    parser.add_argument("series", nargs="*", default=SUPPORTED, help=", ".join(SUPPORTED))
    parser.add_argument("--timeout", type=int, default=5400, help="seconds for each kernel")
    parser.add_argument(
        "--rings",
        choices=("all", "bpf", "smoke", "traffic", "none"),
        default="all",
        help="after loading and probing: the bpf ring, the lab's smoke, both, a part, or neither",
    )
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))  # so that _end() runs
    image = build_image(CACHE / "python.img")
    results: dict[str, Result] = {}
    for series in options.series:
        start = time.monotonic()
        kernel = fetch(series, CACHE)
        print(f"booting Linux {kernel.release}", flush=True)
        out = CACHE / "out" / series
        result = boot(kernel, image, out, options.timeout, options.rings)
        print(f"Linux {series} took {time.monotonic() - start:.0f} s in all", flush=True)
        if result is not None:
            results[series] = result
    for result in results.values():
        print(result.summary())
    if set(SUPPORTED) <= results.keys():
        write_matrix({series: results[series] for series in SUPPORTED})
    complete = set(options.series) <= results.keys()
    return 0 if complete and all(result.ok for result in results.values()) else 1


def boot(kernel: Kernel, image: Image, out: Path, timeout: int, rings: str) -> Result | None:
    """Run tests.vm.guest under a kernel; None, with the log printed, where it did not finish."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    log = out / "log"
    guest = ["-m", "tests.vm.guest", str(out), rings]
    guest.append(str(max(60, timeout - BOOT_AND_END)))
    # The guest's own console is slow and loses lines, so what it says goes to a file.
    boot_folder = str(kernel.image.parent)
    prepare = ["sh", str(ROOT / "tests/vm/guest.sh"), str(log), boot_folder]
    prepare += [*map(str, image.folders), "--"]
    script = shlex.join([*prepare, "env", "-C", str(ROOT), sys.executable, "-u", *guest])
    command = [
        *("vng", "--run", str(kernel.image), "--disable-kvm", "--force-9p", "--user", "root"),
        *("--cpus", "2", "--memory", "3G", "--disk", str(image.path), f"--rwdir={out}"),
        # qemu 7.2 emulates AVX2 wrongly: numpy's sort of 100,000 numbers is out of order with it
        "--qemu-opts=-cpu max,avx2=off",
        *("--", script),
    ]
    # vng calls its sibling virtme-run by name.
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    with (out / "console").open("wb") as console:
        process = subprocess.Popen(
            command,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            print(f"Linux {kernel.release} did not finish in {timeout} s")
        finally:
            _end(process)
    if log.exists():
        print(log.read_text())
    report = out / "result.json"
    if report.exists():
        return Result.from_json(json.loads(report.read_text()))
    print(f"Linux {kernel.release} gave no result; the end of its console:")
    print("\n".join((out / "console").read_text(errors="replace").splitlines()[-40:]))
    return None


def _end(process: subprocess.Popen[bytes]) -> None:
    """End vng and the qemu below it; both are in the session that was made for them."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


if __name__ == "__main__":
    sys.exit(main())
