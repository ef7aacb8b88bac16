"""The kinds of maps and programs, by the kernel's numbers (include/uapi/linux/bpf.h)."""

from __future__ import annotations

import enum
from typing import Final


class MapType(enum.IntEnum):
    """`BPF_MAP_TYPE_*`."""

    HASH = 1
    ARRAY = 2
    PROG_ARRAY = 3
    PERF_EVENT_ARRAY = 4
    PERCPU_HASH = 5
    PERCPU_ARRAY = 6
    STACK_TRACE = 7
    CGROUP_ARRAY = 8
    LRU_HASH = 9
    LRU_PERCPU_HASH = 10
    LPM_TRIE = 11
    ARRAY_OF_MAPS = 12
    HASH_OF_MAPS = 13
    DEVMAP = 14
    SOCKMAP = 15
    CPUMAP = 16
    XSKMAP = 17
    SOCKHASH = 18
    CGROUP_STORAGE = 19
    REUSEPORT_SOCKARRAY = 20
    PERCPU_CGROUP_STORAGE = 21
    QUEUE = 22
    STACK = 23
    SK_STORAGE = 24
    DEVMAP_HASH = 25
    STRUCT_OPS = 26
    RINGBUF = 27
    INODE_STORAGE = 28
    TASK_STORAGE = 29
    BLOOM_FILTER = 30
    USER_RINGBUF = 31
    CGRP_STORAGE = 32
    ARENA = 33
    INSN_ARRAY = 34


class ProgramType(enum.IntEnum):
    """`BPF_PROG_TYPE_*`."""

    UNSPEC = 0
    SOCKET_FILTER = 1
    KPROBE = 2
    SCHED_CLS = 3
    SCHED_ACT = 4
    TRACEPOINT = 5
    XDP = 6
    PERF_EVENT = 7
    CGROUP_SKB = 8
    CGROUP_SOCK = 9
    LWT_IN = 10
    LWT_OUT = 11
    LWT_XMIT = 12
    SOCK_OPS = 13
    SK_SKB = 14
    CGROUP_DEVICE = 15
    SK_MSG = 16
    RAW_TRACEPOINT = 17
    CGROUP_SOCK_ADDR = 18
    LWT_SEG6LOCAL = 19
    LIRC_MODE2 = 20
    SK_REUSEPORT = 21
    FLOW_DISSECTOR = 22
    CGROUP_SYSCTL = 23
    RAW_TRACEPOINT_WRITABLE = 24
    CGROUP_SOCKOPT = 25
    TRACING = 26
    STRUCT_OPS = 27
    EXT = 28
    LSM = 29
    SK_LOOKUP = 30
    SYSCALL = 31
    NETFILTER = 32


#: One value for each possible CPU.
PER_CPU: Final = frozenset({MapType.PERCPU_HASH, MapType.PERCPU_ARRAY, MapType.LRU_PERCPU_HASH})
#: Hash tables: their batches go by buckets and never meet a key twice.
HASHES: Final = frozenset(
    {MapType.HASH, MapType.LRU_HASH, MapType.PERCPU_HASH, MapType.LRU_PERCPU_HASH}
)
#: Every index below max_entries is a key, and none can be deleted.
ARRAYS: Final = frozenset({MapType.ARRAY, MapType.PERCPU_ARRAY})
#: Indices whose slots hold a program or a map, or nothing.
SLOTS: Final = frozenset(
    {MapType.PROG_ARRAY, MapType.ARRAY_OF_MAPS, MapType.PERF_EVENT_ARRAY, MapType.CGROUP_ARRAY}
)
MAPS_IN_MAP: Final = frozenset({MapType.ARRAY_OF_MAPS, MapType.HASH_OF_MAPS})
#: Written as a descriptor, read back as the id of the map or program.
BY_ID: Final = MAPS_IN_MAP | {MapType.PROG_ARRAY}
#: Maps without keys.
STREAMS: Final = frozenset({MapType.RINGBUF, MapType.USER_RINGBUF})

# Map flags (`BPF_F_*`).
NO_PREALLOC: Final = 1 << 0
NO_COMMON_LRU: Final = 1 << 1
NUMA_NODE: Final = 1 << 2
RDONLY: Final = 1 << 3
WRONLY: Final = 1 << 4
RDONLY_PROG: Final = 1 << 7
MMAPABLE: Final = 1 << 10
INNER_MAP: Final = 1 << 12
