"""The node's devices that carry the programs, whether an endpoint is behind them or was."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path
from typing import Final

from pyciliumlib.datapath.attachment import HOOKS, Attachment, Backend
from pyciliumlib.errors import DeviceError, StateError
from pyciliumlib.kernel import Object
from pyciliumlib.net import NetNS
from pyciliumlib.store import Store

_LEFT: Final = "devices-left/"


class Devices:
    """The attachments by device number.

    A device that its endpoint has left keeps the programs, which drop whatever they find no
    endpoint for: a pod that is out of the datapath must not become one without a policy. It is
    let go when the device vanishes or the datapath ends.
    """

    def __init__(self, netns: NetNS, store: Store, links: Path | None, backend: Backend) -> None:
        """`links` is the directory of the pins; None: the attachments end with the process."""
        self._netns = netns
        self._store = store
        self._links = links
        self._backend = backend
        self._attachments: dict[int, Attachment] = {}
        self._left: set[int] = set()

    def attach(self, ifindex: int, programs: Object, undo: contextlib.ExitStack) -> None:
        """Put the programs on a device, or go on with those that are there since another endpoint.

        Raises DeviceError, FeatureError, PrivilegeError.
        """
        if ifindex in self._left and self.attached(ifindex):
            self._take_back(ifindex)
            undo.callback(self.leave, ifindex)
            return
        self.detach(ifindex)
        attachment = self._attachment(ifindex)
        attachment.attach(programs)
        self._attachments[ifindex] = attachment
        undo.callback(self.detach, ifindex)

    def leave(self, ifindex: int) -> None:
        """The endpoint is gone and its device is not: nothing passes there from now on."""
        self._left.add(ifindex)
        self._store.put(f"{_LEFT}{ifindex}", "")
        present = self._netns.call(lambda: {number for number, _ in socket.if_nameindex()})
        for gone in self._left - present:
            self.detach(gone)

    def detach(self, ifindex: int) -> None:
        """Take the programs off a device, if they are there."""
        attachment = self._attachments.pop(ifindex, None)
        if attachment is not None:
            attachment.detach()
        self._take_back(ifindex)

    def adopt(self, ifindex: int, programs: Object) -> None:
        """Take over what an earlier process attached to an endpoint's device."""
        attachment = self._attachment(ifindex)
        self._attachments[ifindex] = attachment
        attachment.adopt(programs)

    def adopt_left(self, programs: Object) -> None:
        """Take over the devices without an endpoint, and remove the pins of a change cut short."""
        for entry in self._store.entries(_LEFT):
            ifindex = int(entry.key.removeprefix(_LEFT))
            self._left.add(ifindex)
            try:
                self.adopt(ifindex, programs)
            except (DeviceError, StateError):  # the device is gone, and maybe another in its place
                self.detach(ifindex)
        for pin in self._links.iterdir() if self._links else ():
            if int(pin.name.split("_")[0]) not in self._attachments:
                pin.unlink()

    def update(self, programs: Object) -> None:
        """Replace the programs everywhere; each packet meets the old or the new ones.

        A device that is gone, or that somebody took them off, is passed over; drift tells of it.
        """
        for ifindex, attachment in tuple(self._attachments.items()):
            if attachment.attached:
                attachment.update(programs)
            elif ifindex in self._left:
                self.detach(ifindex)

    def attached(self, ifindex: int) -> bool:
        """Whether both programs are on the device now."""
        return ifindex in self._attachments and self._attachments[ifindex].attached

    def clear(self) -> None:
        """Take the programs off every device."""
        for ifindex in tuple(self._attachments):
            self.detach(ifindex)

    def close(self) -> None:
        """Let go of the attachments; pinned ones go on, others end."""
        for attachment in self._attachments.values():
            attachment.close()
        self._attachments.clear()

    def _attachment(self, ifindex: int) -> Attachment:
        links = self._links
        pins = {name: links / f"{ifindex}_{name}" for name, _ in HOOKS} if links else {}
        return Attachment(self._netns, ifindex, pins, self._backend)

    def _take_back(self, ifindex: int) -> None:
        if ifindex in self._left:
            self._left.discard(ifindex)
            self._store.delete(f"{_LEFT}{ifindex}")
