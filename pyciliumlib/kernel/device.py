"""Network devices as the attaching calls take them, and what the kernel means when it refuses."""

from __future__ import annotations

import errno
import socket
from typing import NoReturn

from pyciliumlib.errors import DeviceError, InvalidError
from pyciliumlib.kernel.failures import raise_for


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
    except (OSError, OverflowError, ValueError) as error:
        raise DeviceError(
            errno.ENODEV,
            f"there is no device {device!r} in this network namespace: it has another name, "
            "vanished, or lives in another namespace",
        ) from error
    return device


def device_label(ifindex: int) -> str:
    """A device's name for messages, or its index if it vanished meanwhile."""
    try:
        return f"device {socket.if_indextoname(ifindex)!r}"
    except OSError:
        return f"the device of index {ifindex}"


def refuse(code: int, doing: str, hint: str = "") -> NoReturn:
    """Raise what `code` means for attaching; `hint` explains any errno that does not speak for
    itself."""
    if abs(code) == errno.ENODEV:
        raise DeviceError(errno.ENODEV, f"cannot {doing}: the device has vanished")
    # raise_for() names the missing capability itself, but only where no hint overrides it.
    raise_for(code, doing, "" if abs(code) in (errno.EPERM, errno.EACCES) else hint)
