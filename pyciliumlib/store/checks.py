"""What every store refuses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from pyciliumlib.errors import InvalidError

#: The last code point: behind every key that begins with a prefix, so that ranges can end with it.
LAST_CHARACTER: Final = "\U0010ffff"


def check_key(key: str) -> None:
    """InvalidError for a key that is empty or that not every store can hold."""
    if not key or "\0" in key or LAST_CHARACTER in key or not _encodes(key):
        raise InvalidError(f"store key {key!r}: empty, or holds characters that cannot be stored")


def check_value(value: str) -> None:
    """InvalidError for a value that is no text, or not one that can be stored."""
    if not isinstance(value, str) or not _encodes(value):
        raise InvalidError(f"store value {value!r}: no text, or one that cannot be stored")


def check_changes(changes: Mapping[str, str | None]) -> None:
    """InvalidError for the first key or value that a store refuses."""
    for key, value in changes.items():
        check_key(key)
        if value is not None:
            check_value(value)


def check_ttl(ttl: float) -> None:
    """InvalidError for a session that would end at once."""
    if not ttl > 0:
        raise InvalidError(f"session ttl {ttl}: write seconds above 0")


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
