"""Kernel parameters of a namespace: everything below /proc/sys/net."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pyciliumlib.errors import InvalidError, KernelError, NotFoundError, PrivilegeError
from pyciliumlib.net.netns import NetNS

_ROOT = Path("/proc/sys/net")


def read_sysctl(netns: NetNS, name: str) -> str:
    """The value of a parameter such as "ipv4/ip_forward", stripped.

    Slashes separate the parts, for names of devices may hold dots.
    """
    path = _path(name)
    try:
        return netns.call(path.read_text).strip()
    except OSError as error:
        raise _error(error, name, netns) from error


def write_sysctls(netns: NetNS, values: Mapping[str, object]) -> None:
    """Set parameters, in order; all names are checked before the first is written.

    `/proc/sys/net` shows a thread the parameters of its own namespace, so nothing is mounted.
    """
    paths = {name: _path(name) for name in values}

    def write() -> None:
        for name, path in paths.items():
            if not path.exists():
                raise _error(FileNotFoundError(), name, netns)
        for name, path in paths.items():
            try:
                path.write_text(f"{values[name]}\n")
            except OSError as error:
                raise _error(error, name, netns) from error

    netns.call(write)


def _path(name: str) -> Path:
    if name.startswith("/") or ".." in name.split("/"):
        raise InvalidError(f"{name!r} is no parameter: give it relative, as in ipv4/ip_forward")
    return _ROOT / name


def _error(error: OSError, name: str, netns: NetNS) -> Exception:
    if isinstance(error, FileNotFoundError):
        return NotFoundError(f"{netns} has no parameter net/{name}: wrong name, or no such device")
    if isinstance(error, PermissionError):
        return PrivilegeError(error.errno or 1, f"net/{name}: needs CAP_NET_ADMIN in {netns}")
    return KernelError(error.errno or 0, f"net/{name} in {netns}")
