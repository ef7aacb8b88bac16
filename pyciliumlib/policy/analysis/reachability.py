"""Who can reach whom on a port: the verdicts of all pairs as one matrix."""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
from attrs import field, frozen

from pyciliumlib.errors import NotFoundError
from pyciliumlib.policy.analysis.picture import data_url
from pyciliumlib.policy.analysis.rows import CODES, VERDICTS, Peers, row
from pyciliumlib.policy.enforcement import INIT
from pyciliumlib.policy.explain import Target, parse_target
from pyciliumlib.policy.model import Party, PortMatch, Rule, Verdict
from pyciliumlib.policy.settings import PolicySettings
from pyciliumlib.types import Direction, Protocol

if TYPE_CHECKING:
    import numpy.typing as npt

_COLOURS: Final = {"allow": (46, 160, 67), "redirect": (210, 153, 34), "deny": (218, 54, 51)}
_NAMED_MAX: Final = 30
#: An image has at least this many pixels a side.
_PIXELS: Final = 300

RulesOf = Callable[[Party], Sequence[Rule]]


@frozen(eq=False)
class Reachability:
    """The verdicts between parties on one port: rows are sources, columns destinations.

    `egress` and `ingress` are the words of each side, `codes` the verdict of both; a code is the
    place in `VERDICTS`: 0 allow, 1 redirect, 2 deny. All are of shape (n, n) and dtype uint8.

    >>> from pyciliumlib.policy import Repository
    >>> found = Repository().reachability({"web": ["k8s:app=web"], "db": ["k8s:app=db"]}, "80/TCP")
    >>> found.who_can_reach("db")
    ('web', 'db')
    """

    names: tuple[str, ...]
    target: PortMatch
    egress: npt.NDArray[np.uint8] = field(repr=False)
    ingress: npt.NDArray[np.uint8] = field(repr=False)

    @property
    def codes(self) -> npt.NDArray[np.uint8]:
        """The verdict of both sides: denied if either denies."""
        return np.maximum(self.egress, self.ingress)

    @property
    def allowed(self) -> npt.NDArray[np.bool_]:
        """Which connections are not denied; a redirected one meets a proxy."""
        return np.asarray(self.codes != CODES[Verdict.DENY])

    def verdict(self, source: str, destination: str) -> Verdict:
        """What becomes of a connection; NotFoundError for a name that is not among the parties."""
        return VERDICTS[self.codes[self._place(source), self._place(destination)]]

    def who_can_reach(self, name: str) -> tuple[str, ...]:
        """The parties whose connections to `name` are not denied."""
        return self._chosen(self.allowed[:, self._place(name)])

    def reached_by(self, name: str) -> tuple[str, ...]:
        """The parties to which connections of `name` are not denied."""
        return self._chosen(self.allowed[self._place(name)])

    def _chosen(self, mask: npt.NDArray[np.bool_]) -> tuple[str, ...]:
        return tuple(self.names[place] for place in np.flatnonzero(mask))

    def _place(self, name: str) -> int:
        try:
            return self.names.index(name)
        except ValueError:
            raise NotFoundError(f"{name!r} is not among the parties of this matrix") from None

    def __str__(self) -> str:
        counts = np.bincount(self.codes.ravel(), minlength=len(VERDICTS))
        told = ", ".join(f"{n} {verdict}" for n, verdict in zip(counts, VERDICTS, strict=True))
        return f"{self.target} between {len(self.names)}: {told}"

    def _repr_html_(self) -> str:
        if len(self.names) > _NAMED_MAX:
            scale = -(-_PIXELS // len(self.names))
            image = data_url(self.codes, list(_COLOURS.values()), scale)
            return f"<figure><img src='{image}'><figcaption>{self}</figcaption></figure>"
        head = "".join(f"<th>{html.escape(name)}</th>" for name in self.names)
        rows = "".join(
            f"<tr><th>{html.escape(name)}</th>{''.join(map(_cell, line))}</tr>"
            for name, line in zip(self.names, self.codes.tolist(), strict=True)
        )
        return f"<table><caption>{self}</caption><tr><td></td>{head}</tr>{rows}</table>"


def _cell(code: int) -> str:
    name = str(VERDICTS[code])
    return f"<td style='background:rgb{_COLOURS[name]};color:#fff'>{name}</td>"


def reachability(
    rules_of: RulesOf, settings: PolicySettings, parties: Mapping[str, Party], target: Target
) -> Reachability:
    """The verdicts between all parties, by the rules that `rules_of` finds for a subject."""
    protocol, port = parse_target(target)
    peers = Peers(tuple(parties.values()))
    egress, ingress = matrices(rules_of, settings, peers, protocol, port)
    return Reachability(tuple(parties), PortMatch(protocol, port, port), egress, ingress)


def matrices(
    rules_of: RulesOf, settings: PolicySettings, peers: Peers, protocol: Protocol, port: int
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """The words of sources and of destinations, both with a row a source."""
    count = len(peers)
    sides = {direction: np.zeros((count, count), np.uint8) for direction in Direction}
    #: With the rules, so that their ids stay theirs.
    rows: dict[object, tuple[npt.NDArray[np.uint8], Sequence[Rule]]] = {}
    for place, subject in enumerate(peers.parties):
        rules = rules_of(subject)
        # subjects under the same rules, with the same names for ports, have the same row
        ports = tuple(sorted(subject.named_ports.items()))
        kind = subject.is_host, subject.governable, subject.labels.has(INIT)
        for direction, matrix in sides.items():
            key = direction, tuple(map(id, rules)), ports, kind
            if key not in rows:
                found = row(rules, settings, subject, peers, direction, protocol, port)
                rows[key] = found, rules
            matrix[place] = rows[key][0]
    return sides[Direction.EGRESS], sides[Direction.INGRESS].T
