"""When to look for flows that have expired: Cilium's rule."""

from __future__ import annotations

from typing import Final

from attrs import evolve, frozen

_FIRST: Final = 300.0
_LEAST: Final = 10.0
_MOST: Final = 12 * 3600.0
#: Shares of a table's size: more makes the wait shorter, less makes it longer.
_MUCH: Final = 0.25
_LITTLE: Final = 0.05
_MUCH_MOST: Final = 0.9
_LONGER: Final = 1.5


@frozen
class Pace:
    """How many seconds to wait before the next look.

    >>> Pace().after(60, 100).seconds, Pace().after(0, 100).seconds
    (120.0, 450.0)
    """

    seconds: float = _FIRST

    def after(self, deleted: int, size: int) -> Pace:
        """The pace after so many entries were deleted of a table for `size`.

        Much was dead: it is shorter by that share. Hardly any: half as long again. Always between
        ten seconds and twelve hours.
        """
        share = deleted / size
        seconds = self.seconds
        if share > _MUCH:
            seconds *= 1 - min(share, _MUCH_MOST)
        elif share < _LITTLE:
            seconds *= _LONGER
        return evolve(self, seconds=min(max(seconds, _LEAST), _MOST))
