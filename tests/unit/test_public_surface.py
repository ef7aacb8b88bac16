"""The flat surface: what `import pyciliumlib` offers, and what it does not cost."""

from __future__ import annotations

import ast
import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import pyciliumlib
from pyciliumlib import resources
from pyciliumlib.errors import NotFoundError

SOURCE = Path(pyciliumlib.__file__)
ROOMS = sorted(path.parent.name for path in SOURCE.parent.glob("*/__init__.py"))
#: What takes long to import, or exists on Linux only.
HEAVY = {"numpy", "pyroute2", "cffi", "netaddr", "yaml", "scapy", "pyciliumlib._libbpf"}


def test_all_is_sorted_and_has_no_double() -> None:
    """One flat list that a reader can search."""
    assert pyciliumlib.__all__ == sorted(set(pyciliumlib.__all__))


@pytest.mark.parametrize("name", pyciliumlib.__all__)
def test_every_name_can_be_had(name: str) -> None:
    """What is listed is there, and is what the room means by it."""
    assert getattr(pyciliumlib, name) is not None


@pytest.mark.parametrize(
    ("room", "name"),
    [(room, name) for room, names in pyciliumlib._EXPORTS.items() for name in names],
)
def test_names_are_public_in_their_room(room: str, name: str) -> None:
    """The flat surface promises nothing that its room keeps to itself."""
    module = importlib.import_module(f"pyciliumlib.{room}")
    if room in ROOMS:
        assert name in module.__all__
    assert not name.startswith("_")


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_list_their_names(room: str) -> None:
    """Each room's `__all__` is sorted and true."""
    module = importlib.import_module(f"pyciliumlib.{room}")
    assert module.__all__ == sorted(set(module.__all__))
    assert [name for name in module.__all__ if not hasattr(module, name)] == []


def test_type_checkers_see_the_same_names() -> None:
    """The imports under TYPE_CHECKING and the table of lazy names agree."""
    tree = ast.parse(SOURCE.read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    typed = {
        (str(node.module).removeprefix("pyciliumlib."), alias.name, alias.asname)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    lazy = {(room, name, name) for room, names in pyciliumlib._EXPORTS.items() for name in names}
    assert typed == lazy


def test_import_is_light() -> None:
    """`import pyciliumlib` loads no room, no dependency and no compiled module."""
    script = "import json, sys, pyciliumlib; print(json.dumps(sorted(sys.modules)))"
    result = subprocess.run(
        [sys.executable, "-c", script],
        cwd=SOURCE.parents[1],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    loaded = set(json.loads(result.stdout))
    assert loaded & HEAVY == set()
    assert [name for name in loaded if name.startswith("pyciliumlib.")] == []


def test_unknown_name_suggests_the_nearest() -> None:
    """A misspelt name is an AttributeError that helps."""
    with pytest.raises(AttributeError, match=r'did you mean "Datapath"'):
        pyciliumlib.Datapth  # noqa: B018 - the access itself is under test


def test_dir_lists_what_is_not_loaded_yet() -> None:
    """Completion in a REPL finds lazy names."""
    assert dir(pyciliumlib) == pyciliumlib.__all__


def test_version_is_the_installed_one() -> None:
    """`__version__` comes from the metadata, so that it is written once."""
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", pyciliumlib.__version__)


def test_headers_are_where_include_dir_says() -> None:
    """A user's program can be compiled against them."""
    assert (resources.include_dir() / "lib" / "common.h").is_file()


def test_object_path_names_what_there_is() -> None:
    """Every object of bpf/ is built and found; another name is an error with the nearest."""
    sources = (SOURCE.parents[1] / "bpf").glob("*.bpf.c")
    for name in [source.name.removesuffix(".bpf.c") for source in sources]:
        assert resources.object_path(name).read_bytes()[:4] == b"\x7fELF"
    with pytest.raises(NotFoundError, match="endpoint"):
        resources.object_path("endpont")
