"""Runs the Python blocks of a Markdown page, and compares what they print with the page.

A `text` block that follows a `python` block with no other block between is its output. Times,
measured figures, ephemeral ports and allocated identities may differ; a line `...` stands for any
number of lines.
"""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from attrs import frozen

#: Printed after each block's output.
MARK = "\x1e"
_FENCE = re.compile(r"^```(\w*)$")
_VARIES = (
    (re.compile(r"\d\d:\d\d:\d\d\.\d{3}"), "<time>"),
    (re.compile(r"\d+\.\d+ ms"), "<ms>"),
    (re.compile(r"\d+ ns"), "<ns>"),
    (re.compile(r":[3-6]\d{4}\b"), ":<port>"),
    (re.compile(r"\b\d{5}\b|\b1677\d{4}\b|\(\d{3,4}\)(?= ->| <-|  )"), "<number>"),
)


@frozen
class Block:
    """One fenced block: its language, its text, and the line on which the text begins."""

    language: str
    text: str
    line: int


@frozen
class Snippet:
    """A block of Python, and what the page says that it prints (None: nothing is said)."""

    code: Block
    output: str | None


def blocks(page: str) -> Iterator[Block]:
    """The fenced blocks of a page."""
    language: str | None = None
    start = 0
    lines = page.splitlines()
    for number, line in enumerate(lines, 1):
        fence = _FENCE.match(line)
        if fence and language is None:
            language, start = fence[1], number + 1
        elif fence and language is not None:
            yield Block(language, "\n".join(lines[start - 1 : number - 1]) + "\n", start)
            language = None


def snippets(page: str) -> list[Snippet]:
    """The Python of a page, each with its output."""
    found = [*blocks(page), Block("", "", 0)]
    return [
        Snippet(block, after.text if after.language == "text" else None)
        for block, after in itertools.pairwise(found)
        if block.language == "python"
    ]


def agrees(said: str, printed: str) -> bool:
    """Whether the output that a page gives is what was printed."""
    first, *others = re.split(r"^\.\.\.$\n?", _fixed(said), flags=re.MULTILINE)
    rest = "\n" + _fixed(printed)  # so that each part is found at the beginning of a line only
    if not rest.startswith("\n" + first):
        return False
    rest = rest[len(first) :]
    for part in others[:-1]:
        _, found, rest = rest.partition("\n" + part)
        if not found:
            return False
        rest = "\n" + rest
    return rest.endswith("\n" + others[-1]) if others else rest == "\n"


def _fixed(text: str) -> str:
    for pattern, name in _VARIES:
        text = pattern.sub(name, text)
    return re.sub(r" +", " ", re.sub(r" +$", "", text, flags=re.MULTILINE))


def main(path: Path) -> None:
    """Run a page's Python in this process, with `MARK` after the output of each block."""
    names: dict[str, object] = {"__name__": "__main__"}
    for snippet in snippets(path.read_text(encoding="utf-8")):
        # the line numbers of a traceback are the page's
        code = "\n" * (snippet.code.line - 1) + snippet.code.text
        exec(compile(code, str(path), "exec"), names)
        print(MARK, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
