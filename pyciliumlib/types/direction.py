"""Which way a packet goes, seen from an endpoint."""

from __future__ import annotations

import enum


class Direction(enum.IntEnum):
    """As seen from the endpoint whose policy or device it is (`enum direction` of the programs)."""

    INGRESS = 0
    EGRESS = 1

    def __str__(self) -> str:
        return self.name.lower()
