"""What a change of rules would change: the pairs whose verdict differs, on every port."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import numpy as np
from attrs import field, frozen

from pyciliumlib.policy.analysis.boundaries import PortRange, boundaries
from pyciliumlib.policy.analysis.reachability import RulesOf, matrices
from pyciliumlib.policy.analysis.rows import VERDICTS, Peers
from pyciliumlib.policy.model import Party, Rule, Verdict
from pyciliumlib.policy.settings import PolicySettings

_SHOWN: Final = 50


@frozen
class Difference:
    """A connection that becomes something else: from `source` to a port of `destination`."""

    source: str
    destination: str
    ports: PortRange
    before: Verdict
    after: Verdict

    def __str__(self) -> str:
        return (
            f"{self.source} -> {self.destination} {self.ports}: {self.before} becomes {self.after}"
        )


@frozen
class PolicyDiff:
    """All differences between two sets of rules, by pair and range of ports.

    `opened` and `closed` are those that let more through, and less.
    """

    differences: tuple[Difference, ...]
    pairs: int = field(kw_only=True)

    @property
    def opened(self) -> tuple[Difference, ...]:
        """What was denied before."""
        return tuple(d for d in self.differences if d.before is Verdict.DENY)

    @property
    def closed(self) -> tuple[Difference, ...]:
        """What is denied after."""
        return tuple(d for d in self.differences if d.after is Verdict.DENY)

    def __bool__(self) -> bool:
        return bool(self.differences)

    def __len__(self) -> int:
        return len(self.differences)

    def __iter__(self) -> Iterator[Difference]:
        return iter(self.differences)

    def __str__(self) -> str:
        lines = [
            f"{len(self.opened)} opened, {len(self.closed)} closed, "
            f"{len(self)} different in all, of {self.pairs} pairs"
        ]
        lines += [f"  {difference}" for difference in self.differences[:_SHOWN]]
        if len(self) > _SHOWN:
            lines.append(f"  and {len(self) - _SHOWN} more")
        return "\n".join(lines)


@frozen
class RuleSet:
    """Rules as a diff needs them: all of them, and those about a subject."""

    rules: Sequence[Rule]
    of: RulesOf
    settings: PolicySettings


def diff(before: RuleSet, after: RuleSet, parties: Mapping[str, Party]) -> PolicyDiff:
    """The connections between `parties` about which the two differ, on any port or ICMP type."""
    names, peers = tuple(parties), Peers(tuple(parties.values()))
    ports = [party.named_ports for party in peers.parties]
    found: dict[tuple[int, int], list[Difference]] = {}
    for ports_alike in boundaries((*before.rules, *after.rules), ports):
        protocol, port = ports_alike.protocol, ports_alike.first
        old, new = (
            np.maximum(*matrices(side.of, side.settings, peers, protocol, port))
            for side in (before, after)
        )
        for source, destination in np.argwhere(old != new).tolist():
            was, becomes = VERDICTS[old[source, destination]], VERDICTS[new[source, destination]]
            difference = Difference(names[source], names[destination], ports_alike, was, becomes)
            _append(found.setdefault((source, destination), []), difference)
    differences = tuple(item for pair in sorted(found) for item in found[pair])
    return PolicyDiff(differences, pairs=len(names) ** 2)


def _append(found: list[Difference], more: Difference) -> None:
    """Add a difference, as part of the last one where it goes on with that."""
    if found:
        last = found[-1]
        same = (last.before, last.after, last.ports.protocol)
        if same == (more.before, more.after, more.ports.protocol) and (
            last.ports.last + 1 == more.ports.first
        ):
            ports = PortRange(last.ports.protocol, last.ports.first, more.ports.last)
            found[-1] = Difference(last.source, last.destination, ports, last.before, last.after)
            return
    found.append(more)
