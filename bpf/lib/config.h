/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Configuration is data, set before the load, so that the verifier prunes what is off. */
#ifndef PCL_CONFIG_H
#define PCL_CONFIG_H

#include "common.h"

#define CONFIG(type, name, text) const volatile type name DOC(text)

CONFIG(__u32, max_endpoints, "endpoint ids run from 1 to this less 1; half the slots of `policies`") = 256;
CONFIG(__u32, ipcache_cells, "entries of `ipcache_rev`: any change, prefixes, and the address buckets") = 1024;
CONFIG(__u32, jiffies_per_second, "the kernel's HZ, measured by a test run") = 250;
CONFIG(__u32, timeout_tcp, "seconds that an established TCP flow may idle") = 8000;
CONFIG(__u32, timeout_tcp_syn, "seconds that a TCP flow may idle before its handshake is done") = 60;
CONFIG(__u32, timeout_tcp_fin, "seconds that a closed TCP flow is kept") = 10;
CONFIG(__u32, timeout_any, "seconds that any other flow may idle") = 60;
CONFIG(__u32, timeout_masqueraded, "the same of what the node gave its address, unless it is TCP") = 25;
CONFIG(bool, dual_stack, "IPv4 and IPv6 are both on, so world is identity 9 or 10") = true;
CONFIG(bool, redirect_peer, "deliver with bpf_redirect_peer (Linux 5.10)") = true;
CONFIG(bool, extended_protocols, "protocols without ports are judged too, not dropped as unknown") = false;
CONFIG(bool, hooks_enabled, "call the programs in `hooks`") = false;
CONFIG(bool, trace_every_packet, "an event for every packet, not only for a flow's news") = false;

#endif
