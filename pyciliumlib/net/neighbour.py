"""A host on a link as the kernel knows it."""

from __future__ import annotations

import ipaddress
from typing import Any, Final

from attrs import frozen

from pyciliumlib.types import Address

NUD_STALE, NUD_PERMANENT = 0x04, 0x80
NTF_EXT_LEARNED: Final = 0x10
#: Of the extended flags (Linux 5.16).
NTF_EXT_MANAGED: Final = 0x1


@frozen
class Neighbour:
    """An entry of the neighbour table.

    `mac` is empty while it is not known. A `permanent` one was told, and is never asked; of a
    `managed` one the kernel itself keeps asking. `protocol` is who made it, 0 the kernel.
    """

    ifindex: int
    address: Address
    mac: str
    permanent: bool
    managed: bool
    protocol: int

    @classmethod
    def from_netlink(cls, message: Any) -> Neighbour:
        """From an RTM_NEWNEIGH message of pyroute2."""
        return cls(
            message["ifindex"],
            ipaddress.ip_address(message.get_attr("NDA_DST")),
            message.get_attr("NDA_LLADDR") or "",
            bool(message["state"] & NUD_PERMANENT),
            bool((message.get_attr("NDA_FLAGS_EXT") or 0) & NTF_EXT_MANAGED),
            message.get_attr("NDA_PROTOCOL") or 0,
        )
