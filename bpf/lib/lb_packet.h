/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What the load balancer reads of a packet: its flow's key, and little more. */
#ifndef PCL_LB_PACKET_H
#define PCL_LB_PACKET_H

#include "lb_cursor.h"

#define LB_EXTENSIONS 4

struct lb_flow_key {
	struct addr client;
	struct addr service;
	__be16 client_port;
	__be16 service_port;
	__u8 proto;
	__u8 pad[3];
};

struct lb_packet {
	struct lb_flow_key key;
	__u32 bytes;		/* of the IP packet */
	__u32 fragment_id;
	__u16 l4_off;		/* in the frame; of an ICMP error, not of what it quotes */
	__u8 tos;
	__u8 ipv6;
	__u8 tcp_flags;
	__u8 fragment;		/* enum fragment */
	/* Two bits, since the stack has no byte to spare. */
	__u8 quoted : 1;	/* an ICMP error; the key is that of the flow which it quotes */
	__u8 first : 1;		/* of its flow that this backend gets */
	__u8 quoted_skip;	/* bytes between the quoted IP header and its transport */
};

static __always_inline bool lb_is_opening(const struct lb_packet *packet)
{
	return (packet->tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_SYN;
}

/* Reads what follows the IP header; false for what no service has. */
static __always_inline bool lb_parse_l4(struct cursor *at, struct lb_packet *packet)
{
	packet_half *ports;
	__u8 *rest;

	if (packet->key.proto != IPPROTO_TCP && packet->key.proto != IPPROTO_UDP &&
	    packet->key.proto != PROTO_SCTP)
		return false;
	if (packet->fragment == FRAGMENT_LATER)
		return true;
	ports = TAKE(at, sizeof(*ports));
	if (!ports)
		return false;
	key_transport(&packet->key.client_port, *ports, packet->key.proto);
	if (packet->key.proto != IPPROTO_TCP)
		return true;
	rest = TAKE(at, 16);
	if (!rest)
		return false;
	packet->tcp_flags = rest[9];
	return true;
}

/* The quoted packet went from the service to the client, so its key is the other way round. */
static __always_inline bool lb_parse_quoted_l4(struct cursor *at, struct lb_packet *packet)
{
	struct { __be16 source, dest; } *ports = TAKE(at, sizeof(*ports));

	if (!ports || (packet->key.proto != IPPROTO_TCP && packet->key.proto != IPPROTO_UDP &&
		       packet->key.proto != PROTO_SCTP))
		return false;
	packet->key.service_port = ports->source;
	packet->key.client_port = ports->dest;
	packet->quoted = 1;
	return true;
}

static __always_inline bool lb_parse_icmpv4(struct cursor *at, struct lb_packet *packet)
{
	__u8 *icmp = TAKE(at, 8);
	struct iphdr *ip;

	if (!icmp || (icmp[0] != 3 && icmp[0] != 11 && icmp[0] != 12))
		return false;
	ip = TAKE(at, sizeof(*ip));
	if (!ip || ip->version != 4 || ip->ihl < 5 || ip->frag_off & bpf_htons(0x1fff))
		return false;
	packet->quoted_skip = (ip->ihl * 4 - 20) & 0x3c;
	if (!TAKE(at, packet->quoted_skip))
		return false;
	addr_from_v4(&packet->key.service, ip->saddr);
	addr_from_v4(&packet->key.client, ip->daddr);
	packet->key.proto = ip->protocol;
	return lb_parse_quoted_l4(at, packet);
}

static __always_inline bool lb_parse_icmpv6(struct cursor *at, struct lb_packet *packet)
{
	__u8 *icmp = TAKE(at, 8), *fragment;
	struct ipv6hdr *ip;

	if (!icmp || icmp[0] == 0 || icmp[0] > 4)
		return false;
	ip = TAKE(at, sizeof(*ip));
	if (!ip || ip->version != 6)
		return false;
	__builtin_memcpy(&packet->key.service, &ip->saddr, 16);
	__builtin_memcpy(&packet->key.client, &ip->daddr, 16);
	packet->key.proto = ip->nexthdr;
	if (ip->nexthdr == IPPROTO_FRAGMENT) {
		fragment = TAKE(at, 8);
		if (!fragment || bpf_ntohs(*(__be16 *)&fragment[2]) >> 3)
			return false;
		packet->key.proto = fragment[0];
		packet->quoted_skip = 8;
	}
	return lb_parse_quoted_l4(at, packet);
}

static __always_inline bool lb_parse_ipv4(struct cursor *at, struct lb_packet *packet)
{
	struct iphdr *ip = TAKE(at, sizeof(*ip));
	__u16 place;

	/* The mask says to the verifier what the comparison does. */
	if (!ip || ip->version != 4 || ip->ihl < 5 || !TAKE(at, (ip->ihl * 4 - 20) & 0x3c))
		return false;
	addr_from_v4(&packet->key.client, ip->saddr);
	addr_from_v4(&packet->key.service, ip->daddr);
	packet->key.proto = ip->protocol;
	packet->bytes = bpf_ntohs(ip->tot_len);
	packet->tos = ip->tos;
	place = bpf_ntohs(ip->frag_off);
	if (place & 0x3fff) {
		packet->fragment = place & 0x1fff ? FRAGMENT_LATER : FRAGMENT_FIRST;
		packet->fragment_id = ip->id;
	}
	packet->l4_off = at->off;
	if (ip->protocol == IPPROTO_ICMP && !packet->fragment)
		return lb_parse_icmpv4(at, packet);
	return lb_parse_l4(at, packet);
}

/* Walks the extension headers (RFC 8200, 4); false if what follows cannot be known. */
static __always_inline bool lb_skip_extensions(struct cursor *at, struct lb_packet *packet)
{
	for (int i = 0; i < LB_EXTENSIONS; i++) {
		__u8 next = packet->key.proto, *header;

		if (next != 0 && next != 43 && next != 44 && next != 60)
			return true;
		header = TAKE(at, 8);
		if (!header)
			return false;
		packet->key.proto = header[0];
		if (next != 44) {
			if (!TAKE(at, header[1] * 8))
				return false;
			continue;
		}
		packet->fragment_id = *(__u32 *)&header[4];
		if (bpf_ntohs(*(__be16 *)&header[2]) >> 3) {
			packet->fragment = FRAGMENT_LATER;
			return true;
		}
		if (header[3] & 1)
			packet->fragment = FRAGMENT_FIRST;
	}
	return false;
}

static __always_inline bool lb_parse_ipv6(struct cursor *at, struct lb_packet *packet)
{
	struct ipv6hdr *ip = TAKE(at, sizeof(*ip));

	if (!ip || ip->version != 6)
		return false;
	packet->ipv6 = 1;
	__builtin_memcpy(&packet->key.client, &ip->saddr, 16);
	__builtin_memcpy(&packet->key.service, &ip->daddr, 16);
	/* Keys hold IPv4 as v4-mapped, so such an address on the wire would pass for IPv4's. */
	if (addr_is_v4(&packet->key.client) || addr_is_v4(&packet->key.service))
		return false;
	packet->key.proto = ip->nexthdr;
	packet->bytes = bpf_ntohs(ip->payload_len) + sizeof(*ip);
	packet->tos = ip->priority << 4 | ip->flow_lbl[0] >> 4;
	if (!lb_skip_extensions(at, packet))
		return false;
	packet->l4_off = at->off;
	if (packet->key.proto == PROTO_ICMPV6 && !packet->fragment)
		return lb_parse_icmpv6(at, packet);
	return lb_parse_l4(at, packet);
}

/* Fills in `packet`, which is all zero; false if it is none that a service can have. */
static __always_inline bool lb_parse(CTX *ctx, struct lb_packet *packet)
{
	struct cursor at;
	struct ethhdr *eth;

	ctx_pull(ctx);
	at = (struct cursor){ (void *)(long)ctx->data, (void *)(long)ctx->data_end };
	eth = TAKE(&at, sizeof(*eth));
	if (!eth)
		return false;
	if (eth->h_proto == bpf_htons(ETH_P_IP))
		return lb_parse_ipv4(&at, packet);
	if (eth->h_proto == bpf_htons(ETH_P_IPV6))
		return lb_parse_ipv6(&at, packet);
	return false;
}

#endif
