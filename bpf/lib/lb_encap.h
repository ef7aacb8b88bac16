/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* IP in IP (RFC 2003) and IPv6 in IPv6 (RFC 2473): the packet as it is, in one for the backend. */
#ifndef PCL_LB_ENCAP_H
#define PCL_LB_ENCAP_H

#include "checksum.h"
#include "lb_config.h"
#include "lb_packet.h"

#define LB_TTL 64

/* Some bits of the flow, so that routers and cards spread flows as if they saw inside. */
static __always_inline __u32 lb_flow_label(const struct lb_packet *packet)
{
	return (packet->key.client.words[3] ^ packet->key.client_port ^
		(__u32)packet->key.service_port << 4) & bpf_htonl(0x000fffff);
}

/* Fills in an outer header; what it carries has `bytes` of its own. */
static __always_inline void lb_outer_ipv4(struct iphdr *ip, const struct lb_packet *packet,
					  __be32 to, __u8 proto, __u32 bytes)
{
	/* Three words before the addresses; of what was just written as bytes a CPU waits to read words. */
	__u16 total = bytes + sizeof(*ip);
	__be32 length = bpf_htonl(0x45000000 | (__u32)packet->tos << 16 | total);
	__be32 fragment = bpf_htonl(0x00004000), life = bpf_htonl(LB_TTL << 24 | proto << 16);
	packet_half *words = (void *)ip;

	words[0] = length;
	words[1] = fragment;
	words[2] = life;
	ip->check = ~checksum_fold((__u64)length + fragment + life + source_ipv4 + to);
	ip->saddr = source_ipv4;
	ip->daddr = to;
}

static __always_inline void lb_outer_ipv6(struct ipv6hdr *ip, const struct lb_packet *packet,
					  const struct addr *to, __u8 proto, __u32 bytes)
{
	*(__be32 *)ip = bpf_htonl(0x60000000 | (__u32)packet->tos << 20) | lb_flow_label(packet);
	ip->payload_len = bpf_htons(bytes);
	ip->nexthdr = proto;
	ip->hop_limit = LB_TTL;
	ip->saddr.in6_u.u6_addr32[0] = source_ipv6[0];
	ip->saddr.in6_u.u6_addr32[1] = source_ipv6[1];
	ip->saddr.in6_u.u6_addr32[2] = source_ipv6[2];
	ip->saddr.in6_u.u6_addr32[3] = source_ipv6[3];
	__builtin_memcpy(&ip->daddr, to, 16);
}

static __always_inline bool lb_encap_ipv4(CTX *ctx, const struct lb_packet *packet,
					  __be32 to, const __u8 *ethernet)
{
	struct ethhdr *eth;
	struct iphdr *ip;

	if (!ctx_outer_room(ctx, sizeof(*ip), packet->key.proto == IPPROTO_TCP))
		return false;
	eth = (void *)(long)ctx->data;
	ip = (void *)(eth + 1);
	if ((void *)(ip + 1) > (void *)(long)ctx->data_end)
		return false;
	packet_ethernet(eth, ethernet);
	eth->h_proto = bpf_htons(ETH_P_IP);
	lb_outer_ipv4(ip, packet, to, PROTO_IPIP, packet->bytes);
	return true;
}

static __always_inline bool lb_encap_ipv6(CTX *ctx, const struct lb_packet *packet,
					  const struct addr *to, const __u8 *ethernet)
{
	struct ethhdr *eth;
	struct ipv6hdr *ip;

	if (!ctx_outer_room(ctx, sizeof(*ip), packet->key.proto == IPPROTO_TCP))
		return false;
	eth = (void *)(long)ctx->data;
	ip = (void *)(eth + 1);
	if ((void *)(ip + 1) > (void *)(long)ctx->data_end)
		return false;
	packet_ethernet(eth, ethernet);
	eth->h_proto = bpf_htons(ETH_P_IPV6);
	lb_outer_ipv6(ip, packet, to, PROTO_IPV6, packet->bytes);
	ctx_sum_add(ctx, checksum_sum(ip, sizeof(*ip)));
	return true;
}

#endif
