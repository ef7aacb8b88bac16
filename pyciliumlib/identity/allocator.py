"""Gives numbers to sets of labels: the same set, the same number, on every node of a store.

Global numbers live in a store, in Cilium's key layout: `<base>/id/<number>` holds the labels (the
master), `<base>/value/<labels>/<node>` says that a node uses them. Numbers of the local scopes
are this object's own. What is reserved, well-known or fixed is never allocated.
"""

from __future__ import annotations

import logging
import random
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Final

from attrs import define, frozen

from pyciliumlib.errors import (
    ClosedError,
    ExhaustedError,
    InvalidError,
    LabelError,
    NotFoundError,
    StateError,
    nearest,
)
from pyciliumlib.identity.labels import SOURCE_RESERVED, Labels, LabelsLike
from pyciliumlib.identity.local import LocalNumbers
from pyciliumlib.identity.numeric import (
    ALLOCATED_MIN,
    FIXED_IDENTITY_KEY,
    USER_RESERVED_MIN,
    ClusterRange,
    Identity,
    ReservedIdentity,
    Scope,
    is_reserved,
    reserved_id_for_labels,
    scope_for_labels,
    well_known_identities,
)
from pyciliumlib.store import Event, MemoryStore, Session, Store, locked

_log = logging.getLogger(__name__)

BASE_PATH: Final = "cilium/state/identities/v1"
SESSION_TTL: Final = 15 * 60.0
_ATTEMPTS: Final = 16
_FIRST_BACKOFF: Final = 0.002

#: Called with the identities that came and those that went, in the order of the changes.
Observer = Callable[[Sequence[Identity], Sequence[Identity]], None]


@frozen
class AllocatorSettings:
    """How a node allocates.

    `node` is the name (in Cilium the IP) under which it says what it uses. `fixed` are the
    user-reserved identities, number (128 to 255) to name. `well_known` turns the table of system
    pods on, `cluster` is the name it is for. `nodes_have_labels` gives each remote node its own.
    """

    node: str = "127.0.0.1"
    cluster: str = "default"
    cluster_id: int = 0
    max_clusters: int = 255
    fixed: Mapping[int, str] = {}
    well_known: bool = True
    nodes_have_labels: bool = False

    def __attrs_post_init__(self) -> None:
        ClusterRange(self.cluster_id, self.max_clusters)
        if not self.node or "/" in self.node:
            raise InvalidError(f"node {self.node!r}: write a name or an address, without '/'")
        for number, name in self.fixed.items():
            if not USER_RESERVED_MIN <= number < ALLOCATED_MIN:
                raise InvalidError(
                    f"fixed identity {number}={name}: numbers are {USER_RESERVED_MIN} "
                    f"to {ALLOCATED_MIN - 1}"
                )
            if any(name == identity.label.key for identity in ReservedIdentity):
                raise InvalidError(f"fixed identity {number}={name}: {name!r} is reserved already")
        if len(set(self.fixed.values())) != len(self.fixed):
            raise InvalidError("fixed identities: two numbers have the same name")


@define
class _Known:
    """A global identity: who uses it here (`references`), and whether the store has its master."""

    identity: Identity
    references: int = 0


class IdentityAllocator:
    """Reference-counted numbers for sets of labels.

    >>> with IdentityAllocator() as allocator:
    ...     web = allocator.allocate(["k8s:app=web"])
    ...     web.id >= 256, allocator.allocate(["k8s:app=web"]) == web
    (True, True)

    Without a `store` the numbers are this process's own; the caller keeps a store it passes.
    Safe under threads. `poll` brings in what other nodes did.
    """
