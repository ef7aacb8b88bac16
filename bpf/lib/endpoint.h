/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The endpoints of this node, and the node itself where it is one, by each of their addresses. */
#ifndef PCL_ENDPOINT_H
#define PCL_ENDPOINT_H

#include "addr.h"

enum endpoint_flags {
	ENDPOINT_HOST = 1,	/* the node itself: policy for nodes is enforced */
};

struct endpoint {
	__u32 ifindex;		/* of the host-side device, 0 = it is reached through the stack */
	__u32 identity;
	__u16 id;		/* from 1 up */
	__u16 flags;		/* enum endpoint_flags */
	__u8 mac[6];		/* of the endpoint's own device */
	__u8 node_mac[6];	/* of the host-side device */
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1024);
	__type(key, struct addr);
	__type(value, struct endpoint);
} endpoints SEC(".maps");

/*
 * The host-side devices, and the node's own where policy is enforced at them, for what carries no
 * address of an endpoint: ARP, neighbour discovery, forgeries.
 */
struct device {
	__u16 endpoint;		/* id */
	__u8 node_mac[6];
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1024);
	__type(key, __u32);
	__type(value, struct device);
} devices SEC(".maps");

/* By endpoint id: what an established packet to it needs, copied from `endpoints` by a flow's first. */
struct endpoint_link {
	__u8 ethernet[12];	/* destination and source MAC for delivery to it */
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 256);
	__type(key, __u32);
	__type(value, struct endpoint_link);
} endpoint_links SEC(".maps");

static __always_inline struct endpoint_link *endpoint_link(__u32 id)
{
	return bpf_map_lookup_elem(&endpoint_links, &id);
}

static __always_inline struct endpoint *endpoint_lookup(const struct addr *addr)
{
	return bpf_map_lookup_elem(&endpoints, addr);
}

/* Whether an address is that of the endpoint at this device. */
static __always_inline bool endpoint_owns(__u32 ifindex, const struct addr *addr)
{
	struct endpoint *endpoint = endpoint_lookup(addr);

	return endpoint && endpoint->ifindex == ifindex;
}

static __always_inline struct device *device_lookup(__u32 ifindex)
{
	return bpf_map_lookup_elem(&devices, &ifindex);
}

#endif
