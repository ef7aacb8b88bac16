/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Who the ends of a flow are, to a program that knows the node's endpoints and the ipcache. */
#ifndef PCL_ENDS_H
#define PCL_ENDS_H

#include "endpoint.h"
#include "path.h"

#define FAMILY_IPV4 2
#define FAMILY_IPV6 10

/* The node where it is an endpoint; its loopback address stands for all that have no row. */
static __always_inline struct endpoint *node_endpoint(void)
{
	struct addr loopback = {};

	loopback.words[3] = bpf_htonl(1);
	return endpoint_lookup(&loopback);
}

/*
 * Whether the stack takes for itself what is for an address of `work->packet`, its source or its
 * destination: the kernel's own routes know every address of every device at any moment. Neither
 * does the stack forward what it has no route for, so that counts as well.
 */
__noinline int is_for_node(struct __sk_buff *skb, __u32 source)
{
	struct work *work = work_get();
	struct bpf_fib_lookup *route;
	const struct addr *addr;
	long result;

	if (!work || !node_endpoint())
		return false;
	addr = source ? &work->packet.src : &work->packet.dst;
	if (addr_is_unspecified(addr))
		return false;
	if (addr_is_group(addr) || addr_is_loopback(addr))
		return true;
	_Static_assert(sizeof(*route) == sizeof(work->route), "work.h has room for it");
	route = (void *)work->route;
	__builtin_memset(route, 0, sizeof(*route));
	route->ifindex = skb->ifindex;
	if (addr_is_v4(addr)) {
		route->family = FAMILY_IPV4;
		route->ipv4_dst = addr->words[3];
	} else {
		route->family = FAMILY_IPV6;
		__builtin_memcpy(route->ipv6_dst, addr, sizeof(*addr));
	}
	result = bpf_fib_lookup(skb, route, sizeof(*route), 0);
	switch (result) {
	case BPF_FIB_LKUP_RET_SUCCESS:
	case BPF_FIB_LKUP_RET_BLACKHOLE:
	case BPF_FIB_LKUP_RET_UNREACHABLE:
	case BPF_FIB_LKUP_RET_PROHIBIT:
	case BPF_FIB_LKUP_RET_UNSUPP_LWT:
	case BPF_FIB_LKUP_RET_NO_NEIGH:
	case BPF_FIB_LKUP_RET_FRAG_NEEDED:
		return false;
	default:
		return true;
	}
}

/*
 * Who an opener with an address of the node is. Of what it sends itself the stack says so: what
 * came to the node by some device is not the node's own. Of the rest its flow does.
 */
static __always_inline enum flow_origin origin_of(const struct flow *flow)
{
	struct work *work = work_get();

	if (work && work->packet.from == flow->opener)
		return work->came_by ? ORIGIN_FORWARDED : ORIGIN_NODE;
	return flow->origin ?: ORIGIN_NODE;
}

/*
 * Fills in one end of a flow: an endpoint of this node, the node, or whom the ipcache knows. Who
 * has the node's address only because his packets passed through it has none of its rights, and its
 * policy is not about him: he is the world. `stack` is whether this end is reached by the stack.
 */
static __always_inline void resolve_end(struct __sk_buff *skb, const struct addr *addr,
					struct flow *flow, __u32 end, bool stack)
{
	struct endpoint *endpoint = endpoint_lookup(addr);
	struct work *work = work_get();
	struct endpoint_link *link;
	__u32 identity;

	if (!endpoint && stack && work && is_for_node(skb, end == work->packet.from))
		endpoint = node_endpoint();
	identity = endpoint ? endpoint->identity : ipcache_identity(addr);
	if (end == flow->opener && identity == IDENTITY_HOST) {
		flow->origin = origin_of(flow);
		if (flow->origin == ORIGIN_FORWARDED) {
			flow->identity[end] = world_identity(addr);
			return;
		}
	}
	flow->identity[end] = identity;
	if (!endpoint)
		return;
	flow->ifindex[end] = endpoint->ifindex;
	flow->endpoint[end] = endpoint->id;
	link = endpoint_link(endpoint->id);
	if (!link)
		return;
	__builtin_memcpy(link->ethernet, endpoint->mac, 6);
	__builtin_memcpy(link->ethernet + 6, endpoint->node_mac, 6);
}

static __always_inline __u16 subject_of(struct __sk_buff *skb)
{
	struct device *device = device_lookup(skb->ifindex);

	return device ? device->endpoint : 0;
}

static __always_inline __u32 identity_of(const struct addr *addr, __u32 came_by)
{
	struct endpoint *endpoint = endpoint_lookup(addr);
	__u32 identity = endpoint ? endpoint->identity : ipcache_identity(addr);

	return came_by && identity == IDENTITY_HOST ? world_identity(addr) : identity;
}

#endif
