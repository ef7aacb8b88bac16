"""The features that `probe()` knows, each with the release and the commit that brought it.

The commits are of Linus Torvalds' tree. None stands where one is not known for sure.
"""

from __future__ import annotations

from pyciliumlib.kernel.features import Feature

_SYSTEM = [
    Feature("bpf", "system", "the bpf(2) system call", (3, 18), "99c55f7d47c0"),
    Feature("jit", "system", "BPF as machine code"),
    Feature("btf", "system", "the kernel's own BTF", (5, 4), "341dfcf8d78e"),
    Feature("bpffs", "system", "the BPF file system for pins", (4, 4), "b2197755b263"),
    Feature("cgroup2", "system", "a mounted cgroup2", (4, 5), "67e9c74b8a87", volatile=True),
    Feature("netns_cookie", "system", "a namespace's cookie, told", (5, 14), "e8b9eab99232"),
    Feature("cap_bpf", "system", "CAP_BPF of this process", (5, 8), "a17b53c4a4b5", volatile=True),
    Feature("cap_net_admin", "system", "CAP_NET_ADMIN of this process", volatile=True),
    Feature("cap_sys_admin", "system", "CAP_SYS_ADMIN of this process", volatile=True),
    Feature("atomic_fetch", "system", "atomics that return a value", (5, 12), "5ca419f2864a"),
]

_PROGRAMS = [
    Feature("prog_sched_cls", "program", "tc programs", (4, 1), "96be4325f443"),
    Feature("prog_xdp", "program", "XDP programs", (4, 8), "6a773a15a1e8"),
    Feature("prog_cgroup_skb", "program", "cgroup packet programs", (4, 10), "0e33661de493"),
    Feature("prog_cgroup_sock_addr", "program", "connect and bind hooks", (4, 17), "4fbac77d2d09"),
    Feature("prog_getpeername", "program", "getpeername hooks", (5, 8), "1b66d253610c"),
    Feature("prog_sock_ops", "program", "socket event programs", (4, 13), "40304b2a1567"),
    Feature("prog_sk_lookup", "program", "socket lookup programs", (5, 9), "e9ddbb7707ff"),
]

_MAPS = [
    Feature("map_hash", "map", "hash maps", (3, 19), "0f8e4bd8a1fc"),
    Feature("map_array", "map", "array maps", (3, 19), "28fbcfa08d8e"),
    Feature("map_prog_array", "map", "tail call tables", (4, 2), "04fd61ab36ec"),
    Feature("map_percpu_hash", "map", "per-CPU hash maps", (4, 6), "824bd0ce6c7c"),
    Feature("map_percpu_array", "map", "per-CPU array maps", (4, 6), "a10423b87a7e"),
    Feature("map_lru_hash", "map", "LRU hash maps", (4, 10), "29ba732acbee"),
    Feature("map_lpm_trie", "map", "longest prefix match tries", (4, 11), "b95a5c4db09b"),
    Feature("map_array_of_maps", "map", "arrays of maps", (4, 12), "56f668dfe00d"),
    Feature("map_hash_of_maps", "map", "hashes of maps", (4, 12), "bcc6b1b7ebf8"),
    Feature("map_devmap_hash", "map", "hashes of devices", (5, 4), "6f9d451ab1a3"),
    Feature("map_ringbuf", "map", "ring buffers", (5, 8), "457f44363a88"),
    Feature("batch_hash", "map", "batches on hash maps", (5, 6), "057996380a42"),
    Feature("batch_lru_hash", "map", "batches on LRU hash maps", (5, 6), "057996380a42"),
    Feature("batch_array", "map", "batches on array maps", (5, 6)),
    Feature("batch_lpm_trie", "map", "batches on LPM tries", (5, 13)),
]

_HELPERS = [
    Feature("helper_skb_set_tunnel_opt", "helper", "tunnel options", (4, 6), "14ca0751c96f"),
    Feature("helper_xdp_adjust_head", "helper", "encapsulation in XDP", (4, 10), "17bedab27231"),
    Feature("helper_skb_adjust_room", "helper", "encapsulation in tc", (4, 13), "2be7e212d541"),
    Feature("helper_fib_lookup", "helper", "route lookup", (4, 18), "87f5fc7e48dd"),
    Feature("helper_sk_lookup_udp", "helper", "UDP socket lookup", (4, 20), "6acc9b432e67"),
    Feature("helper_skc_lookup_tcp", "helper", "TCP socket lookup", (5, 2), "edbf8c01de5a"),
    Feature("helper_jiffies64", "helper", "the cheap clock", (5, 6), "5576b991e9c1"),
    Feature("helper_sk_assign", "helper", "redirect to a local socket", (5, 7), "cf7fbe660f2d"),
    Feature("helper_get_netns_cookie", "helper", "the namespace's cookie", (5, 7), "f318903c0bf4"),
    Feature("helper_ktime_get_boot_ns", "helper", "the boot clock", (5, 8), "71d19214776e"),
    Feature("helper_ringbuf_output", "helper", "events to a ring", (5, 8), "457f44363a88"),
    Feature("helper_redirect_neigh", "helper", "redirect with ARP/ND", (5, 10), "b4ab31414970"),
    Feature("helper_redirect_peer", "helper", "redirect into a namespace", (5, 10), "9aa1206e8f48"),
    Feature("helper_ktime_get_coarse_ns", "helper", "coarse clock", (5, 11), "d05512618056"),
    Feature("helper_check_mtu", "helper", "the MTU check", (5, 12), "34b2021cc616"),
    Feature("helper_loop", "helper", "loops by callback", (5, 17), "e6f2dd0f8067"),
    Feature("helper_skb_set_tstamp", "helper", "typed time stamps", (5, 18), "8d21ec0e46ed"),
    Feature("helper_set_retval", "helper", "errors of one's own from connect hooks", (6, 1)),
    Feature("helper_ktime_get_tai_ns", "helper", "the TAI clock", (6, 1), "c8996c98f703"),
]

_HOOKS = [
    Feature("clsact", "hook", "tc programs on clsact", (4, 5), "1f211a1b929c"),
    Feature("link_cgroup", "hook", "links on cgroups", (5, 7), "af6eea57437a"),
    Feature("link_xdp", "hook", "XDP links", (5, 9), "aa8d3a716b59"),
    Feature("xdp_veth", "hook", "native XDP on veth", (4, 19), "948d4f214fde"),
    Feature("tcx", "hook", "ordered tc links", (6, 6), "e420bed02507"),
    Feature("netkit", "hook", "BPF on netkit devices", (6, 7), "35dfaad7188c"),
]

_DEVICES = [
    Feature("dev_veth", "device", "veth pairs"),
    Feature("dev_vxlan", "device", "VXLAN tunnels", (3, 7), "d342894c5d2f"),
    Feature("dev_geneve", "device", "Geneve tunnels", (4, 2), "2d07dc79fe04"),
    Feature("dev_wireguard", "device", "WireGuard tunnels", (5, 6), "e7096c131e51"),
    Feature("dev_ipip", "device", "IP-in-IP tunnels"),
    Feature("qdisc_fq", "device", "the fq packet scheduler", (3, 12), "afe4fd062416"),
]

KNOWN: dict[str, Feature] = {
    feature.name: feature
    for feature in [*_SYSTEM, *_PROGRAMS, *_MAPS, *_HELPERS, *_HOOKS, *_DEVICES]
}
