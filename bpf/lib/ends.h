/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Who the ends of a flow are, to a program that knows the node's endpoints and the ipcache. */
#ifndef PCL_ENDS_H
#define PCL_ENDS_H

#include "endpoint.h"
#include "path.h"

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
 * policy is not about him: he is the world.
 */
static __always_inline void resolve_end(const struct addr *addr, struct flow *flow, __u32 end)
{
	struct endpoint *endpoint = endpoint_lookup(addr);
	__u32 identity = endpoint ? endpoint->identity : ipcache_identity(addr);
	struct endpoint_link *link;

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
