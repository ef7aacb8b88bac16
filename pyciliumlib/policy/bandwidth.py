"""Limits of bandwidth: `toBandwidth` of a rule, and the annotations of a pod.

`toBandwidth` is this library's own field; Cilium knows the annotations alone. A limit is about all
that an endpoint sends, whoever gets it, and turns no default deny on.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from attrs import frozen

from pyciliumlib.errors import UnitError
from pyciliumlib.policy import fields
from pyciliumlib.policy.model import BandwidthLimit
from pyciliumlib.policy.schema import Problems
from pyciliumlib.types import Direction
from pyciliumlib.units import parse_rate

#: A burst below one frame would let no frame pass.
BURST_MIN: Final = 1514
_ANNOTATIONS: Final = {
    Direction.EGRESS: "kubernetes.io/egress-bandwidth",
    Direction.INGRESS: "kubernetes.io/ingress-bandwidth",
}
#: As tc writes it, where m is a million.
_TC: Final = re.compile(r"(?P<number>[0-9]+(\.[0-9]+)?)(?P<scale>[kmgt]i?)?bit")
_QUANTITY: Final = re.compile(r"[0-9]+(\.[0-9]+)?([kMGT]|[KMGT]i)?")


def read_bandwidth(
    entry: Mapping[str, Any], path: str, problems: Problems
) -> BandwidthLimit | None:
    """The limit of a rule entry, which has nothing but it."""
    where = f"{path}.toBandwidth"
    if others := sorted(entry.keys() - {"toBandwidth"}):
        problems.add(where, f"it stands alone in its entry; give {', '.join(others)} another one")
    item = fields.BANDWIDTH.read(entry["toBandwidth"], where, problems)
    amounts = {}
    for name, text in item.items():
        with problems.catching(f"{where}.{name}"):
            amounts[name] = _bits(text)
    problems.warn(where, "the limit is kept for a shaper; none is attached yet")
    if "rate" not in amounts:
        return None
    limit = BandwidthLimit(amounts["rate"], amounts.get("burst", 0) // 8)
    if not limit.rate:
        problems.add(f"{where}.rate", "a rate of 0 lets nothing pass; write a deny rule")
    if "burst" in amounts and limit.burst < BURST_MIN:
        problems.add(f"{where}.burst", f"{limit.burst} bytes are less than a frame of {BURST_MIN}")
    return limit


def _bits(text: str) -> int:
    """Bits from tc's form (10mbit) or a quantity of Kubernetes (10M, 64Ki)."""
    if match := _TC.fullmatch(text):
        scale = (match["scale"] or "").capitalize()
        return parse_rate(match["number"] + ("k" if scale == "K" else scale))
    if _QUANTITY.fullmatch(text):
        return parse_rate(text)
    raise UnitError(f"{text!r} is no amount of bits; write 10mbit or 10M")


@frozen
class PodBandwidth:
    """What a pod's annotations ask for, by direction of the pod."""

    egress: BandwidthLimit | None = None
    ingress: BandwidthLimit | None = None


def annotated_bandwidth(annotations: Mapping[str, str]) -> PodBandwidth:
    """The limits of `kubernetes.io/egress-bandwidth` and `kubernetes.io/ingress-bandwidth`.

    Their values are quantities of Kubernetes in bits a second. Raises UnitError for others; 10mbit
    is one of them, as in Cilium.

    >>> annotated_bandwidth({"kubernetes.io/egress-bandwidth": "10M"}).egress
    BandwidthLimit(rate=10000000, burst=0)
    """
    found: dict[Direction, BandwidthLimit] = {}
    for direction, name in _ANNOTATIONS.items():
        text = annotations.get(name)
        if text is None:
            continue
        if not isinstance(text, str):
            raise UnitError(f"{name}: expected a text, found {type(text).__name__}; quote it")
        try:
            rate = parse_rate(text) if _QUANTITY.fullmatch(text) else 0
        except UnitError as error:
            raise UnitError(f"{name}: {error}") from error
        if not rate:
            raise UnitError(f"{name}: {text!r:.40} is no rate; write bits a second, as in 10M")
        found[direction] = BandwidthLimit(rate)
    return PodBandwidth(found.get(Direction.EGRESS), found.get(Direction.INGRESS))
