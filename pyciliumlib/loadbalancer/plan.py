"""What a change of services would do, before it is done."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from attrs import field, frozen

from pyciliumlib.errors import InvalidError
from pyciliumlib.loadbalancer.backend import Backend
from pyciliumlib.loadbalancer.quarantine import Quarantine
from pyciliumlib.loadbalancer.service import Service, ServiceKey

_SHOWN: Final = 20


@frozen
class ServicePlan:
    """Services that come or change (with what they were, or None), and those that go.

    They are as they will be in force: `wanted` are the services that were given, and `quarantine`
    is why the two may differ.
    """

    upserts: Mapping[ServiceKey, tuple[Service | None, Service]]
    deletes: Mapping[ServiceKey, Service]
    wanted: Mapping[ServiceKey, Service] = field(factory=dict, repr=False)
    quarantine: Quarantine = field(factory=Quarantine, repr=False)

    @classmethod
    def between(
        cls,
        present: Mapping[ServiceKey, Service],
        wanted: Iterable[Service],
        *,
        whole: bool,
        quarantine: Quarantine,
    ) -> ServicePlan:
        """What makes `present`, the services in force, hold `wanted`, and with `whole` no others.

        Raises InvalidError where a service is there twice.
        """
        by_key: dict[ServiceKey, Service] = {}
        for service in wanted:
            if service.key in by_key:
                raise InvalidError(f"service {service.key} is there twice")
            by_key[service.key] = service
        upserts: dict[ServiceKey, tuple[Service | None, Service]] = {}
        for key, service in by_key.items():
            old, new = present.get(key), quarantine.over(service)
            if old is not new and old != new:
                upserts[key] = old, new
            elif new is service and old is not None:
                by_key[key] = old  # equal: one of them is enough to keep
        deletes: dict[ServiceKey, Service] = {}
        if whole:
            deletes = {key: old for key, old in present.items() if key not in by_key}
        return cls(upserts, deletes, by_key, quarantine)

    def __len__(self) -> int:
        return len(self.upserts) + len(self.deletes)

    def __str__(self) -> str:
        lines = [
            *(_upsert(key, old, new) for key, (old, new) in self.upserts.items()),
            *(f"- {key}: {_size(old)}" for key, old in self.deletes.items()),
        ]
        more = [f"... and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
        return "\n".join([*lines[:_SHOWN], *more]) or "nothing to do"


def _upsert(key: ServiceKey, old: Service | None, new: Service) -> str:
    if old is None:
        return f"+ {key}: {_size(new)}"
    return f"~ {key}: {', '.join(_differences(old, new)) or 'its options'}"


def _size(service: Service) -> str:
    return f"{len(service.frontends)} frontend(s), {len(service.all_backends)} backend(s)"


def _differences(old: Service, new: Service) -> Iterator[str]:
    was: dict[object, Backend] = {backend.key: backend for backend in old.all_backends}
    now: dict[object, Backend] = {backend.key: backend for backend in new.all_backends}
    yield from (f"+{backend}" for key, backend in now.items() if key not in was)
    yield from (f"-{backend}" for key, backend in was.items() if key not in now)
    for key, backend in now.items():
        before = was.get(key)
        if before is not None and before.state is not backend.state:
            yield f"{backend} {before.state} to {backend.state}"
        elif before is not None and before != backend:
            yield f"{backend} otherwise"
    yield from (f"+{frontend}" for frontend in new.frontends if frontend not in old.frontends)
    yield from (f"-{frontend}" for frontend in old.frontends if frontend not in new.frontends)
