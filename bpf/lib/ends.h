/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Who the ends of a flow are, to a program that knows the node's endpoints and the ipcache. */
#ifndef PCL_ENDS_H
#define PCL_ENDS_H

#include "endpoint.h"
#include "path.h"

/*
 * Whether an opener that has the node's address is what is behind the node, masqueraded. Of what the
 * opener sends the stack says so: it came to the node by some device. Of the rest the flow does.
 */
static __always_inline bool is_masqueraded(const struct flow *flow)
{
	struct work *work = work_get();

	if (work && work->packet.from == flow->opener)
		return work->came_by;
	return flow->state & FLOW_MASQUERADED;
}

/*
 * Fills in one end of a flow: an endpoint of this node, the node, or whom the ipcache knows. Policy
 * for the node is about what it does itself, so who is masqueraded is none of its endpoints.
 */
static __always_inline void resolve_end(const struct addr *addr, struct flow *flow, __u32 end)
{
	struct endpoint *endpoint = endpoint_lookup(addr);
	struct endpoint_link *link;

	if (!endpoint) {
		flow->identity[end] = ipcache_identity(addr);
		return;
	}
	flow->identity[end] = endpoint->identity;
	if (endpoint->flags & ENDPOINT_HOST && end == flow->opener) {
		if (is_masqueraded(flow)) {
			flow->state |= FLOW_MASQUERADED;
			return;
		}
		flow->state &= ~FLOW_MASQUERADED;
	}
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

static __always_inline __u32 identity_of(const struct addr *addr)
{
	struct endpoint *endpoint = endpoint_lookup(addr);

	return endpoint ? endpoint->identity : ipcache_identity(addr);
}

#endif
