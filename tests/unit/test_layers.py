"""A room imports only rooms below it; the table in docs/design.md says which those are."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "pyciliumlib"
DESIGN = ROOT / "docs" / "design.md"

#: Compiled modules, and the room that alone may import them.
EXTENSIONS = {"_libbpf": "kernel", "_fast": "*"}
#: The rooms that touch the machine. Between them and `datapath` only `program` modules use them.
MACHINE = frozenset({"kernel", "net"})


def read_layers() -> list[list[str]]:
    """The layers of the table "The rooms", from the faces down."""
    _, _, section = DESIGN.read_text().partition("\n## The rooms\n")
    rows = re.findall(r"^\|[^|]*\|(.*`.*)\|$", section.partition("\n## ")[0], re.MULTILINE)
    return [re.findall(r"`(\w+)`", row) for row in rows]


LAYERS = read_layers()
#: Room to height; 0 is the ground.
HEIGHT = {room: height for height, layer in enumerate(reversed(LAYERS)) for room in layer}
CONCEPTS = sorted(
    room for room in HEIGHT if HEIGHT[room] < HEIGHT["datapath"] and room not in MACHINE
)
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def dotted(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(source: str, module: str, is_package: bool) -> Iterator[tuple[int, str]]:
    """Line and dotted name of every import of ours, those under TYPE_CHECKING and in functions too.

    `from a.b import c` gives a.b.c: whether c is a module or a name in one, the room is the same.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = module.split(".") if is_package else module.split(".")[:-1]
                above = package[: len(package) - (node.level - 1)]
                base = ".".join([*above, base] if base else above)
            names = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if name.split(".")[0] == "pyciliumlib":
                yield node.lineno, name


def violations(source: str, module: str, is_package: bool = False) -> list[str]:
    """What a module imports against the rules, one line for each."""
    room = module.split(".")[1]
    found = []
    for line, name in imports(source, module, is_package):
        target = name.split(".")[1] if "." in name else ""
        problem = ""
        if target in EXTENSIONS:
            if EXTENSIONS[target] not in ("*", room):
                problem = f"only {EXTENSIONS[target]} may import it"
        elif target not in HEIGHT:
            problem = "the flat surface, or no room of docs/design.md; name the room itself"
        elif target != room and HEIGHT[target] == HEIGHT[room]:
            problem = "rooms of one layer never import each other"
        elif HEIGHT[target] > HEIGHT[room]:
            problem = f"{target} lies above {room}"
        elif target in MACHINE and room in CONCEPTS and not is_program(module):
            problem = "only a `program` module touches the machine"
        if problem:
            found.append(f"{module}:{line} imports {name}: {problem}")
    return found


def is_program(module: str) -> bool:
    return any(part.startswith("program") for part in module.split(".")[2:])


def test_the_table_of_rooms_is_read() -> None:
    """The rules below are worth nothing if the table is not found."""
    assert len(LAYERS) >= 5
    assert {"kernel", "net", "datapath", "policy", "errors"} <= HEIGHT.keys()


def test_every_room_is_in_the_table() -> None:
    """A new folder or module of the package has its place written down."""
    rooms = {dotted(path).split(".")[1] for path in MODULES}
    assert sorted(rooms - HEIGHT.keys()) == []


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_imports_go_down(path: Path) -> None:
    """No module imports a room beside it or above it, not even for a type."""
    if path.name == "__main__.py" and path.parent == PACKAGE:
        pytest.fail("a command belongs into a room")
    assert violations(path.read_text(), dotted(path), path.name == "__init__.py") == []


@pytest.mark.parametrize(
    ("module", "source", "problem"),
    [
        ("pyciliumlib.kernel.map", "from pyciliumlib.net import Link", "one layer"),
        ("pyciliumlib.kernel.map", "import pyciliumlib.net.link", "one layer"),
        ("pyciliumlib.flow.flow", "from pyciliumlib.store import Store", "one layer"),
        ("pyciliumlib.identity.labels", "from pyciliumlib import policy", "policy lies above"),
        ("pyciliumlib.identity.labels", "from ..policy.model import Rule", "policy lies above"),
        ("pyciliumlib.identity.labels", "from .. import policy", "policy lies above"),
        (
            "pyciliumlib.identity.ipcache",
            "def f():\n from pyciliumlib.kernel import Map",
            "machine",
        ),
        (
            "pyciliumlib.policy.table",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n import pyciliumlib.kernel.map",
            "machine",
        ),
        ("pyciliumlib.policy.model", "import pyciliumlib", "flat surface"),
        ("pyciliumlib.policy.model", "from pyciliumlib import Lab", "flat surface"),
        ("pyciliumlib.datapath.load", "from pyciliumlib import _libbpf", "only kernel"),
    ],
)
def test_a_violation_is_found(module: str, source: str, problem: str) -> None:
    """The checker sees every form of import."""
    (found,) = violations(source, module)
    assert problem in found


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("pyciliumlib.policy.program", "from pyciliumlib.kernel import Map"),
        ("pyciliumlib.policy.model", "from .parse import parse\nimport json, attrs"),
        ("pyciliumlib.kernel._binding", "from pyciliumlib import _libbpf"),
        ("pyciliumlib.datapath.load", "from pyciliumlib.net import Link"),
    ],
)
def test_an_import_that_is_right_passes(module: str, source: str) -> None:
    """The checker refuses nothing else."""
    assert violations(source, module) == []


def test_models_and_tables_load_without_a_kernel() -> None:
    """Every module of a concept but its programs imports where kernel and net cannot."""
    modules = [
        dotted(path)
        for path in MODULES
        if dotted(path).split(".")[1] in CONCEPTS and not is_program(dotted(path))
    ]
    script = (
        "import importlib, sys\n"
        "for name in ('_libbpf', 'kernel', 'net'):\n"
        "    sys.modules['pyciliumlib.' + name] = None\n"
        "for name in sys.argv[1:]:\n"
        "    importlib.import_module(name)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script, *modules],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert result.returncode == 0, result.stderr
