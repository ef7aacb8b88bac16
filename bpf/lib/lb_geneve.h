/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * DSR by Geneve (RFC 8926): the packet for the backend's address and port, in a frame with the
 * link-layer addresses that it came with, in UDP for the backend. An option tells of the service.
 */
#ifndef PCL_LB_GENEVE_H
#define PCL_LB_GENEVE_H

#include <linux/udp.h>

#include "checksum.h"
#include "dsr.h"
#include "lb.h"
#include "lb_config.h"
#include "lb_encap.h"
#include "lb_packet.h"

struct lb_geneve {
	struct udphdr udp;
	struct geneve geneve;
};

/* What Geneve adds to a packet, beside the outer IP header and the option. */
#define LB_GENEVE_BYTES ((__u32)sizeof(struct lb_geneve) + ETHER_LEN)

/* From 49152 on, by the flow, so that routers and cards spread flows (RFC 8926, 3.3). */
static __always_inline __be16 lb_geneve_source(const struct lb_packet *packet)
{
	const struct lb_flow_key *key = &packet->key;
	__u32 mixed = (key->client.words[3] ^ (__u32)key->service_port << 16 ^ key->client_port) *
		      0x9e3779b1;

	return bpf_htons(0xc000 | mixed >> 18);
}

/*
 * The sum over the frame that goes inside, if its IPv6 header is followed by TCP, UDP or ICMPv6:
 * with its pseudo-header, such a message sums up to nothing, or will once its checksum is filled in
 * (local checksum offload). False where that does not help.
 */
static __always_inline bool lb_inner_sum(CTX *ctx, const struct lb_packet *packet, __u64 *sum)
{
	struct ethhdr *eth = (void *)(long)ctx->data;
	struct ipv6hdr *ip = (void *)(eth + 1);

	if ((void *)(ip + 1) > (void *)(long)ctx->data_end || packet->fragment ||
	    packet->l4_off != ETHER_LEN + sizeof(*ip) || ctx_segment(ctx))
		return false;
	*sum = checksum_sum(eth, 12) + eth->h_proto + checksum_sum(ip, sizeof(*ip));
	*sum += (__u16)~checksum_fold(checksum_sum(&ip->saddr, 32) + ip->payload_len +
				      bpf_htons(ip->nexthdr));
	return true;
}

/* Writes the headers behind the outer IP header; the frame follows them. */
static __always_inline void lb_geneve_write(struct lb_geneve *at, const struct lb_packet *packet,
					    __u32 option)
{
	at->udp.source = lb_geneve_source(packet);
	at->udp.dest = geneve_port;
	at->udp.len = bpf_htons(LB_GENEVE_BYTES + option + packet->bytes);
	at->udp.check = 0;
	at->geneve.words = option / 4;
	at->geneve.flags = option ? GENEVE_CRITICAL : 0;
	at->geneve.proto = bpf_htons(GENEVE_ETHERNET);
	at->geneve.vni = bpf_htonl(GENEVE_WORLD << 8);
}

/* The checksum may be 0 over IPv4, and is (RFC 8926, 3.3): what is inside has its own. */
static __always_inline bool lb_geneve_ipv4(CTX *ctx, const struct lb_packet *packet, bool tells,
					   __be32 to, const __u8 *ethernet)
{
	struct geneve_dsr_ipv4 option = geneve_dsr_ipv4(&packet->key.service,
							packet->key.service_port);
	__u32 extra = tells ? sizeof(option) : 0;
	struct lb_geneve *geneve;
	struct ethhdr *eth;
	struct iphdr *ip;
	__u64 sum = 0;

	if (!ctx_frame_room(ctx, sizeof(*ip) + LB_GENEVE_BYTES + extra, false,
			    packet->key.proto == IPPROTO_TCP))
		return false;
	eth = (void *)(long)ctx->data;
	ip = (void *)(eth + 1);
	geneve = (void *)(ip + 1);
	/* Where there is no option, there is the frame. */
	if ((void *)(geneve + 1) + sizeof(option) > (void *)(long)ctx->data_end)
		return false;
	packet_ethernet(eth, ethernet);
	eth->h_proto = bpf_htons(ETH_P_IP);
	lb_outer_ipv4(ip, packet, to, IPPROTO_UDP, LB_GENEVE_BYTES + extra + packet->bytes);
	lb_geneve_write(geneve, packet, extra);
	if (tells) {
		__builtin_memcpy(geneve + 1, &option, sizeof(option));
		sum = checksum_sum(&option, sizeof(option));
	}
	ctx_sum_add(ctx, sum + checksum_sum(geneve, sizeof(*geneve)));
	return true;
}

/* IPv6 has no checksum but this. It stays 0 where it would have to be made from all bytes. */
static __always_inline bool lb_geneve_ipv6(CTX *ctx, const struct lb_packet *packet, bool tells,
					   const struct addr *to, const __u8 *ethernet)
{
	struct geneve_dsr_ipv6 option = geneve_dsr_ipv6(&packet->key.service,
							packet->key.service_port);
	__u32 extra = tells ? sizeof(option) : 0;
	__u64 inner, sum = 0;
	bool summed = lb_inner_sum(ctx, packet, &inner);
	struct lb_geneve *geneve;
	struct ipv6hdr *ip;
	struct ethhdr *eth;

	if (!ctx_frame_room(ctx, sizeof(*ip) + LB_GENEVE_BYTES + extra, true,
			    packet->key.proto == IPPROTO_TCP))
		return false;
	eth = (void *)(long)ctx->data;
	ip = (void *)(eth + 1);
	geneve = (void *)(ip + 1);
	if ((void *)(geneve + 1) + sizeof(option) > (void *)(long)ctx->data_end)
		return false;
	packet_ethernet(eth, ethernet);
	eth->h_proto = bpf_htons(ETH_P_IPV6);
	lb_outer_ipv6(ip, packet, to, IPPROTO_UDP, LB_GENEVE_BYTES + extra + packet->bytes);
	lb_geneve_write(geneve, packet, extra);
	if (tells) {
		__builtin_memcpy(geneve + 1, &option, sizeof(option));
		sum = checksum_sum(&option, sizeof(option));
	}
	sum += checksum_sum(geneve, sizeof(*geneve));
	if (summed) {
		inner += sum + checksum_sum(&ip->saddr, 32) + ip->payload_len;
		inner += bpf_htons(IPPROTO_UDP);
		geneve->udp.check = (__u16)~checksum_fold(inner) ?: 0xffff;
	}
	ctx_sum_add(ctx, sum + geneve->udp.check + checksum_sum(ip, sizeof(*ip)));
	return true;
}

#endif
