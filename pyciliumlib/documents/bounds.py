"""What an object may be at most before anybody looks into it.

YAML writes numbers without end, and by its aliases a few lines stand for billions, or for
themselves. Whoever shows, compares or keeps such a thing comes to no end.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from typing import Any, Final

from attrs import define, field

#: Policies are a dozen levels deep, their `managedFields` some more.
DEPTH_MAX: Final = 64
#: Keys and values of one object with its aliases written out, unless all of them are written.
VALUES_MAX: Final = 1 << 20
#: As wide as the numbers of Kubernetes.
BITS_MAX: Final = 64
#: So many values are counted one by one, which costs less than weighing.
_FEW: Final = 2048


def excess(value: object) -> str:
    """What is too much about a decoded object, or an empty text.

    >>> excess([1, {"a": [1 << 100]}])
    'a number of 101 bits; at most 64'
    """
    if _is_small(value):
        return ""
    scale = _Scale()
    try:
        weight, _ = scale.weigh(value, 0)
    except _ExcessError as error:
        return str(error)
    if weight > max(VALUES_MAX, scale.written):
        return f"{weight} values with its aliases written out; at most {VALUES_MAX}"
    return ""


def _is_small(value: object) -> bool:
    """Whether it is plainly within all bounds, as nearly every object is: level by level."""
    level: list[Any] = [value]
    count = 0
    for _ in range(DEPTH_MAX):
        below: list[Any] = []
        for item in [item for item in level if type(item) is not str]:  # most are texts
            kind = type(item)
            if kind is dict:
                below += item
                below += item.values()
            elif kind is list:
                below += item
            elif kind not in _PLAIN and not (kind is int and item.bit_length() <= BITS_MAX):
                return False
            if count + len(below) > _FEW:
                return False
        if not below:
            return True
        count += len(below)
        level = below
    return False


class _ExcessError(Exception):
    """It does not leave this module."""


@define
class _Scale:
    """Weighs what is there several times once."""

    written: int = 0
    #: Weight and height of lists and objects, by their `id`.
    _known: dict[int, tuple[int, int]] = field(factory=dict)

    def weigh(self, value: object, depth: int) -> tuple[int, int]:
        """How many values `value` is with its aliases written out, and how many levels."""
        weight, height = self._known.get(id(value), (0, 0))
        if not weight:
            weight = 1
            self.written += 1
            if depth <= DEPTH_MAX:  # one that holds itself is deeper than any
                for part in _parts(value):
                    if type(part) is str:
                        weight += 1
                        self.written += 1
                    else:
                        more, levels = self.weigh(part, depth + 1)
                        weight += more
                        height = max(height, levels + 1)
            if weight > 1:  # a number is one object in many places without any alias
                self._known[id(value)] = weight, height
        if depth + height > DEPTH_MAX:
            raise _ExcessError(f"more than {DEPTH_MAX} levels of lists and objects")
        return weight, height


_PLAIN: Final = frozenset({str, bool, float, type(None)})


def _parts(value: object) -> Iterable[object]:
    if type(value) in _PLAIN:
        return ()
    if isinstance(value, Mapping):
        return itertools.chain(value, value.values())
    if isinstance(value, (list, tuple, set, frozenset)):
        return value
    if isinstance(value, int) and value.bit_length() > BITS_MAX:
        raise _ExcessError(f"a number of {value.bit_length()} bits; at most {BITS_MAX}")
    return ()
