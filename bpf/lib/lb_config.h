/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The load balancer's own configuration, beside that of config.h. */
#ifndef PCL_LB_CONFIG_H
#define PCL_LB_CONFIG_H

#include "config.h"

CONFIG(__u32, filter_cells, "entries of `lb_filter`, a power of two") = 16384;
CONFIG(__u32, flow_seed_ipv4, "of the Maglev flow hash") = 0;
CONFIG(__u32, flow_seed_ipv6, "of the Maglev flow hash") = 0;
CONFIG(__be32, source_ipv4, "source of outer IPv4 headers, 0: IPv4 backends cannot be reached") = 0;
CONFIG(__u32, source_ipv6[4], "source of outer IPv6 headers, as it lies in the packet") = {};
CONFIG(__u32, mtu, "bytes of an IP packet that fit the device") = 1500;

#endif
