"""Tells the other nodes of a store which addresses are here, and learns of theirs."""

from __future__ import annotations

import logging

from pyciliumlib.closeable import Closeable
from pyciliumlib.errors import InvalidError
from pyciliumlib.identity.ip_pair import IP_BASE_PATH, IPIdentityPair
from pyciliumlib.identity.ipcache import IPCache, Update
from pyciliumlib.identity.metadata import Metadata, Source
from pyciliumlib.identity.numeric import ReservedIdentity, Scope
from pyciliumlib.identity.shared import SESSION_TTL
from pyciliumlib.store import Event, Store
from pyciliumlib.types import Address, NetworkLike, parse_network

_log = logging.getLogger(__name__)


class ClusterAddresses(Closeable):
    """Keeps an ipcache and a store's addresses in step, in Cilium's key layout.

    What this node publishes lives as long as this object. `host` is the node's own address: what
    comes back under it is not taken in. Call `poll` to hear of other nodes. Not for use by
    several threads at once.
    """

    def __init__(
        self, store: Store, cache: IPCache, host: Address, address_space: str = "default"
    ) -> None:
        if not address_space or "/" in address_space:
            raise InvalidError(f"address space {address_space!r}: write a name without '/'")
        self._store = store
        self._cache = cache
        self._host = host
        self._space = address_space
        self._session = store.session(SESSION_TTL)
        self._prefix = f"{IP_BASE_PATH}/{address_space}/"
        self._watch = store.watch(self._prefix)
        #: Changes that the ipcache has not taken yet, by key.
        self._untaken: dict[str, Event] = {}

    def publish(self, pair: IPIdentityPair) -> None:
        """Tell of an address; InvalidError where the pair names another host."""
        if pair.host != self._host:
            raise InvalidError(f"{pair.prefix} is on {pair.host}; this node is {self._host}")
        self._store.put(pair.key(self._space), pair.encode(), self._session)

    def withdraw(self, prefix: NetworkLike) -> bool:
        """Take an address back; whether it was there."""
        key = IPIdentityPair(parse_network(prefix), 0).key(self._space)
        return self._store.delete(key)

    def poll(self, timeout: float = 0.0) -> int:
        """Take in what other nodes changed, waiting `timeout` seconds for the first; how much.

        Raises what the ipcache raises, with nothing taken in; the next call tries again.
        """
        events = self._watch.poll(0.0 if self._untaken else timeout)
        self._untaken |= {event.key: event for event in events}
        found = (self._update_of(event) for event in self._untaken.values())
        updates = [update for update in found if update is not None]
        self._cache.update(updates)
        self._untaken.clear()
        return len(updates)

    def close(self) -> None:
        """Withdraw what this object published; what it learned stays in the ipcache."""
        self._watch.close()
        self._session.close()

    def _update_of(self, event: Event) -> Update | None:
        try:
            prefix = parse_network(event.key.removeprefix(self._prefix))
        except InvalidError as error:
            _log.warning("store key %r: %s; ignored", event.key, error)
            return None
        metadata = None if event.value is None else self._metadata_of(event.key, event.value)
        return prefix, f"store {event.key}", metadata

    def _metadata_of(self, key: str, value: str) -> Metadata | None:
        """None, so that the address becomes the world's, for what cannot be believed."""
        try:
            pair = IPIdentityPair.decode(key, value)
            if pair.host == self._host:
                return None
            if pair.identity == ReservedIdentity.HOST or Scope.of(pair.identity) != Scope.GLOBAL:
                raise InvalidError(f"store key {key!r}: {pair.identity} means something else here")
            return Metadata(
                Source.KVSTORE,
                identity=pair.identity,
                tunnel_peer=pair.host,
                encrypt_key=pair.encrypt_key,
            )
        except InvalidError as error:
            _log.warning("%s; ignored", error)
            return None
