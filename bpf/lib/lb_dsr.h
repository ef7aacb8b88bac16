/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * DSR by option: the packet itself goes to the backend's address and port, and tells it which
 * service it is for where the backend may not know that yet.
 */
#ifndef PCL_LB_DSR_H
#define PCL_LB_DSR_H

#include "dsr.h"
#include "lb.h"
#include "lb_packet.h"
#include "rewrite.h"
#include "room.h"

/*
 * Whether the packet has to tell: of TCP the first to this backend and each SYN, of UDP every one.
 * A fragment does, since what follows the first has no ports by which the backend could know it.
 */
static __always_inline bool lb_tells(const struct lb_packet *packet)
{
	if (packet->quoted)
		return false;
	return packet->key.proto != IPPROTO_TCP || packet->tcp_flags & TCP_SYN || packet->first ||
	       packet->fragment;
}

/*
 * Gives the packet the backend's address and port. An ICMP error is about a packet that the backend
 * sent, which the client saw as the service's: the quote becomes again what the backend knows.
 */
static __always_inline bool lb_to_backend(CTX *ctx, const struct lb_packet *packet,
					  const struct lb_backend *backend)
{
	struct headers headers = {
		.l4_off = packet->fragment == FRAGMENT_LATER ? 0 : packet->l4_off,
		.proto = packet->key.proto,
		.ipv6 = packet->ipv6,
		.skip = packet->quoted_skip,
	};
	struct headers error = {
		.l4_off = packet->l4_off,
		.proto = packet->ipv6 ? PROTO_ICMPV6 : IPPROTO_ICMP,
		.ipv6 = packet->ipv6,
	};

	if (!packet->quoted)
		return rewrite_end(ctx, &headers, DESTINATION, &backend->addr, backend->port);
	return rewrite_address(ctx, &error, DESTINATION, &backend->addr) &&
	       rewrite_quoted(ctx, &headers, SOURCE, &backend->addr, backend->port);
}

static __always_inline int lb_put_ipv4(CTX *ctx, const struct lb_packet *packet)
{
	struct dsr_ipv4 option = dsr_ipv4(&packet->key.service, packet->key.service_port);
	struct iphdr *ip;
	__u32 was, is;

	/* The header can have 60 bytes, and 4 bits say how many words. */
	if (packet->l4_off + sizeof(option) > ETHER_LEN + 60)
		return DROP_DSR_UNSUPPORTED;
	if (!room_make(ctx, sizeof(option), false, packet->key.proto == IPPROTO_TCP))
		return DROP_WRITE_ERROR;
	ip = (void *)(long)ctx->data + ETHER_LEN;
	if ((void *)(ip + 1) + sizeof(option) > (void *)(long)ctx->data_end)
		return DROP_WRITE_ERROR;
	__builtin_memcpy(ip + 1, &option, sizeof(option));
	was = *(packet_half *)ip;
	ip->ihl += sizeof(option) / 4;
	ip->tot_len = bpf_htons(packet->bytes + sizeof(option));
	is = *(packet_half *)ip;
	ip->check = checksum_follow(ip->check, checksum_exchange(&was, &is, sizeof(was)) +
						       checksum_sum(&option, sizeof(option)));
	return 0;
}

static __always_inline int lb_put_ipv6(CTX *ctx, const struct lb_packet *packet)
{
	struct ipv6hdr *ip = (void *)(long)ctx->data + ETHER_LEN;
	struct dsr_ipv6 option;
	__u32 was, is;

	if ((void *)(ip + 1) > (void *)(long)ctx->data_end)
		return DROP_INVALID_PACKET;
	/* Hop-by-hop options come first (RFC 8200, 4.1), and backends look there. */
	if (ip->nexthdr == IPPROTO_HOPOPTS)
		return DROP_DSR_UNSUPPORTED;
	option = dsr_ipv6(&packet->key.service, packet->key.service_port, ip->nexthdr);
	if (!room_make(ctx, sizeof(option), true, packet->key.proto == IPPROTO_TCP))
		return DROP_WRITE_ERROR;
	ip = (void *)(long)ctx->data + ETHER_LEN;
	if ((void *)(ip + 1) + sizeof(option) > (void *)(long)ctx->data_end)
		return DROP_WRITE_ERROR;
	__builtin_memcpy(ip + 1, &option, sizeof(option));
	was = *((packet_half *)ip + 1);
	ip->payload_len = bpf_htons(packet->bytes - sizeof(*ip) + sizeof(option));
	ip->nexthdr = IPPROTO_DSTOPTS;
	is = *((packet_half *)ip + 1);
	ctx_sum_add(ctx, checksum_exchange(&was, &is, sizeof(was)) +
				 checksum_sum(&option, sizeof(option)));
	return 0;
}

/* Puts the service's address and port into the packet; 0 or a drop reason. */
static __always_inline int lb_put_option(CTX *ctx, const struct lb_packet *packet)
{
	return packet->ipv6 ? lb_put_ipv6(ctx, packet) : lb_put_ipv4(ctx, packet);
}

#endif
