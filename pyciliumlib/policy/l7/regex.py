"""Regular expressions of rules, by the library that proxies use (RE2).

It takes time linear in the text, whatever the pattern, so rules of strangers do no harm.
https://github.com/google/re2/wiki/Syntax
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Final

import re2

from pyciliumlib.errors import UnitError

REGEX_MAX: Final = 4096


@lru_cache(1 << 12)
def whole(pattern: str) -> Callable[[str], bool]:
    """Whether a text matches the pattern from its first to its last character.

    Raises UnitError for a pattern that RE2 does not know, or a long one.

    >>> whole("/v[0-9]+/.*")("/v2/items")
    True
    """
    if len(pattern) > REGEX_MAX:
        raise UnitError(f"a regular expression of {len(pattern)} characters; at most {REGEX_MAX}")
    options = re2.Options()
    options.log_errors = False
    try:
        compiled = re2.compile(pattern, options)
    except re2.error as error:
        reason = error.args[0]
        text = reason.decode(errors="replace") if isinstance(reason, bytes) else str(reason)
        raise UnitError(f"{pattern!r} is no regular expression of RE2: {text}") from error
    return lambda text: compiled.fullmatch(text) is not None
