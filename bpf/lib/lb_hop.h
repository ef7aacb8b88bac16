/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The way to a backend, by the kernel's own routes and neighbours.
 *
 * A lookup in them costs more than all else together, so each CPU keeps the answer for a second:
 * a route or neighbour that changes counts no later than that. A neighbour that the kernel has
 * forgotten stays where it was until it is found elsewhere: nobody may be there to look for it.
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

/*
 * What bpf_fib_lookup() returns; the hop changes only where there is a route and a neighbour. With
 * `from` NULL the node asks for itself: an address on the stack would be too much there.
 */
static __always_inline long lb_hop_resolve(CTX *ctx, const struct addr *from,
					   const struct addr *to, struct lb_hop *hop)
{
	struct bpf_fib_lookup fib = { .ifindex = ctx_device(ctx) };
	long result;

	if (addr_is_v4(to)) {
		fib.family = AF_INET;
		fib.ipv4_src = from ? from->words[3] : source_ipv4;
		fib.ipv4_dst = to->words[3];
	} else {
		fib.family = AF_INET6;
		__builtin_memcpy(fib.ipv6_src, from ? (const void *)from : (const void *)source_ipv6, 16);
		__builtin_memcpy(fib.ipv6_dst, to, 16);
	}
	result = bpf_fib_lookup(ctx, &fib, sizeof(fib), 0);
	if (result != BPF_FIB_LKUP_RET_SUCCESS)
		return result;
	__builtin_memcpy(hop->ethernet, fib.dmac, 6);
	__builtin_memcpy(hop->ethernet + 6, fib.smac, 6);
	hop->ifindex = fib.ifindex;
	return result;
}

/* The hop towards backend `id`; NULL if there is no route or the neighbour was never known. */
static __always_inline struct lb_hop *lb_hop_to(CTX *ctx, __u32 id, const struct addr *to)
{
	struct lb_hop *hop = bpf_map_lookup_elem(&lb_hops, &id);
	__u32 now = bpf_jiffies64();
	long result;

	if (!hop)
		return NULL;
	if (hop->ifindex && now - hop->resolved < jiffies_per_second)
		return hop;
	result = lb_hop_resolve(ctx, NULL, to, hop);
	hop->resolved = now;
	if (result != BPF_FIB_LKUP_RET_SUCCESS && result != BPF_FIB_LKUP_RET_NO_NEIGH)
		hop->ifindex = 0;
	return hop->ifindex ? hop : NULL;
}

#endif
