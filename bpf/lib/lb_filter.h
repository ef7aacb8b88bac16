/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * A look into one bit tells most packets that no service is theirs, for a tenth of a hash lookup's
 * cost. A set bit may be another service's, so what it lets through is looked up as well.
 */
#ifndef PCL_LB_FILTER_H
#define PCL_LB_FILTER_H

#include "lb.h"
#include "lb_config.h"

/* What the bits of an address stand for, beside its ports and protocols. */
#define LB_FILTER_OTHER_PORTS 0			/* its other ports are refused */
#define LB_FILTER_FRAGMENTS 0xffffff		/* it has services at all */

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 16384);
	__type(key, __u32);
	__type(value, __u64);
} lb_filter SEC(".maps");

/* User space computes the same (loadbalancer/filter.py). */
static __always_inline __u32 lb_filter_hash(const struct addr *addr, __u32 what)
{
	__u64 mixed = addr->halves[0] * 0x9e3779b97f4a7c15ULL ^ addr->halves[1];

	mixed = (mixed ^ what) * 0xff51afd7ed558ccdULL;
	mixed = (mixed ^ mixed >> 32) * 0xc4ceb9fe1a85ec53ULL;
	return mixed >> 32;
}

static __always_inline bool lb_filter_has(const struct addr *addr, __u32 what)
{
	__u32 hash = lb_filter_hash(addr, what);
	__u32 index = hash >> 6 & (filter_cells - 1);
	__u64 *cell = bpf_map_lookup_elem(&lb_filter, &index);

	return cell && READ_ONCE(*cell) >> (hash & 63) & 1;
}

static __always_inline __u32 lb_filter_port(__be16 port, __u8 proto)
{
	return (__u32)proto << 16 | port;
}

#endif
