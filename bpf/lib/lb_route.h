/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The packet goes on as it is, as a router would send it. */
#ifndef PCL_LB_ROUTE_H
#define PCL_LB_ROUTE_H

#include "ctx.h"
#include "packet.h"

/* One hop less to live, and the next one's link-layer addresses; 0 or a drop reason. */
static __always_inline int lb_route(CTX *ctx, bool ipv6, const __u8 *ethernet)
{
	struct ethhdr *eth = (void *)(long)ctx->data;
	void *end = (void *)(long)ctx->data_end;

	if (ipv6) {
		struct ipv6hdr *ip = (void *)(eth + 1);

		if ((void *)(ip + 1) > end)
			return DROP_INVALID_PACKET;
		if (ip->hop_limit <= 1)
			return DROP_TTL_EXCEEDED;
		ip->hop_limit--;
		ctx_sum_add(ctx, checksum_exchange16(bpf_htons(1), 0));
	} else {
		struct iphdr *ip = (void *)(eth + 1);
		__u32 sum;

		if ((void *)(ip + 1) > end)
			return DROP_INVALID_PACKET;
		if (ip->ttl <= 1)
			return DROP_TTL_EXCEEDED;
		/* RFC 1624: the checksum grows by what the TTL's 16-bit word loses. */
		sum = ip->check + bpf_htons(0x0100);
		ip->check = sum + (sum >> 16);
		ip->ttl--;
	}
	packet_ethernet(eth, ethernet);
	return 0;
}

#endif
