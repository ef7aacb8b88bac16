"""Run the cases and print a line per file."""

from __future__ import annotations

import contextlib
import sys

from pyciliumlib.errors import FeatureError, PrivilegeError
from tests.cases import files, l7, maglev, policy
from tests.cases.wire import Wire, wire


def main() -> int:
    """Compare every file; 1 if anything differs. Who may load programs sends packets too."""
    with contextlib.ExitStack() as stack:
        try:
            packets = stack.enter_context(wire())
        except (PrivilegeError, FeatureError) as error:
            print(f"no packets are sent: {error}")
            packets = None
        return run(packets)


def run(packets: Wire | None) -> int:
    """Compare every file and print a line for each."""
    found = files.find("policy")
    if not found:
        print(f"no policy cases in {files.root()}")
        return 1
    failed = False
    for path in found:
        report = policy.run_file(f"policy/{path.name}", files.load(path), packets)
        print(report)
        for result in report.differing:
            failed = True
            for difference in result.differences[:5]:
                print(f"    differs: {result.name}: {difference}")
    for compared in (*l7.run_files(), *maglev.run_files()):
        print(compared)
        for difference in compared.differences[:5]:
            failed = True
            print(f"    differs: {difference}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
