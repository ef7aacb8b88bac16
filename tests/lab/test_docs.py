"""What the pages show runs, and prints what they say."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import pyciliumlib as pcl
from tests.lab import documents
from tests.lab.examples import EXAMPLES, ROOT, compile_examples

PAGES = (
    "README.md",
    "docs/guide.md",
    "docs/policy.md",
    "docs/policy-rules.md",
    "docs/policy-analysis.md",
    "docs/kernel.md",
    "docs/load-balancing.md",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that looks like the project after `make examples`."""
    here = tmp_path_factory.mktemp("project")
    (here / "examples").symlink_to(EXAMPLES)
    objects = here / "build" / "examples"
    objects.mkdir(parents=True)
    compile_examples(objects)
    return here


@pytest.fixture(scope="module")
def machine() -> Iterator[pcl.Pod]:
    """A network namespace with an `eth0`, so that the pages' `eth0` is not this machine's."""
    with pcl.Lab() as lab:
        yield lab.node().pod("docs")


@pytest.mark.parametrize("page", PAGES)
def test_page(page: str, folder: Path, machine: pcl.Pod) -> None:
    """Every Python block of the page runs, and prints what is said below it."""
    path = ROOT / page
    process = machine.popen(
        [sys.executable, "-m", "tests.lab.documents", path],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    out, err = process.communicate(timeout=120)
    assert (err, process.returncode) == ("", 0)
    printed = out.split(f"{documents.MARK}\n")
    told = documents.snippets(path.read_text(encoding="utf-8"))
    assert len(told) == len(printed) - 1
    for snippet, text in zip(told, printed, strict=False):
        if snippet.output is not None and not documents.agrees(snippet.output, text):
            pytest.fail(
                f"{page}, line {snippet.code.line}: the page says\n{snippet.output}\n"
                f"and printed was\n{text}",
                pytrace=False,
            )
