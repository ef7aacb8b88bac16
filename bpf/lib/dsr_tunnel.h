/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Takes off what a balancer put around packets: IP in IP, or Geneve with a frame inside. Those of
 * anything else are the host's own business and pass untouched.
 */
#ifndef PCL_DSR_TUNNEL_H
#define PCL_DSR_TUNNEL_H

#include <linux/udp.h>

#include "dsr.h"
#include "dsr_serve.h"
#include "lb_packet.h"
#include "room.h"

/* ------------------------------------------------------------------ IP in IP */

struct dsr_tunnelled {
	struct addr director;
	struct addr to;
	__be16 proto;
	__u16 outer;		/* length of the outer header */
};

static __always_inline bool dsr_parse_ipip(struct cursor *at, struct dsr_tunnelled *packet)
{
	struct iphdr *outer = TAKE(at, sizeof(*outer)), *inner;

	if (!outer || outer->ihl != 5 || outer->protocol != PROTO_IPIP ||
	    outer->frag_off & bpf_htons(0x3fff))
		return false;
	inner = TAKE(at, sizeof(*inner));
	if (!inner || inner->version != 4)
		return false;
	addr_from_v4(&packet->director, outer->saddr);
	addr_from_v4(&packet->to, inner->daddr);
	packet->outer = sizeof(*outer);
	return true;
}

static __always_inline bool dsr_parse_ip6ip6(struct cursor *at, struct dsr_tunnelled *packet)
{
	struct ipv6hdr *outer = TAKE(at, sizeof(*outer)), *inner;

	if (!outer || outer->nexthdr != PROTO_IPV6)
		return false;
	inner = TAKE(at, sizeof(*inner));
	if (!inner || inner->version != 6)
		return false;
	__builtin_memcpy(&packet->director, &outer->saddr, 16);
	__builtin_memcpy(&packet->to, &inner->daddr, 16);
	packet->outer = sizeof(*outer);
	return true;
}

/* Takes off an outer IP header; the stack, which has the service's address, does the rest. */
static __always_inline int dsr_take_ipip(CTX *ctx)
{
	struct cursor at = { (void *)(long)ctx->data, (void *)(long)ctx->data_end };
	struct ethhdr *eth = TAKE(&at, sizeof(*eth));
	struct dsr_tunnelled packet = {};

	if (!eth)
		return DSR_PASS;
	packet.proto = eth->h_proto;
	if (eth->h_proto == bpf_htons(ETH_P_IP) ? !dsr_parse_ipip(&at, &packet) :
						  eth->h_proto != bpf_htons(ETH_P_IPV6) ||
						  !dsr_parse_ip6ip6(&at, &packet))
		return DSR_PASS;
	if (!dsr_serves(&packet.to))
		return DSR_PASS;
	if (!dsr_from_director(&packet.director))
		return DROP_INVALID_SOURCE;
	return room_take_outer(ctx, packet.outer, packet.proto) ? 0 : DROP_WRITE_ERROR;
}

/* ------------------------------------------------------------------ Geneve */

/* Reads an option, of which there is one; false if it is not a balancer's. */
static __always_inline bool dsr_parse_option(struct cursor *at, __u32 words, struct dsr_told *told)
{
	struct geneve_option *head = TAKE(at, sizeof(*head));
	__be32 *data;

	if (!head || head->class != bpf_htons(GENEVE_DSR_CLASS) || head->type != GENEVE_DSR_TYPE ||
	    head->words != words - 1)
		return false;
	if (words == sizeof(struct geneve_dsr_ipv4) / 4) {
		data = TAKE(at, 8);
		if (!data)
			return false;
		addr_from_v4(&told->service, data[0]);
		told->port = *(__be16 *)&data[1];
	} else if (words == sizeof(struct geneve_dsr_ipv6) / 4) {
		data = TAKE(at, 20);
		if (!data)
			return false;
		__builtin_memcpy(&told->service, data, 16);
		told->port = *(__be16 *)&data[4];
		if (addr_is_v4(&told->service))
			return false;
	} else {
		return false;
	}
	told->told = true;
	return true;
}

/* The destination of the packet in a frame; false if it is none of IP. */
static __always_inline bool dsr_parse_inside(struct cursor *at, __be16 *proto, struct addr *to)
{
	struct ethhdr *eth = TAKE(at, sizeof(*eth));
	struct ipv6hdr *ipv6;
	struct iphdr *ipv4;

	if (!eth)
		return false;
	*proto = eth->h_proto;
	if (*proto == bpf_htons(ETH_P_IP)) {
		ipv4 = TAKE(at, sizeof(*ipv4));
		if (!ipv4)
			return false;
		addr_from_v4(to, ipv4->daddr);
		return true;
	}
	ipv6 = TAKE(at, sizeof(*ipv6));
	if (*proto != bpf_htons(ETH_P_IPV6) || !ipv6)
		return false;
	__builtin_memcpy(to, &ipv6->daddr, 16);
	return !addr_is_v4(to);
}

/*
 * Takes off Geneve that has the option, or that carries from the world what is for this very node:
 * so balancers send the packets of flows that are known. `outer` is the datagram around it.
 */
static __always_inline int dsr_take_geneve(CTX *ctx, const struct lb_packet *outer,
					   struct dsr_told *told)
{
	__u32 begin = outer->l4_off & 0x1ff, words;
	struct cursor at = { (void *)(long)ctx->data + begin, (void *)(long)ctx->data_end };
	struct geneve *geneve;
	struct addr to;
	__be16 proto;

	if (!TAKE(&at, sizeof(struct udphdr)))
		return DSR_PASS;
	geneve = TAKE(&at, sizeof(*geneve));
	if (!geneve || geneve->words >> 6 || geneve->proto != bpf_htons(GENEVE_ETHERNET))
		return DSR_PASS;
	words = geneve->words;
	if (words && !dsr_parse_option(&at, words, told))
		return DSR_PASS;
	if (!words && geneve->vni != bpf_htonl(GENEVE_WORLD << 8))
		return DSR_PASS;
	if (!dsr_parse_inside(&at, &proto, &to))
		return DSR_PASS;
	if (told->told) {
		if (!dsr_serves(&told->service) || addr_is_v4(&told->service) != addr_is_v4(&to))
			return DSR_PASS;
		if (!dsr_from_director(&outer->key.client))
			return DROP_INVALID_SOURCE;
	} else if (!addr_equal(&to, &outer->key.service) || !dsr_from_director(&outer->key.client)) {
		return DSR_PASS;
	}
	begin += sizeof(struct udphdr) + sizeof(*geneve) + words * 4;
	return room_take_outer(ctx, begin, proto) ? 0 : DROP_WRITE_ERROR;
}

#endif
