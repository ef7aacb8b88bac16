"""When a backend counts as healthy: checks that fail or pass so many times in a row."""

from __future__ import annotations

import time
from typing import Any, Final

from attrs import evolve, field, frozen

from pyciliumlib.errors import UnitError
from pyciliumlib.loadbalancer.backend import Backend, number

_TIMES_MAX: Final = 1000
_CONCURRENCY_MAX: Final = 16384


def _positive(_: Any, attribute: Any, value: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
        raise UnitError(f"{attribute.name} {value!r}: write seconds, more than 0")


def _share(_: Any, attribute: Any, value: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1:
        raise UnitError(f"{attribute.name} {value!r}: write a share, 0 to less than 1")


@frozen
class HealthSettings:
    """How often backends are checked, and what it takes to change one's mind.

    `interval` and `timeout` are seconds; each pause is longer or shorter by up to `jitter` of
    itself. After `fall` failures in a row a backend is unhealthy, after `rise` passes healthy
    again. At most `concurrency` checks run at a time, each with one open socket.
    """

    interval: float = field(default=10.0, validator=_positive)
    timeout: float = field(default=2.0, validator=_positive)
    rise: int = field(default=2, validator=number(1, _TIMES_MAX, "rise"))
    fall: int = field(default=3, validator=number(1, _TIMES_MAX, "fall"))
    jitter: float = field(default=0.1, validator=_share)
    concurrency: int = field(default=256, validator=number(1, _CONCURRENCY_MAX, "concurrency"))


@frozen
class Health:
    """What the checks of a backend have said; `against` is how many of the last said otherwise.

    >>> settings, health = HealthSettings(fall=2), Health()
    >>> health.after(False, settings), health.after(False, settings).after(False, settings)
    (Health(healthy=True, against=1), Health(healthy=False, against=0))
    """

    healthy: bool = True
    against: int = 0

    def after(self, passed: bool, settings: HealthSettings) -> Health:
        """What it is after one more check."""
        if passed is self.healthy:
            return evolve(self, against=0)
        needed = settings.fall if self.healthy else settings.rise
        if self.against + 1 < needed:
            return evolve(self, against=self.against + 1)
        return Health(healthy=not self.healthy)


@frozen
class HealthEvent:
    """A backend that is healthy or unhealthy from now on; `reason` is what the last check said."""

    backend: Backend
    healthy: bool
    reason: str
    time: float = field(factory=time.time, eq=False)

    def __str__(self) -> str:
        return f"{self.backend} {'healthy' if self.healthy else 'unhealthy'}: {self.reason}"
