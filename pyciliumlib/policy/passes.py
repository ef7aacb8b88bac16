"""Directions in which a rule passes: who decides, when clauses are asked tier by tier.

"Pass" takes the later rules of its tier out of play for those whom it names. No precedence of
map entries can say that, since the rules taken out may be about any peer. So each class of
identities gets entries for all that applies to it, what is said of any peer included, each of them
settled; they outrank the entries of any identity.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from pyciliumlib.policy.entries import AUTH_EXPLICIT, PASS_BYTE, Slot
from pyciliumlib.policy.model import Tier
from pyciliumlib.policy.shares import Share

#: Priorities of settled entries: those of a class of identities, and those of any identity.
OWN: Final = 0
ANYONE: Final = 1


class Claim(NamedTuple):
    """What a share says about a slot; `own` is whether it names the peers."""

    slot: Slot
    share: Share
    own: bool


def settle(claims: Iterable[Claim]) -> dict[Slot, list[Claim]]:
    """For each slot that is claimed, the claims that decide about it; some may be of wider slots.

    A slot that nothing decides about is left out.
    """
    by_slot: dict[Slot, list[Claim]] = {}
    for claim in claims:
        by_slot.setdefault(claim.slot, []).append(claim)
    lengths = {slot.bits for slot in by_slot}
    found = {}
    for slot, here in by_slot.items():
        wider = (claim for other in slot.wider(lengths) for claim in by_slot.get(other, ()))
        if deciding := _first_to_decide([*here, *wider]):
            found[slot] = deciding
    return found


def _first_to_decide(claims: Sequence[Claim]) -> list[Claim]:
    if len(claims) == 1:
        return [] if claims[0].share.action == PASS_BYTE else list(claims)
    passed: Tier | None = None
    for level in sorted({claim.share.level for claim in claims}):
        if level.tier is passed:
            continue
        here = [claim for claim in claims if claim.share.level == level]
        action = max(claim.share.action for claim in here)
        if action != PASS_BYTE:
            return [claim for claim in here if claim.share.action == action]
        passed = level.tier
    return []


def authentication(claims: Sequence[Claim]) -> int:
    """The `auth_type` of an entry that `claims` decide, by the weights of the model's verdict."""
    if all(claim.share.authentication is None for claim in claims):
        return 0
    sides = [
        side
        for side in ([c for c in claims if c.own], [c for c in claims if not c.own])
        if side  # the side that names peers first: it speaks where both are as narrow
    ]
    speaker = max(sides, key=lambda side: max(claim.slot.lpm_bits for claim in side))
    explicit = _word(speaker, max(claim.slot.lpm_bits for claim in speaker))
    if explicit is None:
        explicit = max(_narrowest_word(side) for side in sides)
    return AUTH_EXPLICIT | explicit


def _word(side: Iterable[Claim], bits: int) -> int | None:
    said = [c.share.authentication for c in side if c.slot.lpm_bits == bits]
    return max((word for word in said if word is not None), default=None)


def _narrowest_word(side: Sequence[Claim]) -> int:
    said: Mapping[int, int | None] = {
        claim.slot.lpm_bits: _word(side, claim.slot.lpm_bits) for claim in side
    }
    words = {bits: word for bits, word in said.items() if word is not None}
    return words[max(words)] if words else 0
