"""The node's devices that lead out of it, and the programs on them."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from pyciliumlib.datapath.attachment import HOST_HOOKS, Attachment
from pyciliumlib.datapath.config import DatapathConfig
from pyciliumlib.datapath.node import NodeLike
from pyciliumlib.errors import InvalidError
from pyciliumlib.kernel import Object
from pyciliumlib.net import Link, Netlink
from pyciliumlib.store import Store
from pyciliumlib.types import Address

_STORED: Final = "uplinks"


class Uplinks:
    """Where clients outside reach services, and where policies for nodes are enforced.

    One pair of programs does both, so that their order is sure: what is for a service is none of
    the node's. There are programs only where one of the two is on.
    """

    def __init__(
        self,
        node: NodeLike,
        store: Store,
        pins: Path | None,
        config: DatapathConfig,
    ) -> None:
        """Made by a `Datapath`; `pins` is the directory for links that outlive the process."""
        self._node = node
        self._store = store
        self._pins = pins
        self._config = config
        self._links: dict[str, Link] = {}
        self._attachments: dict[int, Attachment] = {}
        self._left: tuple[int, ...] = ()

    @property
    def wanted(self) -> bool:
        """Whether there is anything for programs to do there."""
        return self._config.host_firewall or self._config.node_port

    @property
    def links(self) -> Mapping[str, Link]:
        """The devices by name."""
        return self._links

    @property
    def ifindexes(self) -> tuple[int, ...]:
        """Their numbers."""
        return tuple(link.ifindex for link in self._links.values())

    @property
    def addresses(self) -> tuple[Address, ...]:
        """Those that the devices have now, link-local ones too."""
        with Netlink(self._node.netns) as netlink:
            return tuple(a.ip for name in self._links for a in netlink.addresses(name))

    # ------------------------------------------------------------------ life

    def restore(self) -> None:
        """Know what an earlier process left; take it off where nothing is wanted any more."""
        entry = self._store.get(_STORED)
        if entry is None:
            return
        self._left = tuple(json.loads(entry.value))
        if not self.wanted:
            for ifindex in self._left:
                self._attachment(ifindex).take_off()
            self._forget()

    def find(self, taken: Mapping[int, str]) -> None:
        """Look for the devices; `taken` are the endpoints'. Raises DeviceError, InvalidError."""
        if not self.wanted:
            return
        found: dict[str, Link] = {}
        with Netlink(self._node.netns) as netlink:
            for name in self._config.devices:
                found[name] = link = netlink.link(name)
                if link.ifindex in taken:
                    raise InvalidError(
                        f"device {name} is endpoint {taken[link.ifindex]!r}'s; `devices` are those "
                        "that lead out of the node"
                    )
                if not link.is_ethernet:
                    raise InvalidError(
                        f"device {name} carries no Ethernet frames; the programs need them"
                    )
        self._links = found

    def start(self, programs: Object) -> None:
        """Put the programs on the devices, or go on with those of an earlier process.

        Raises ExistsError, KernelError; then there is nothing new, and all that was.
        """
        if not self._links:
            return
        left = self._left
        with contextlib.ExitStack() as undo:
            self._store.put(_STORED, json.dumps(self.ifindexes))
            if not left:
                undo.callback(self.clear)
            for ifindex in self.ifindexes:
                self._attachments[ifindex] = attachment = self._attachment(ifindex)
                if left:
                    attachment.adopt(programs)
                else:
                    attachment.attach(programs)
            undo.pop_all()
        for ifindex in set(left) - self._attachments.keys():
            self._attachment(ifindex).take_off()

    def use(self, programs: Object) -> None:
        """Replace the programs; each packet meets the old or the new ones."""
        for attachment in self._attachments.values():
            if attachment.attached:
                attachment.update(programs)

    def clear(self) -> None:
        """Take the programs off."""
        for attachment in self._attachments.values():
            attachment.detach()
        self._attachments.clear()
        self._forget()

    def close(self) -> None:
        """Let go of the attachments; pinned ones go on."""
        for attachment in self._attachments.values():
            attachment.close()
        self._attachments.clear()

    def _forget(self) -> None:
        self._store.delete(_STORED)
        self._left = ()

    def _attachment(self, ifindex: int) -> Attachment:
        pins = {n: self._pins / f"{ifindex}_{n}" for n, _ in HOST_HOOKS} if self._pins else {}
        return Attachment(
            self._node.netns, ifindex, pins, self._config.tc, hooks=HOST_HOOKS, first=True
        )

    def unattached(self) -> Iterator[str]:
        """The devices that the programs are not on, though they should be."""
        for name, link in self._links.items():
            attachment = self._attachments.get(link.ifindex)
            if attachment is None or not attachment.attached:
                yield name

    def __repr__(self) -> str:
        return f"<Uplinks {', '.join(self._links) or 'none'}>"
