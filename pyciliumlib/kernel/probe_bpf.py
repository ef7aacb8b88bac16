"""Probes by bpf(2): a tiny program or map is tried, and errno and the verifier's log judged."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pyciliumlib.kernel._binding import ffi, lib
from pyciliumlib.kernel.failures import ENOTSUPP
from pyciliumlib.kernel.features import Answer, Support
from pyciliumlib.kernel.uapi import AttachType

YES = Answer(Support.YES)
NO_DEVICE = 0x7FFFFFFF  # an ifindex that no device has
LOG_SIZE = 16 * 1024

SOCKET_FILTER, SCHED_CLS, XDP, CGROUP_SKB, SOCK_OPS, SOCK_ADDR, SK_LOOKUP = 1, 3, 6, 8, 13, 18, 30
SK_LOOKUP_ATTACH = 36

HASH, ARRAY, PROG_ARRAY, PERCPU_HASH, PERCPU_ARRAY, LRU_HASH, LPM_TRIE = 1, 2, 3, 5, 6, 9, 11
ARRAY_OF_MAPS, HASH_OF_MAPS, DEVMAP_HASH, RINGBUF = 12, 13, 25, 27
BPF_F_NO_PREALLOC = 1


def _insn(code: int, registers: int = 0, offset: int = 0, imm: int = 0) -> bytes:
    """One instruction; `registers` is `source << 4 | destination`."""
    return struct.pack("=BBhi", code, registers, offset, imm)


_MOV_IMM, _CALL, _EXIT, _STORE_IMM, _ATOMIC = 0xB7, 0x85, 0x95, 0x7A, 0xDB
_R0, _R1, _R10 = 0, 1, 10
_ATOMIC_FETCH_ADD = 0x01

RETURN_1 = _insn(_MOV_IMM, _R0, imm=1) + _insn(_EXIT)
FETCH_ADD = (
    _insn(_STORE_IMM, _R10, -8, 1)
    + _insn(_MOV_IMM, _R1, imm=1)
    + _insn(_ATOMIC, _R1 << 4 | _R10, -8, _ATOMIC_FETCH_ADD)
    + RETURN_1
)

UNKNOWN_HELPER = ("invalid func ", "unknown func ", "cannot use helper ")
"""How verifiers of 5.10 to 6.18 say that there is no such helper for this type of program."""


def try_program(prog_type: int, attach_type: int, code: bytes) -> tuple[int, str]:
    """Load a program: its descriptor or -errno, and the verifier's log."""
    log = ffi.new("char[]", LOG_SIZE)
    for _ in range(5):
        fd = lib.pcl_probe_prog(prog_type, attach_type, code, len(code) // 8, log, LOG_SIZE)
        if fd not in (-errno.EAGAIN, -errno.EINTR):
            break
    return fd, ffi.string(log).decode(errors="replace")


def judge(err: int, what: str, *, no: tuple[int, ...] = (errno.EINVAL,)) -> Answer:
    """Yes for a result that is no error, no for an errno of `no`, unknown for any other."""
    if err >= 0:
        return YES
    name = errno.errorcode.get(-err, str(-err))
    if -err in no:
        return Answer(Support.NO, f"{what}: {name}", -err)
    return Answer(Support.UNKNOWN, f"{what}: {name}", -err)


def _syscall() -> Answer:
    # The command -1 exists nowhere: EINVAL or EPERM come from bpf(2) itself.
    err = lib.pcl_probe_syscall()
    if err == -errno.ENOSYS:
        return Answer(Support.NO, "CONFIG_BPF_SYSCALL is off", errno.ENOSYS)
    return YES


def _jit() -> Answer:
    with _program(SOCKET_FILTER) as (fd, answer):
        if fd < 0:
            return answer
        jited = lib.pcl_probe_jited(fd)
    if jited == 0:
        return Answer(Support.NO, "programs are interpreted; set net.core.bpf_jit_enable=1")
    return judge(jited, "program information")


def _atomic_fetch() -> Answer:
    return _program_loads(SOCKET_FILTER, 0, FETCH_ADD)


def _program_loads(prog_type: int, attach_type: int, code: bytes = RETURN_1) -> Answer:
    with _program(prog_type, attach_type, code) as (_, answer):
        return answer


@contextmanager
def _program(
    prog_type: int, attach_type: int = 0, code: bytes = RETURN_1
) -> Iterator[tuple[int, Answer]]:
    fd, _ = try_program(prog_type, attach_type, code)
    try:
        yield fd, judge(fd, "program load")
    finally:
        if fd >= 0:
            os.close(fd)


def _helper(prog_type: int, number: int, attach_type: int = 0) -> Answer:
    """Whether the verifier knows a helper: its complaint about missing arguments is a yes."""
    fd, log = try_program(prog_type, attach_type, _insn(_CALL, imm=number) + _insn(_EXIT))
    if fd >= 0:
        os.close(fd)
        return YES
    if fd == -errno.EPERM or not log:
        return Answer(Support.UNKNOWN, f"program load: {errno.errorcode.get(-fd, -fd)}", -fd)
    if any(words in log for words in UNKNOWN_HELPER):
        return Answer(Support.NO, f"the verifier does not know helper {number}", -fd)
    return YES


@contextmanager
def _map(
    map_type: int, key: int = 4, value: int = 4, entries: int = 1, flags: int = 0, inner: int = -1
) -> Iterator[tuple[int, Answer]]:
    fd = lib.pcl_probe_map(map_type, key, value, entries, flags, inner)
    try:
        yield fd, judge(fd, "map creation")
    finally:
        if fd >= 0:
            os.close(fd)


def _map_type(map_type: int, key: int = 4, value: int = 4, entries: int = 1) -> Answer:
    flags = BPF_F_NO_PREALLOC if map_type == LPM_TRIE else 0
    with _map(map_type, key, value, entries, flags) as (_, answer):
        return answer


def _map_of_maps(map_type: int) -> Answer:
    with _map(ARRAY) as (inner, answer):
        if inner < 0:
            return answer
        with _map(map_type, inner=inner) as (_, outer_answer):
            return outer_answer


def _batch(map_type: int, key: bytes = bytes(4)) -> Answer:
    flags = BPF_F_NO_PREALLOC if map_type == LPM_TRIE else 0
    with _map(map_type, len(key), flags=flags) as (fd, answer):
        if fd < 0:
            return answer
        err = lib.pcl_probe_batch(fd, key, bytes(4))
        return judge(err, "batch update", no=(errno.EINVAL, ENOTSUPP, errno.EOPNOTSUPP))


def _device_hook(attach_type: AttachType) -> Answer:
    """A kernel with the hook misses the device; one without refuses the hook before it looks."""
    with _program(SCHED_CLS) as (fd, answer):
        if fd < 0:
            return answer
        err = lib.pcl_link_create(fd, NO_DEVICE, attach_type, 0, 0, 0)
        return YES if err == -errno.ENODEV else judge(err, "link creation")


def _cgroup_link() -> Answer:
    with _program(CGROUP_SKB) as (fd, answer):
        if fd < 0:
            return answer
        err = lib.pcl_link_create(fd, 0xFFFFFFFF, AttachType.CGROUP_INET_INGRESS, 0, 0, 0)
        return YES if err == -errno.EBADF else judge(err, "link creation")


_SOCK_ADDR_CONNECT = AttachType.CGROUP_INET4_CONNECT
_LPM_KEY = struct.pack("=I4x", 32)

PROBES: dict[str, Callable[[], Answer]] = {
    "bpf": _syscall,
    "jit": _jit,
    "atomic_fetch": _atomic_fetch,
    "prog_sched_cls": lambda: _program_loads(SCHED_CLS, 0),
    "prog_xdp": lambda: _program_loads(XDP, 0),
    "prog_cgroup_skb": lambda: _program_loads(CGROUP_SKB, 0),
    "prog_cgroup_sock_addr": lambda: _program_loads(SOCK_ADDR, _SOCK_ADDR_CONNECT),
    "prog_getpeername": lambda: _program_loads(SOCK_ADDR, AttachType.CGROUP_INET4_GETPEERNAME),
    "prog_sock_ops": lambda: _program_loads(SOCK_OPS, 0),
    "prog_sk_lookup": lambda: _program_loads(SK_LOOKUP, SK_LOOKUP_ATTACH),
    "map_hash": lambda: _map_type(HASH),
    "map_array": lambda: _map_type(ARRAY),
    "map_prog_array": lambda: _map_type(PROG_ARRAY),
    "map_percpu_hash": lambda: _map_type(PERCPU_HASH),
    "map_percpu_array": lambda: _map_type(PERCPU_ARRAY),
    "map_lru_hash": lambda: _map_type(LRU_HASH),
    "map_lpm_trie": lambda: _map_type(LPM_TRIE, key=8),
    "map_array_of_maps": lambda: _map_of_maps(ARRAY_OF_MAPS),
    "map_hash_of_maps": lambda: _map_of_maps(HASH_OF_MAPS),
    "map_devmap_hash": lambda: _map_type(DEVMAP_HASH),
    "map_ringbuf": lambda: _map_type(RINGBUF, key=0, value=0, entries=os.sysconf("SC_PAGESIZE")),
    "batch_hash": lambda: _batch(HASH),
    "batch_lru_hash": lambda: _batch(LRU_HASH),
    "batch_array": lambda: _batch(ARRAY),
    "batch_lpm_trie": lambda: _batch(LPM_TRIE, _LPM_KEY),
    "helper_skb_set_tunnel_opt": lambda: _helper(SCHED_CLS, 30),
    "helper_xdp_adjust_head": lambda: _helper(XDP, 44),
    "helper_skb_adjust_room": lambda: _helper(SCHED_CLS, 50),
    "helper_fib_lookup": lambda: _helper(SCHED_CLS, 69),
    "helper_sk_lookup_udp": lambda: _helper(SCHED_CLS, 85),
    "helper_skc_lookup_tcp": lambda: _helper(SCHED_CLS, 99),
    "helper_jiffies64": lambda: _helper(SCHED_CLS, 118),
    "helper_sk_assign": lambda: _helper(SCHED_CLS, 124),
    "helper_get_netns_cookie": lambda: _helper(SOCK_ADDR, 122, _SOCK_ADDR_CONNECT),
    "helper_ktime_get_boot_ns": lambda: _helper(SCHED_CLS, 125),
    "helper_ringbuf_output": lambda: _helper(SCHED_CLS, 130),
    "helper_redirect_neigh": lambda: _helper(SCHED_CLS, 152),
    "helper_redirect_peer": lambda: _helper(SCHED_CLS, 155),
    "helper_ktime_get_coarse_ns": lambda: _helper(SCHED_CLS, 160),
    "helper_check_mtu": lambda: _helper(SCHED_CLS, 163),
    "helper_loop": lambda: _helper(SCHED_CLS, 181),
    "helper_skb_set_tstamp": lambda: _helper(SCHED_CLS, 192),
    "helper_set_retval": lambda: _helper(SOCK_ADDR, 187, _SOCK_ADDR_CONNECT),
    "helper_ktime_get_tai_ns": lambda: _helper(SCHED_CLS, 208),
    "link_cgroup": _cgroup_link,
    "tcx": lambda: _device_hook(AttachType.TCX_INGRESS),
    "netkit": lambda: _device_hook(AttachType.NETKIT_PRIMARY),
}
