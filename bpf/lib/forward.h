/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The way out of a packet that was admitted: to a local endpoint's device, as a router would. */
#ifndef PCL_FORWARD_H
#define PCL_FORWARD_H

#include "flow.h"
#include "result.h"

/* Set on a packet that goes to the endpoint's own tc egress after its policy was decided. */
#define MARK_MASK 0x0f00
#define MARK_DECIDED 0x0f00

/* One hop less to live, and the link-layer addresses of the next one. 0 or a drop reason. */
static __always_inline int forward_rewrite(struct __sk_buff *skb, const struct flow_side *to,
					   bool ipv6)
{
	struct ethhdr *eth;

	if (ipv6) {
		struct ipv6hdr *ip;

		eth = (void *)(long)skb->data;
		ip = (void *)(eth + 1);
		if ((void *)(ip + 1) > (void *)(long)skb->data_end)
			return DROP_INVALID_PACKET;
		if (ip->hop_limit <= 1)
			return DROP_TTL_EXCEEDED;
		ip->hop_limit--;
	} else {
		struct iphdr *ip;
		__u32 sum;

		eth = (void *)(long)skb->data;
		ip = (void *)(eth + 1);
		if ((void *)(ip + 1) > (void *)(long)skb->data_end)
			return DROP_INVALID_PACKET;
		if (ip->ttl <= 1)
			return DROP_TTL_EXCEEDED;
		/* RFC 1624: the checksum grows by what the TTL's 16-bit word loses. */
		sum = ip->check + bpf_htons(0x0100);
		ip->check = sum + (sum >> 16);
		ip->ttl--;
	}
	__builtin_memcpy(eth, to->ethernet, sizeof(to->ethernet));
	return 0;
}

/* Hands the packet to a local endpoint; a tc action or a drop reason. */
static __always_inline int forward_local(struct __sk_buff *skb, const struct flow_side *to,
					 bool ipv6)
{
	int reason = forward_rewrite(skb, to, ipv6);

	if (reason)
		return reason;
	if (redirect_peer)
		return bpf_redirect_peer(to->ifindex, 0);
	skb->mark = (skb->mark & ~MARK_MASK) | MARK_DECIDED;
	return bpf_redirect(to->ifindex, 0);
}

#endif
