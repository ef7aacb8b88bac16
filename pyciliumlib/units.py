"""Quantities as people write them: "10Mbit", "64Ki", "5s".

Suffixes are those of Kubernetes: k, M, G, T count in thousands, Ki, Mi, Gi, Ti in 1024s.
https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Final

from pyciliumlib.errors import UnitError

_SCALES: Final = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12} | {
    "Ki": 2**10,
    "Mi": 2**20,
    "Gi": 2**30,
    "Ti": 2**40,
}
_NUMBER: Final = r"(?P<number>[0-9]+(\.[0-9]+)?)"
_SCALE: Final = r"(?P<scale>Ki|k|[MGT]i?|)"
_RATE: Final = re.compile(rf"{_NUMBER}\s*{_SCALE}(bit(/s)?)?")
_SIZE: Final = re.compile(rf"{_NUMBER}\s*{_SCALE}B?")
_NANOSECONDS: Final = {
    "ns": 1,
    "us": 10**3,
    "µs": 10**3,
    "ms": 10**6,
    "s": 10**9,
    "m": 60 * 10**9,
    "h": 3600 * 10**9,
}
_BITS: Final = 64
#: Longer than any quantity; Decimal gives up at a million digits.
_TEXT_MAX: Final = 64
_DURATION_PART: Final = re.compile(r"(?P<number>[0-9]+(\.[0-9]+)?)(?P<unit>ns|us|µs|ms|s|m|h)")


def parse_rate(text: str | int) -> int:
    """Bits per second; a plain number is bits per second too.

    Raises UnitError, also for "bps", which is bits to some tools and bytes to others.

    >>> parse_rate("10Mbit"), parse_rate("1.5G")
    (10000000, 1500000000)
    """
    return _scaled(text, _RATE, "rate", "10Mbit, 1.5Gbit or 64Kibit (bits per second)")


def parse_size(text: str | int) -> int:
    """Bytes.

    >>> parse_size("64k"), parse_size("64Ki")
    (64000, 65536)
    """
    return _scaled(text, _SIZE, "size", "64k, 64Ki or 1500 (bytes)")


def parse_duration(text: str) -> int:
    """Nanoseconds, from the form that Go writes.

    >>> parse_duration("1m30s"), parse_duration("2.5ms")
    (90000000000, 2500000)
    """
    if not isinstance(text, str):
        raise UnitError(f"{_shown(text)} is no duration; write its unit, as in 5s or 250ms")
    if len(text) > _TEXT_MAX:
        raise UnitError(f"{_shown(text)} is longer than any duration; write 5s or 1m30s")
    total, at = Decimal(0), 0
    for part in _DURATION_PART.finditer(text):
        if part.start() != at:
            break
        total += Decimal(part["number"]) * _NANOSECONDS[part["unit"]]
        at = part.end()
    if not text or at != len(text):
        raise UnitError(f"{text!r} is no duration; write 5s, 250ms or 1m30s")
    return _whole(total, text, "nanoseconds")


def _shown(value: object) -> str:
    """A value for a message: not all of a long one, and of a huge number not one digit."""
    if isinstance(value, int) and value.bit_length() > _BITS:
        return f"a number of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= _TEXT_MAX else f"{text[:_TEXT_MAX]}..."


def _scaled(text: str | int, pattern: re.Pattern[str], what: str, example: str) -> int:
    if isinstance(text, int) and text.bit_length() > _BITS:
        raise UnitError(f"{_shown(text)} is more than {_BITS} bits hold; write {example}")
    written = str(text).strip()
    if len(written) > _TEXT_MAX:
        raise UnitError(f"{_shown(text)} is longer than any {what}; write {example}")
    match = pattern.fullmatch(written)
    if match is None:
        raise UnitError(f"{text!r} is no {what}; write {example}")
    return _whole(Decimal(match["number"]) * _SCALES[match["scale"]], text, example)


def _whole(value: Decimal, text: str | int, unit: str) -> int:
    if value >= 1 << _BITS:
        raise UnitError(f"{text!r} is more than {_BITS} bits hold")
    if value != value.to_integral_value():
        raise UnitError(f"{text!r} is no whole number of units; write {unit}")
    return int(value)
