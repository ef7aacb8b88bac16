"""What an errno of netlink means to a person."""

from __future__ import annotations

import errno

from pyciliumlib.errors import (
    DeviceError,
    ExistsError,
    FeatureError,
    InvalidError,
    KernelError,
    NotFoundError,
    PrivilegeError,
    PyCiliumError,
)


def kernel_error(code: int, doing: str) -> PyCiliumError:
    """The error of the tree for `code`, which the kernel gave while `doing`."""
    match code:
        case errno.EPERM | errno.EACCES:
            return PrivilegeError(code, f"{doing}: needs CAP_NET_ADMIN in that namespace")
        case errno.EEXIST:
            return ExistsError(f"{doing}: it exists already")
        case errno.ENODEV | errno.ENXIO:
            return DeviceError(code, f"{doing}: no such device in that namespace")
        case errno.ESRCH | errno.ENOENT | errno.EADDRNOTAVAIL:
            return NotFoundError(f"{doing}: there is none")
        case errno.EOPNOTSUPP:
            return FeatureError(code, f"{doing}: this kernel cannot", doing)
        case errno.ENETUNREACH | errno.EHOSTUNREACH:
            return KernelError(
                code, f"{doing}: the gateway is on no link that is up; name the device with dev="
            )
        case errno.EINVAL | errno.ERANGE:
            return InvalidError(f"{doing}: the kernel finds an argument invalid")
        case _:
            return KernelError(code, doing)
