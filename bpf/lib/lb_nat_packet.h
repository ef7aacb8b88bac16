/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* A packet between client and service becomes one between the node and a backend, or back. */
#ifndef PCL_LB_NAT_PACKET_H
#define PCL_LB_NAT_PACKET_H

#include "crc32c.h"
#include "lb_work.h"
#include "lb_route.h"
#include "rewrite.h"

/* The checksum of SCTP covers its ports, and no addresses; 0 is not made yet, but by the device. */
static __always_inline bool lb_nat_follow_sctp(CTX *ctx, const struct lb_packet *packet, __u32 ports)
{
	__u32 l4 = packet->l4_off & REWRITE_REACH, bytes = packet->bytes + sizeof(struct ethhdr) - l4;
	__u32 *check = (void *)(long)ctx->data + l4 + 8;

	if (!ports)
		return true;
	/* Of a fragment it covers bytes that are elsewhere. */
	if ((void *)(check + 1) > (void *)(long)ctx->data_end || packet->fragment || bytes > 0xffff)
		return false;
	if (*check)
		*check ^= crc32c_change(ports, bytes);
	return true;
}

/* Both ends of a packet, in the time of one. */
static __always_inline bool lb_nat_rewrite(CTX *ctx, const struct lb_packet *packet,
					   const struct lb_nat_ends *ends)
{
	void *ip = (void *)(long)ctx->data + sizeof(struct ethhdr);
	void *end = (void *)(long)ctx->data_end;
	__u32 l4 = packet->l4_off & REWRITE_REACH, check = checksum_at(packet->key.proto);
	__u32 *place = (void *)(long)ctx->data + l4, was, ports;
	__u64 source, destination;

	if (!rewrite_ip(ip, end, packet->ipv6, SOURCE, &ends->source, &source) ||
	    !rewrite_ip(ip, end, packet->ipv6, DESTINATION, &ends->destination, &destination))
		return false;
	if (packet->ipv6)
		ctx_sum_add(ctx, source + destination);
	if (packet->fragment == FRAGMENT_LATER)
		return true;
	if ((void *)(place + 1) > end)
		return false;
	was = *place;
	__builtin_memcpy(place, &ends->ports, sizeof(ports));
	ports = *place;
	if (!check)
		return lb_nat_follow_sctp(ctx, packet, was ^ ports);
	return rewrite_check(ctx, l4 + check, packet->key.proto, source + destination,
			     checksum_exchange(&was, &ports, 4));
}

/* An ICMP error goes the way of a packet, and quotes one that came the other way. */
static __always_inline bool lb_nat_rewrite_error(CTX *ctx, const struct lb_packet *packet,
						 const struct lb_nat_ends *ends)
{
	struct headers error = {
		packet->l4_off, packet->ipv6 ? PROTO_ICMPV6 : IPPROTO_ICMP, packet->ipv6,
	};
	struct headers quoted = { packet->l4_off, packet->key.proto, packet->ipv6 };

	return rewrite_address(ctx, &error, SOURCE, &ends->source) &&
	       rewrite_address(ctx, &error, DESTINATION, &ends->destination) &&
	       rewrite_quoted(ctx, &quoted, SOURCE, &ends->destination, ends->ports[1]) &&
	       rewrite_quoted(ctx, &quoted, DESTINATION, &ends->source, ends->ports[0]);
}

/* Makes the packet one between the ends that it shall have; 0 or a drop reason. */
__noinline int lb_nat_translate(CTX *ctx)
{
	struct lb_work *work = lb_work_here();
	const struct lb_packet *packet;
	int reason;

	if (!work)
		return DROP_WRITE_ERROR;
	packet = &work->packet;
	if (packet->l4_off > REWRITE_REACH)
		return DROP_IPV6_EXTENSION;
	reason = lb_route(ctx, packet->ipv6, work->ethernet);
	if (reason)
		return reason;
	if (packet->quoted ? lb_nat_rewrite_error(ctx, packet, &work->ends) :
			     lb_nat_rewrite(ctx, packet, &work->ends))
		return 0;
	return DROP_WRITE_ERROR;
}

#endif
