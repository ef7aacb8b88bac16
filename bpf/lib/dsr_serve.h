/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Which services a backend answers for, and from whom it takes their packets. */
#ifndef PCL_DSR_SERVE_H
#define PCL_DSR_SERVE_H

#include "addr.h"
#include "config.h"

CONFIG(bool, check_directors, "take packets from the addresses in `dsr_directors` alone") = false;

/* The services' addresses that this node answers for. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, struct addr);
	__type(value, __u32);
} dsr_addresses SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, struct addr);
	__type(value, __u32);
} dsr_directors SEC(".maps");

/* Beside the drop reasons: it is no packet of a balancer, or not for here. */
#define DSR_PASS -1

/* What the packet tells of its service. */
struct dsr_told {
	struct addr service;
	__be16 port;
	bool told;
};

static __always_inline bool dsr_serves(const struct addr *service)
{
	return bpf_map_lookup_elem(&dsr_addresses, service);
}

static __always_inline bool dsr_from_director(const struct addr *from)
{
	return !check_directors || bpf_map_lookup_elem(&dsr_directors, from);
}

#endif
