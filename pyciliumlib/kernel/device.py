"""Network devices as the attaching calls take them: by index or by name."""

from __future__ import annotations

import errno
import socket

from pyciliumlib.errors import DeviceError, InvalidError


def device_index(device: int | str) -> int:
    """The ifindex of a device of the calling thread's network namespace.

    Raises DeviceError if there is no such device, InvalidError for what can be none.

    >>> device_index("lo")
    1
    """
    if isinstance(device, bool) or not isinstance(device, (int, str)):
        raise InvalidError(f"{device!r} is no device: give its index or its name")
    try:
        if isinstance(device, str):
            return socket.if_nametoindex(device)
        socket.if_indextoname(device)
    except (OSError, OverflowError) as error:
        raise DeviceError(
            errno.ENODEV,
            f"there is no device {device!r} in this network namespace: it has another name, "
            "vanished, or lives in another namespace",
        ) from error
    return device


def device_label(ifindex: int) -> str:
    """A device's name for messages, or its index if it vanished meanwhile."""
    try:
        return repr(socket.if_indextoname(ifindex))
    except OSError:
        return f"of index {ifindex}"
