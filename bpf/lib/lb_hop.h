/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The way to a backend, by the kernel's own routes and neighbours.
 *
 * A lookup in them costs more than all else together, so each CPU keeps the answer for a second:
 * a route or neighbour that changes counts no later than that.
 */
#ifndef PCL_LB_HOP_H
#define PCL_LB_HOP_H

#include <linux/if_ether.h>

#include "ctx.h"
#include "lb.h"
#include "lb_config.h"

#ifndef AF_INET
#define AF_INET 2
#define AF_INET6 10
#endif

struct lb_hop {
	__u32 resolved;		/* jiffies, low word */
	__u32 ifindex;		/* 0: not known */
	__u8 ethernet[12];	/* destination and source */
};

/* By the backend's id. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 4096);
	__type(key, __u32);
	__type(value, struct lb_hop);
} lb_hops SEC(".maps");

/* The node's own address of a family, by which backends know it. */
static __always_inline void lb_own_address(struct addr *own, bool ipv4)
{
	if (ipv4) {
		addr_from_v4(own, source_ipv4);
		return;
	}
	own->words[0] = source_ipv6[0];
	own->words[1] = source_ipv6[1];
	own->words[2] = source_ipv6[2];
	own->words[3] = source_ipv6[3];
}

/* The hop is left alone where the kernel does not say: see BPF_FIB_LKUP_RET_*. */
static __always_inline long lb_hop_resolve(CTX *ctx, const struct addr *from,
					   const struct addr *to, struct lb_hop *hop)
{
	struct bpf_fib_lookup fib = { .ifindex = ctx_device(ctx) };
	long err;

	if (addr_is_v4(to)) {
		fib.family = AF_INET;
		fib.ipv4_src = from->words[3];
		fib.ipv4_dst = to->words[3];
	} else {
		fib.family = AF_INET6;
		__builtin_memcpy(fib.ipv6_src, from, 16);
		__builtin_memcpy(fib.ipv6_dst, to, 16);
	}
	err = bpf_fib_lookup(ctx, &fib, sizeof(fib), 0);
	if (err)
		return err;
	__builtin_memcpy(hop->ethernet, fib.dmac, 6);
	__builtin_memcpy(hop->ethernet + 6, fib.smac, 6);
	hop->ifindex = fib.ifindex;
	return 0;
}

/* The hop towards backend `id`; NULL if there is no route or the neighbour is not known. */
static __always_inline struct lb_hop *lb_hop_to(CTX *ctx, __u32 id, const struct addr *to)
{
	struct lb_hop *hop = bpf_map_lookup_elem(&lb_hops, &id);
	__u32 now = bpf_jiffies64();
	struct addr own;

	if (!hop)
		return NULL;
	if (hop->ifindex && now - hop->resolved < jiffies_per_second)
		return hop;
	hop->ifindex = 0;
	hop->resolved = now;
	lb_own_address(&own, addr_is_v4(to));
	return lb_hop_resolve(ctx, &own, to, hop) ? NULL : hop;
}

#endif
