"""Backends that take no new connections for now, whatever their services say of them."""

from __future__ import annotations

from collections.abc import Iterable

from attrs import evolve, frozen

from pyciliumlib.loadbalancer.backend import Backend, BackendState
from pyciliumlib.loadbalancer.service import Service


@frozen
class Quarantine:
    """A set of backends, by their keys.

    It is kept apart from the services, which are what somebody wants: whoever gives a service anew
    need not know which of its backends do not answer.
    """

    keys: frozenset[bytes] = frozenset()

    def adding(self, backends: Iterable[Backend]) -> Quarantine:
        """With these as well."""
        return Quarantine(self.keys.union(backend.key for backend in backends))

    def without(self, keys: Iterable[bytes]) -> Quarantine:
        """Less these."""
        return Quarantine(self.keys.difference(keys))

    def over(self, service: Service) -> Service:
        """The service as it is in force: its active backends that are here are quarantined.

        Others keep their state: they take less already, or terminate, which is for good.
        """
        if not self.keys or not any(map(self._holds, service.all_backends)):
            return service
        return service.with_each(self._over)

    def _over(self, backend: Backend) -> Backend:
        held = self._holds(backend)
        return evolve(backend, state=BackendState.QUARANTINED) if held else backend

    def _holds(self, backend: Backend) -> bool:
        return backend.state is BackendState.ACTIVE and backend.key in self.keys
