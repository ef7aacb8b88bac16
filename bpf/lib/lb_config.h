/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The load balancer's own configuration, beside that of config.h. */
#ifndef PCL_LB_CONFIG_H
#define PCL_LB_CONFIG_H

#include "config.h"

CONFIG(__u32, filter_cells, "entries of `lb_filter`, a power of two") = 16384;
CONFIG(__u32, flow_seed_ipv4, "of the Maglev flow hash") = 0;
CONFIG(__u32, flow_seed_ipv6, "of the Maglev flow hash") = 0;
CONFIG(__be32, source_ipv4, "the node's address for IPv4 backends, 0: none can be reached") = 0;
CONFIG(__u32, source_ipv6[4], "the node's address for IPv6 backends, as it lies in the packet") = {};
CONFIG(__u32, nat_first, "the first port of the node that is for translated flows") = 32768;
CONFIG(__u32, nat_ports, "how many there are of them, at least 1") = 32768;
CONFIG(bool, reject_unserved, "tell the sender if a service has no backend") = true;
CONFIG(__u32, mtu, "bytes of an IP packet that fit the device") = 1500;

#endif
