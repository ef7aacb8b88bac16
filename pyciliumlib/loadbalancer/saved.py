"""Services as texts, with the numbers by which the maps know them: what a restart needs."""

from __future__ import annotations

import enum
import json
from collections.abc import Mapping
from typing import Any, Final

import attrs
from attrs import frozen

from pyciliumlib.loadbalancer.backend import Backend, BackendState
from pyciliumlib.loadbalancer.quarantine import Quarantine
from pyciliumlib.loadbalancer.service import (
    Frontend,
    LocalRedirect,
    Mesh,
    NodeExposure,
    Service,
    ServiceKey,
)

_OPTIONS: Final = tuple(
    field.name for field in attrs.fields(Service) if field.name not in ("frontends", "backends")
)
_PLAIN: Final = Service("plain", ())


@frozen
class Saved:
    """A service and its numbers: its own, its source ranges', and its backends' in their order."""

    service: Service
    id: int
    ranges: int
    backends: tuple[int, ...]

    def to_json(self) -> str:
        """The text that `from_json` reads."""
        service = self.service
        return json.dumps(
            {
                "id": self.id,
                "ranges": self.ranges,
                "numbers": self.backends,
                "frontends": [_frontend(frontend) for frontend in service.frontends],
                "backends": [_backend(backend) for backend in service.backends],
                "options": {
                    name: _plain(getattr(service, name))
                    for name in _OPTIONS
                    if getattr(service, name) != getattr(_PLAIN, name)
                },
            }
        )

    @classmethod
    def from_json(cls, text: str) -> Saved:
        """What `to_json` wrote."""
        row = json.loads(text)
        options = {"name": _PLAIN.name, **row["options"]}
        for name, kind in (("mesh", Mesh), ("exposure", NodeExposure), ("redirect", _redirect)):
            if name in options:
                options[name] = kind(**options[name])
        service = Service(
            frontends=[Frontend(*one) for one in row["frontends"]],
            backends=[_read_backend(*one) for one in row["backends"]],
            **options,
        )
        return cls(service, row["id"], row["ranges"], tuple(row["numbers"]))


def as_row(value: attrs.AttrsInstance) -> dict[str, Any]:
    """A value's fields as JSON holds them; the converters of its class read them back."""
    return {field.name: _plain(getattr(value, field.name)) for field in attrs.fields(type(value))}


def _plain(value: Any) -> Any:
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, (Mesh, NodeExposure, LocalRedirect)):
        return as_row(value)
    if isinstance(value, Backend):
        return _backend(value)
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)


def _redirect(backends: list[Any], **options: Any) -> LocalRedirect:
    return LocalRedirect(backends=[_read_backend(*one) for one in backends], **options)


def _frontend(frontend: Frontend) -> list[Any]:
    return [str(frontend.address), frontend.port, int(frontend.protocol), frontend.type.value]


def _backend(backend: Backend) -> list[Any]:
    return [
        str(backend.address), backend.port, int(backend.protocol), backend.weight,
        backend.cluster_id, backend.internal, int(backend.state), backend.node,
    ]  # fmt: skip


def _read_backend(
    address: str, port: int, protocol: int, weight: int, cluster: int, internal: bool, state: int,
    node: str,
) -> Backend:  # fmt: skip
    return Backend(address, port, protocol, weight, cluster, internal, BackendState(state), node)


class Journal:
    """Told of each change of a table before and after it is in the maps; this one keeps nothing.

    Where a process ends between `begin` and `commit`, the next one carries the change out.
    """

    def begin(self, change: Mapping[ServiceKey, Saved | None], quarantine: Quarantine) -> None:
        """These services are about to be written, or with None removed."""

    def commit(self) -> None:
        """It is done; an error here undoes it."""

    def abort(self) -> None:
        """It failed, and the maps are what they were."""
