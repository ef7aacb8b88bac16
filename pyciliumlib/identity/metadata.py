"""What is said about a prefix, by whom, and what follows when several say something.

Sources are ranked. For one prefix the contributions are taken in the order of their rank: labels
are united (of one key the first wins), a single-valued field is the first that is given. A number
beats labels, and the highest override beats all else, whatever its rank.
"""

from __future__ import annotations

import enum
import logging
from collections.abc import Iterable, Mapping

from attrs import field, frozen

from pyciliumlib.errors import InvalidError
from pyciliumlib.identity.cidr import cidr_labels
from pyciliumlib.identity.labels import (
    SOURCE_CIDR,
    SOURCE_CIDR_GROUP,
    SOURCE_FQDN,
    SOURCE_RESERVED,
    Label,
    Labels,
)
from pyciliumlib.identity.numeric import IDENTITY_MAX
from pyciliumlib.types import Address, Network

_log = logging.getLogger(__name__)


class Source(enum.IntEnum):
    """Who says it; the higher rank wins."""

    UNSPEC = 0
    RESTORED = 1
    GENERATED = 2
    API = 3
    DIRECTORY = 4
    CLUSTERMESH = 5
    K8S = 6
    CUSTOM_RESOURCE = 7
    KVSTORE = 8
    LOCAL = 9
    KUBE_APISERVER = 10

    def __str__(self) -> str:
        return self.name.lower().replace("_", "-")


@frozen
class Metadata:
    """One resource's word on a prefix: labels, or the number of an identity, and the way there.

    With `override` the labels (or the number) are the whole truth. `tunnel_peer` is the node
    behind which the prefix is, `encrypt_key` the index of the key to use (0 to 255).
    """

    source: Source
    labels: Labels = field(factory=Labels)
    identity: int | None = None
    override: bool = False
    tunnel_peer: Address | None = None
    encrypt_key: int | None = None
    flags: int | None = None

    def __attrs_post_init__(self) -> None:
        if self.identity is not None and not 0 < self.identity <= IDENTITY_MAX:
            raise InvalidError(f"identity {self.identity}: write 1 to {IDENTITY_MAX}")
        if self.override and self.identity is None and not self.labels:
            raise InvalidError("an override says which identity; give labels or identity")
        if self.encrypt_key is not None and not 0 <= self.encrypt_key <= 255:
            raise InvalidError(f"encrypt key {self.encrypt_key}: write 0 to 255")
        if self.flags is not None and not 0 <= self.flags <= 0xFFFF_FFFF:
            raise InvalidError(f"flags {self.flags:#x}: write 32 bits")


@frozen
class Resolved:
    """What all contributions come to: a number, or labels that need one (never both)."""

    source: Source
    identity: int | None
    labels: Labels
    tunnel_peer: Address | None
    encrypt_key: int
    flags: int


def merge(
    prefix: Network, contributions: Mapping[str, Metadata], ipv4: bool = True, ipv6: bool = True
) -> Resolved | None:
    """What the contributions to `prefix`, by resource, come to; None where they name nobody.

    `ipv4` and `ipv6` are the enabled families; they decide what the world is called.
    """
    ordered = [
        contributions[name]
        for name in sorted(contributions, key=lambda name: (-contributions[name].source, name))
    ]
    override = next((c for c in ordered if c.override), None)
    telling = [override] if override is not None else ordered
    identity = next((c.identity for c in telling if c.identity is not None), None)
    labels = Labels()
    if identity is None:
        labels = _unite(prefix, (c.labels for c in telling))
        if not labels:
            return None
        if override is None:
            labels = _with_place(prefix, labels, ipv4, ipv6)
    return Resolved(
        source=telling[0].source,
        identity=identity,
        labels=labels,
        tunnel_peer=next((c.tunnel_peer for c in ordered if c.tunnel_peer is not None), None),
        encrypt_key=next((c.encrypt_key for c in ordered if c.encrypt_key is not None), 0),
        flags=next((c.flags for c in ordered if c.flags is not None), 0),
    )


def _unite(prefix: Network, sets: Iterable[Labels]) -> Labels:
    found: dict[str, Label] = {}
    for labels in sets:
        for label in labels:
            kept = found.setdefault(label.key, label)
            if kept != label:
                _log.warning("prefix %s: label %s wins over %s", prefix, kept, label)
    return Labels(found.values())


_OUTSIDE_SOURCES = frozenset({SOURCE_CIDR, SOURCE_CIDR_GROUP, SOURCE_FQDN, SOURCE_RESERVED})
_INSIDE_RESERVED = frozenset({"host", "remote-node", "health", "ingress", "init", "unmanaged"})
_WORLD = frozenset({"world", "world-ipv4", "world-ipv6"})


def _with_place(prefix: Network, labels: Labels, ipv4: bool, ipv6: bool) -> Labels:
    """Add what a prefix outside the cluster carries, or take it from what is inside.

    CIDR rules do not apply to nodes and pods, so those have neither a cidr nor a world label.
    """
    inside = any(
        label.source not in _OUTSIDE_SOURCES
        or (label.source == SOURCE_RESERVED and label.key in _INSIDE_RESERVED)
        for label in labels
    )
    if not inside:
        return labels.merge(cidr_labels(prefix, ipv4, ipv6))
    return Labels(
        label
        for label in labels
        if label.source != SOURCE_CIDR
        and not (label.source == SOURCE_RESERVED and label.key in _WORLD)
    )
