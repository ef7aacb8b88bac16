/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * A packet that does not fit the way to its backend with the outer header around it: its sender is
 * told which size does (RFC 1191, RFC 8201), in the service's name.
 */
#ifndef PCL_LB_TOO_BIG_H
#define PCL_LB_TOO_BIG_H

#include "lb_encap.h"
#include "rewrite.h"

/* What is quoted of the packet: the headers that its sender needs, also long ones, and a little more. */
#define LB_QUOTED 96
/* Answers a CPU may give within a second, as the kernel's own are limited. */
#define LB_ANSWERS 1000

struct lb_answers {
	__u32 since;		/* jiffies, low word */
	__u32 count;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct lb_answers);
} lb_answers SEC(".maps");

static __always_inline bool lb_may_answer(void)
{
	__u32 zero = 0, now = bpf_jiffies64();
	struct lb_answers *answers = bpf_map_lookup_elem(&lb_answers, &zero);

	if (!answers)
		return false;
	if (now - answers->since >= jiffies_per_second) {
		answers->since = now;
		answers->count = 0;
	}
	return answers->count++ < LB_ANSWERS;
}

struct icmp_too_big {
	__u8 type;
	__u8 code;
	__u16 check;
	__be32 mtu;		/* of ICMP the low half alone */
};

static __always_inline void turn_ethernet(struct ethhdr *eth, const struct ethhdr *came)
{
	__builtin_memcpy(eth->h_dest, came->h_source, 6);
	__builtin_memcpy(eth->h_source, came->h_dest, 6);
	eth->h_proto = came->h_proto;
}

/* Leaves of the packet the part that is quoted, with `room` bytes before it. */
static __always_inline bool make_room(CTX *ctx, struct ethhdr *came, __u32 room)
{
	struct ethhdr *eth = (void *)(long)ctx->data;

	if ((void *)(eth + 1) > (void *)(long)ctx->data_end ||
	    ctx_length(ctx) < sizeof(*eth) + LB_QUOTED)
		return false;
	*came = *eth;
	return ctx_cut(ctx, sizeof(*eth) + LB_QUOTED) && ctx_room(ctx, room);
}

#ifdef PCL_TC

/*
 * The quoted packet's checksum may be left to a device, which then sums up what there is of it, and
 * writes that into the quote, when the answer's own checksum is made already. So the last two bytes
 * are chosen such that it writes what is there. `quoted` has LB_QUOTED bytes.
 */
static __always_inline bool settle_quote(const struct lb_packet *packet, void *quoted, void *end)
{
	__u32 begin = packet->l4_off - ETHER_LEN, at = checksum_at(packet->key.proto);
	__u16 *check = quoted + (begin & 0x7f) + at;
	__u16 *last = quoted + LB_QUOTED - sizeof(*last);
	const __u32 *words = quoted;
	__u64 sum = 0;

	if (!at || packet->fragment)
		return true;
	if (begin > LB_QUOTED - 24 || (void *)(check + 1) > end)
		return false;
	*last = 0;
#pragma unroll
	for (__u32 i = 0; i < LB_QUOTED / 4; i++)
		sum += i * 4 >= begin ? words[i] : 0;
	*last = checksum_fold((__u16)~*check + (__u16)~checksum_fold(sum));
	return true;
}

#else

static __always_inline bool settle_quote(const struct lb_packet *packet, void *quoted, void *end)
{
	return true;
}

#endif

static __always_inline bool lb_too_big_ipv4(CTX *ctx, const struct lb_packet *packet, __u32 fits)
{
	struct icmp_too_big *icmp;
	struct iphdr *ip, *quoted;
	struct ethhdr *eth, came;

	if (!make_room(ctx, &came, sizeof(*ip) + sizeof(*icmp)))
		return false;
	eth = (void *)(long)ctx->data;
	ip = (void *)(eth + 1);
	icmp = (void *)(ip + 1);
	quoted = (void *)(icmp + 1);
	if ((void *)quoted + LB_QUOTED > (void *)(long)ctx->data_end ||
	    !settle_quote(packet, quoted, (void *)(long)ctx->data_end))
		return false;
	turn_ethernet(eth, &came);
	__builtin_memset(ip, 0, sizeof(*ip));
	ip->version = 4;
	ip->ihl = 5;
	ip->tot_len = bpf_htons(sizeof(*ip) + sizeof(*icmp) + LB_QUOTED);
	ip->ttl = LB_TTL;
	ip->protocol = IPPROTO_ICMP;
	ip->saddr = quoted->daddr;
	ip->daddr = quoted->saddr;
	ip->check = checksum_ipv4(ip);
	icmp->type = 3;		/* destination unreachable: fragmentation needed */
	icmp->code = 4;
	icmp->check = 0;
	icmp->mtu = bpf_htonl(fits);
	icmp->check = ~checksum_fold(checksum_sum(icmp, sizeof(*icmp) + LB_QUOTED));
	return true;
}

static __always_inline bool lb_too_big_ipv6(CTX *ctx, const struct lb_packet *packet, __u32 fits)
{
	struct ipv6hdr *ip, *quoted;
	struct icmp_too_big *icmp;
	struct ethhdr *eth, came;
	__u64 sum;

	if (!make_room(ctx, &came, sizeof(*ip) + sizeof(*icmp)))
		return false;
	eth = (void *)(long)ctx->data;
	ip = (void *)(eth + 1);
	icmp = (void *)(ip + 1);
	quoted = (void *)(icmp + 1);
	if ((void *)quoted + LB_QUOTED > (void *)(long)ctx->data_end ||
	    !settle_quote(packet, quoted, (void *)(long)ctx->data_end))
		return false;
	turn_ethernet(eth, &came);
	*(__be32 *)ip = bpf_htonl(0x60000000);
	ip->payload_len = bpf_htons(sizeof(*icmp) + LB_QUOTED);
	ip->nexthdr = PROTO_ICMPV6;
	ip->hop_limit = LB_TTL;
	__builtin_memcpy(&ip->saddr, &quoted->daddr, 16);
	__builtin_memcpy(&ip->daddr, &quoted->saddr, 16);
	icmp->type = 2;		/* packet too big */
	icmp->code = 0;
	icmp->check = 0;
	icmp->mtu = bpf_htonl(fits);
	sum = checksum_sum(&ip->saddr, 32) + bpf_htonl(sizeof(*icmp) + LB_QUOTED) +
	      bpf_htonl(PROTO_ICMPV6);
	icmp->check = ~checksum_fold(sum + checksum_sum(icmp, sizeof(*icmp) + LB_QUOTED));
	return true;
}

/* Turns the packet into the answer that goes back the way it came; false if there is to be none. */
static __always_inline bool lb_too_big(CTX *ctx, const struct lb_packet *packet,
				       __u32 fits)
{
	if (packet->quoted || !lb_may_answer())
		return false;
	return packet->ipv6 ? lb_too_big_ipv6(ctx, packet, fits) : lb_too_big_ipv4(ctx, packet, fits);
}

#endif
