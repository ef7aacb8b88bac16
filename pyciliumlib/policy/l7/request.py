"""What may stand in a request that rules are asked about."""

from __future__ import annotations

from typing import Any

from pyciliumlib.errors import InvalidError


def check_text(request: object, attribute: Any, value: Any) -> None:
    """A validator of attrs: a text that can be sent; InvalidError for anything else."""
    del request
    check(value, attribute.name)


def check(value: object, what: str) -> None:
    """The same for a value that stands in a list."""
    if not isinstance(value, str):
        raise InvalidError(f"{what} of a request: {type(value).__name__} found; write a text")
    if not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value):
        raise InvalidError(f"{what} {value!r:.60} of a request: half of a character; leave it out")
