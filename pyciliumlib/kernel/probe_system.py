"""Probes by reading what the system shows of itself: BTF, file systems, capabilities."""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Callable
from pathlib import Path

from pyciliumlib.kernel.features import Answer, Support
from pyciliumlib.kernel.mounts import mounted

YES = Answer(Support.YES)
BTF_MAGIC = 0xEB9F
_SO_NETNS_COOKIE = 71  # asm-generic/socket.h
CAP_NET_ADMIN, CAP_SYS_ADMIN, CAP_BPF = 12, 21, 39


def _btf() -> Answer:
    try:
        with Path("/sys/kernel/btf/vmlinux").open("rb") as file:
            magic = struct.unpack("=H", file.read(2))[0]
    except FileNotFoundError:
        if Path("/sys/kernel").is_dir():
            return Answer(Support.NO, "CONFIG_DEBUG_INFO_BTF is off")
        return Answer(Support.UNKNOWN, "/sys is not mounted")
    except (OSError, struct.error) as error:
        return Answer(Support.UNKNOWN, str(error))
    return YES if magic == BTF_MAGIC else Answer(Support.NO, "of the other byte order")


def _bpffs() -> Answer:
    try:
        known = Path("/proc/filesystems").read_text().split()
    except OSError as error:
        return Answer(Support.UNKNOWN, str(error))
    return YES if "bpf" in known else Answer(Support.NO, "not in /proc/filesystems")


def _cgroup2() -> Answer:
    try:
        found = mounted("cgroup2")
    except OSError as error:
        return Answer(Support.UNKNOWN, str(error))
    if not found:
        return Answer(Support.NO, "mount one: mount -t cgroup2 none /sys/fs/cgroup/unified")
    return Answer(Support.YES, f"at {found[0]}")


def _netns_cookie() -> Answer:
    with socket.socket(socket.AF_UNIX) as any_socket:
        try:
            any_socket.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8)
        except OSError as error:
            no = Support.NO if error.errno == errno.ENOPROTOOPT else Support.UNKNOWN
            return Answer(no, "SO_NETNS_COOKIE", error.errno or 0)
    return YES


def _capability(*bits: int) -> Answer:
    """Yes if the process has any of the capabilities."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError as error:
        return Answer(Support.UNKNOWN, str(error))
    fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    effective = int(fields["CapEff"], 16)
    if any(effective >> bit & 1 for bit in bits):
        return YES
    return Answer(Support.NO, "run as root, or give the capability to the process")


PROBES: dict[str, Callable[[], Answer]] = {
    "btf": _btf,
    "bpffs": _bpffs,
    "cgroup2": _cgroup2,
    "netns_cookie": _netns_cookie,
    # Before 5.8 there is no CAP_BPF, and CAP_SYS_ADMIN stands for it ever since.
    "cap_bpf": lambda: _capability(CAP_BPF, CAP_SYS_ADMIN),
    "cap_net_admin": lambda: _capability(CAP_NET_ADMIN),
    "cap_sys_admin": lambda: _capability(CAP_SYS_ADMIN),
}
