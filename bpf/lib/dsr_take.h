/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The backend's side of DSR, where packets come in: takes off what a balancer put around or into
 * them, so that the stack gets what the client sent, and remembers for which service each flow is.
 *
 * IP in IP and Geneve for anything else are the host's own business and pass untouched.
 */
#ifndef PCL_DSR_TAKE_H
#define PCL_DSR_TAKE_H

#include <linux/udp.h>

#include "dsr.h"
#include "dsr_flow.h"
#include "metrics.h"
#include "room.h"

CONFIG(bool, check_directors, "take packets from the addresses in `dsr_directors` alone") = false;

/* The services' addresses that this node answers for. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, struct addr);
	__type(value, __u32);
} dsr_addresses SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, struct addr);
	__type(value, __u32);
} dsr_directors SEC(".maps");

/* Beside the drop reasons: it is no packet of a balancer, or not for here. */
#define DSR_PASS -1

/* What the packet tells of its service. */
struct dsr_told {
	struct addr service;
	__be16 port;
	bool told;
};

static __always_inline bool dsr_serves(const struct addr *service)
{
	return bpf_map_lookup_elem(&dsr_addresses, service);
}

static __always_inline bool dsr_from_director(const struct addr *from)
{
	return !check_directors || bpf_map_lookup_elem(&dsr_directors, from);
}

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

/* ------------------------------------------------------------------ options */

/* Who sent such a packet cannot be known, since it has the client's address: of no director. */
static __always_inline int dsr_may_take(const struct dsr_told *told)
{
	if (!dsr_serves(&told->service))
		return DSR_PASS;
	return check_directors ? DROP_INVALID_SOURCE : 0;
}

static __always_inline int dsr_take_ipv4(CTX *ctx, struct dsr_told *told)
{
	struct iphdr *ip = (void *)(long)ctx->data + ETHER_LEN;
	struct dsr_ipv4 *at = (void *)(ip + 1), option;
	__u32 was, is;
	__u64 sum;
	int reason;

	if ((void *)(at + 1) > (void *)(long)ctx->data_end || ip->ihl < 7)
		return DSR_PASS;
	option = *at;
	if (option.type != DSR_IPV4_OPTION || option.length != sizeof(option))
		return DSR_PASS;
	addr_from_v4(&told->service, __builtin_bswap32(option.addr));
	told->port = __builtin_bswap16(option.port);
	reason = dsr_may_take(told);
	if (reason)
		return reason;
	if (!room_take(ctx, sizeof(option), false))
		return DROP_WRITE_ERROR;
	ip = (void *)(long)ctx->data + ETHER_LEN;
	if ((void *)(ip + 1) > (void *)(long)ctx->data_end)
		return DROP_WRITE_ERROR;
	was = *(packet_half *)ip;
	ip->ihl -= sizeof(option) / 4;
	ip->tot_len = bpf_htons(bpf_ntohs(ip->tot_len) - sizeof(option));
	is = *(packet_half *)ip;
	sum = checksum_sum(&option, sizeof(option));
	ip->check = checksum_follow(ip->check, checksum_exchange(&was, &is, sizeof(was)) +
						       (__u16)~checksum_fold(sum));
	ctx_sum_add(ctx, sum);
	told->told = true;
	return 0;
}

static __always_inline int dsr_take_ipv6(CTX *ctx, struct dsr_told *told)
{
	struct ipv6hdr *ip = (void *)(long)ctx->data + ETHER_LEN;
	struct dsr_ipv6 *at = (void *)(ip + 1), option;
	__u32 was, is;
	int reason;

	if ((void *)(at + 1) > (void *)(long)ctx->data_end || ip->nexthdr != IPPROTO_DSTOPTS)
		return DSR_PASS;
	option = *at;
	if (option.words != sizeof(option) / 8 - 1 || option.type != DSR_IPV6_OPTION ||
	    option.length != sizeof(option) - 4)
		return DSR_PASS;
	__builtin_memcpy(&told->service, option.addr, sizeof(option.addr));
	told->port = option.port;
	if (addr_is_v4(&told->service))
		return DSR_PASS;
	reason = dsr_may_take(told);
	if (reason)
		return reason;
	if (!room_take(ctx, sizeof(option), true))
		return DROP_WRITE_ERROR;
	ip = (void *)(long)ctx->data + ETHER_LEN;
	if ((void *)(ip + 1) > (void *)(long)ctx->data_end)
		return DROP_WRITE_ERROR;
	was = *((packet_half *)ip + 1);
	ip->payload_len = bpf_htons(bpf_ntohs(ip->payload_len) - sizeof(option));
	ip->nexthdr = option.next;
	is = *((packet_half *)ip + 1);
	ctx_sum_add(ctx, checksum_exchange(&was, &is, sizeof(was)));
	told->told = true;
	return 0;
}

/* ------------------------------------------------------------------ all of them */

static __noinline bool dsr_parse(CTX *ctx, struct lb_packet *packet)
{
	return lb_parse(ctx, packet);
}

/* Takes off what there is, and fills in the client's packet and what it told. */
static __always_inline int dsr_take_any(CTX *ctx, struct lb_packet *packet, struct dsr_told *told)
{
	struct lb_packet outer = {};
	int reason = dsr_take_ipip(ctx);

	if (reason != DSR_PASS || !dsr_parse(ctx, packet))
		return reason;
	reason = packet->ipv6 ? dsr_take_ipv6(ctx, told) : dsr_take_ipv4(ctx, told);
	if (reason != DSR_PASS || packet->key.proto != IPPROTO_UDP ||
	    packet->key.service_port != geneve_port || packet->fragment || packet->quoted)
		return reason;
	outer = *packet;
	reason = dsr_take_geneve(ctx, &outer, told);
	if (reason)
		return reason;
	*packet = (struct lb_packet){};
	/*
	 * Datagrams that are yet to be cut keep it that they were in a tunnel, and so the stack would
	 * cut them at the wrong place and lose them. Their sender's device can cut them (see the docs).
	 */
	if (dsr_parse(ctx, packet) && packet->key.proto == IPPROTO_UDP && ctx_segment(ctx))
		return DROP_DSR_UNSUPPORTED;
	return 0;
}

/* What becomes of a packet that comes in: an action of the hook. */
static __always_inline int dsr_take(CTX *ctx)
{
	struct lb_packet packet = {};
	struct dsr_told told = {};
	int reason;

	ctx_pull(ctx);
	reason = dsr_take_any(ctx, &packet, &told);
	if (told.told && !reason && packet.fragment != FRAGMENT_LATER)
		reason = dsr_flow_learn(&packet, &told.service, told.port);
	else if (!told.told && reason <= 0)
		dsr_flow_note(&packet);
	if (reason == DSR_PASS)
		return CTX_PASS;
	metrics_count(DIRECTION_INGRESS, reason, ctx_length(ctx) - ETHER_LEN);
	return reason ? CTX_DROP : CTX_PASS;
}

#endif
