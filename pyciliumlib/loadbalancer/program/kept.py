"""What a balancer leaves to the next process: its pins, and in a file its settings and services."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from pyciliumlib.errors import NotFoundError, PyCiliumError, StateError
from pyciliumlib.kernel.pinroot import PinLayout, PinRoot
from pyciliumlib.loadbalancer.quarantine import Quarantine
from pyciliumlib.loadbalancer.saved import Journal, Saved
from pyciliumlib.loadbalancer.service import Service, ServiceKey
from pyciliumlib.loadbalancer.table import ServiceTable
from pyciliumlib.store import SQLiteStore, Store

_SETTINGS: Final = "settings"
_SERVICES: Final = "services/"
_QUARANTINE: Final = "quarantine"
_RESERVED: Final = "reserved-ports"
#: A change that was begun, and whose end the process may not have seen.
_CHANGE: Final = "change"
Make = Callable[[list[Saved], Quarantine], ServiceTable]


class StoredServices(Journal):
    """The services of a table in a store.

    A change is written down before it is in the maps, and with its numbers: wherever the process
    ends, the next one finds what the maps hold, or were about to.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._begun: dict[str, str | None] = {}

    def services(self) -> list[Service]:
        """The services that are kept; a change that was cut short is not among them."""
        return [saved.service for saved in self._read({})[0]]

    def restore(self, make: Make) -> ServiceTable:
        """The table of the services that are kept.

        A change that was cut short is carried out or, where it cannot be, taken back.
        """
        saved, quarantine = self._read({})
        change = self._store.get(_CHANGE)
        if change is not None:
            self._begun = json.loads(change.value)
            with contextlib.suppress(PyCiliumError):
                table = make(*self._read(self._begun))
                self.commit()
                return table
            self.abort()
        return make(saved, quarantine)

    def _read(self, change: Mapping[str, str | None]) -> tuple[list[Saved], Quarantine]:
        """What is kept, with a change over it."""
        after: dict[str, str | None] = {e.key: e.value for e in self._store.entries(_SERVICES)}
        quarantine = self._store.get(_QUARANTINE)
        after[_QUARANTINE] = quarantine.value if quarantine else None
        after.update(change)
        saved = [
            Saved.from_json(text)
            for key, text in after.items()
            if key.startswith(_SERVICES) and text is not None
        ]
        keys = json.loads(after.get(_QUARANTINE) or "[]")
        return saved, Quarantine(frozenset(map(bytes.fromhex, keys)))

    def begin(self, change: Mapping[ServiceKey, Saved | None], quarantine: Quarantine) -> None:
        self._begun = {
            _of_service(key): None if saved is None else saved.to_json()
            for key, saved in change.items()
        }
        self._begun[_QUARANTINE] = json.dumps(sorted(key.hex() for key in quarantine.keys))
        self._store.put(_CHANGE, json.dumps(self._begun))

    def commit(self) -> None:
        self._store.write({**self._begun, _CHANGE: None})

    def abort(self) -> None:
        with contextlib.suppress(StateError):  # why it failed is the error to tell
            self._store.delete(_CHANGE)


class Kept(StoredServices):
    """A pin root with the file beside it, and one owner at a time, whose end leaves it as it is."""

    def __init__(self, pin_root: str | os.PathLike[str], layout: PinLayout) -> None:
        """Open or make it; raises what `PinRoot` raises."""
        self._pins = PinRoot(pin_root, layout)
        try:
            super().__init__(SQLiteStore(self._pins.state))
        except BaseException:
            self._pins.close()
            raise
        if not self.settings:  # somebody began, and did not come to writing them down
            for directory in (self._pins.maps, self._pins.links):
                for pin in directory.iterdir():
                    pin.unlink()

    @property
    def maps(self) -> Path:
        """The directory of maps."""
        return self._pins.maps

    def link(self, name: str) -> Path:
        """Where a link is pinned."""
        return self._pins.links / name

    @property
    def settings(self) -> dict[str, Any]:
        """What was remembered; empty where nothing is kept yet."""
        entry = self._store.get(_SETTINGS)
        return json.loads(entry.value) if entry else {}

    def remember(self, settings: Mapping[str, Any]) -> None:
        """Keep how the owner was made."""
        self._store.put(_SETTINGS, json.dumps(settings))

    @property
    def reserved_ports(self) -> str:
        """The ports that were kept from sockets, as `ip_local_reserved_ports` has them."""
        entry = self._store.get(_RESERVED)
        return entry.value if entry else ""

    def remember_reserved(self, ports: str) -> None:
        """Keep which they are, before they are reserved."""
        self._store.put(_RESERVED, ports)

    # ------------------------------------------------------------------ life

    def close(self) -> None:
        """Let go of it; what is kept stays."""
        self._store.close()
        self._pins.close()

    def remove(self) -> None:
        """Delete it all."""
        self._store.close()
        self._pins.remove()


def _of_service(key: ServiceKey) -> str:
    return _SERVICES + json.dumps([key.namespace, key.name, key.port_name])


def kept_settings(pin_root: str | os.PathLike[str], layout: PinLayout) -> dict[str, Any]:
    """How the owner of a pin root was made; NotFoundError if there is none."""
    with PinRoot.existing(pin_root, layout):
        pass
    kept = Kept(pin_root, layout)
    try:
        settings = kept.settings
    finally:
        kept.close()
    if not settings:
        raise NotFoundError(f"nothing is kept at {pin_root}: make a {layout.owner} with it")
    return settings
