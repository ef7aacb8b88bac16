/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * What the sender of a packet that goes nowhere is told, in the service's name: which size fits the
 * way to the backend with what is added (RFC 1191, RFC 8201), or that nobody takes it.
 */
#ifndef PCL_LB_ERROR_H
#define PCL_LB_ERROR_H

#include "lb_count.h"
#include "lb_encap.h"
#include "lb_work.h"
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

struct icmp_error {
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

/* Leaves of the packet the `quoted` bytes, with `room` bytes before them. */
static __always_inline bool make_room(CTX *ctx, struct ethhdr *came, __u32 quoted, __u32 room)
{
	struct ethhdr *eth = (void *)(long)ctx->data;

	if ((void *)(eth + 1) > (void *)(long)ctx->data_end)
		return false;
	*came = *eth;
	return ctx_cut(ctx, sizeof(*eth) + quoted) && ctx_room(ctx, room);
}

/* The sum of the words from there to the end of the packet, of which LB_QUOTED bytes are left. */
static __always_inline __u64 sum_quote(const void *quoted, const void *end)
{
	const __u32 *words = quoted;
	__u64 sum = 0;

#pragma unroll
	for (__u32 i = 0; i < LB_QUOTED / 4; i++) {
		if ((void *)(words + i + 1) > end)
			break;
		sum += words[i];
	}
	return sum;
}

#ifdef PCL_TC

/* A short packet is filled up with zeros, so that there always are two bytes to choose; see below. */
static __always_inline __u32 quoted_bytes(const CTX *ctx)
{
	return LB_QUOTED;
}

/*
 * The quoted packet's checksum may be left to a device, which then sums up what there is of it, and
 * writes that into the quote, when the answer's own checksum is made already. So the last two bytes
 * are chosen such that it writes what is there. `quoted` has LB_QUOTED bytes.
 */
static __always_inline bool settle_quote(CTX *ctx, const struct lb_packet *packet, void *quoted,
					 void *end)
{
	__u32 begin = packet->l4_off - ETHER_LEN, at = checksum_at(packet->key.proto);
	__u16 *check = quoted + (begin & 0x7f) + at;
	__u16 *last = quoted + LB_QUOTED - sizeof(*last);
	const __u32 *words = quoted;
	__u64 sum = 0;
	__u16 before;

	if (quoted + LB_QUOTED > end)
		return false;
	if (!at || packet->fragment)
		return true;
	if (begin > LB_QUOTED - 24 || (void *)(check + 1) > end)
		return false;
	before = *last;
	*last = 0;
#pragma unroll
	for (__u32 i = 0; i < LB_QUOTED / 4; i++)
		sum += i * 4 >= begin ? words[i] : 0;
	*last = checksum_fold((__u16)~*check + (__u16)~checksum_fold(sum));
	ctx_sum_add(ctx, checksum_exchange16(before, *last));
	return true;
}

#else

/* Whole words; a frame that XDP gets has no room behind it that could be counted on. */
static __always_inline __u32 quoted_bytes(const CTX *ctx)
{
	__u32 bytes = ctx_length(ctx) - ETHER_LEN;

	return bytes < LB_QUOTED ? bytes & ~3 : LB_QUOTED;
}

static __always_inline bool settle_quote(CTX *ctx, const struct lb_packet *packet, void *quoted,
					 void *end)
{
	return true;
}

#endif

/* `fits` bytes do; 0: nobody takes it. */
static __always_inline bool lb_error_ipv4(CTX *ctx, const struct lb_packet *packet, __u32 fits)
{
	__u32 bytes = quoted_bytes(ctx);
	struct icmp_error *icmp;
	struct iphdr *ip, *quoted;
	struct ethhdr *eth, came;
	void *end;

	if (!make_room(ctx, &came, bytes, sizeof(*ip) + sizeof(*icmp)))
		return false;
	eth = (void *)(long)ctx->data;
	ip = (void *)(eth + 1);
	icmp = (void *)(ip + 1);
	quoted = (void *)(icmp + 1);
	end = (void *)(long)ctx->data_end;
	if ((void *)(quoted + 1) > end || !settle_quote(ctx, packet, quoted, end))
		return false;
	turn_ethernet(eth, &came);
	__builtin_memset(ip, 0, sizeof(*ip));
	ip->version = 4;
	ip->ihl = 5;
	ip->tot_len = bpf_htons(sizeof(*ip) + sizeof(*icmp) + bytes);
	ip->ttl = LB_TTL;
	ip->protocol = IPPROTO_ICMP;
	ip->saddr = quoted->daddr;
	ip->daddr = quoted->saddr;
	ip->check = checksum_ipv4(ip);
	icmp->type = 3;		/* destination unreachable: fragmentation needed, or the port */
	icmp->code = fits ? 4 : 3;
	icmp->check = 0;
	icmp->mtu = bpf_htonl(fits);
	icmp->check = ~checksum_fold(checksum_sum(icmp, sizeof(*icmp)) + sum_quote(quoted, end));
	ctx_sum_add(ctx, checksum_sum(ip, sizeof(*ip) + sizeof(*icmp)));
	return true;
}

static __always_inline bool lb_error_ipv6(CTX *ctx, const struct lb_packet *packet, __u32 fits)
{
	__u32 bytes = quoted_bytes(ctx);
	struct ipv6hdr *ip, *quoted;
	struct icmp_error *icmp;
	struct ethhdr *eth, came;
	void *end;
	__u64 sum;

	if (!make_room(ctx, &came, bytes, sizeof(*ip) + sizeof(*icmp)))
		return false;
	eth = (void *)(long)ctx->data;
	ip = (void *)(eth + 1);
	icmp = (void *)(ip + 1);
	quoted = (void *)(icmp + 1);
	end = (void *)(long)ctx->data_end;
	if ((void *)(quoted + 1) > end || !settle_quote(ctx, packet, quoted, end))
		return false;
	turn_ethernet(eth, &came);
	*(__be32 *)ip = bpf_htonl(0x60000000);
	ip->payload_len = bpf_htons(sizeof(*icmp) + bytes);
	ip->nexthdr = PROTO_ICMPV6;
	ip->hop_limit = LB_TTL;
	__builtin_memcpy(&ip->saddr, &quoted->daddr, 16);
	__builtin_memcpy(&ip->daddr, &quoted->saddr, 16);
	icmp->type = fits ? 2 : 1;	/* packet too big, or destination unreachable: the port */
	icmp->code = fits ? 0 : 4;
	icmp->check = 0;
	icmp->mtu = bpf_htonl(fits);
	sum = checksum_sum(&ip->saddr, 32) + bpf_htonl(sizeof(*icmp) + bytes) +
	      bpf_htonl(PROTO_ICMPV6);
	sum += checksum_sum(icmp, sizeof(*icmp)) + sum_quote(quoted, end);
	icmp->check = ~checksum_fold(sum);
	ctx_sum_add(ctx, checksum_sum(ip, sizeof(*ip) + sizeof(*icmp)));
	return true;
}

/* Turns the packet at work into the error and sends it back the way it came; an action. */
__noinline int lb_send_error(CTX *ctx, __u32 fits)
{
	struct lb_work *work = lb_work_here();
	const struct lb_packet *packet;

	if (!work)
		return CTX_DROP;
	packet = &work->packet;
	/* Nobody answers an error, nor a fragment whose sender could not tell whose it is (RFC 1122). */
	if (packet->quoted || (!fits && packet->fragment == FRAGMENT_LATER) || !lb_may_answer())
		return CTX_DROP;
	if (!(packet->ipv6 ? lb_error_ipv6(ctx, packet, fits) : lb_error_ipv4(ctx, packet, fits)))
		return CTX_DROP;
	return ctx_send(ctx, ctx_device(ctx));
}

/* The packet is larger than what `fits`. */
static __always_inline int lb_too_big(CTX *ctx, const struct lb_packet *packet, __u32 fits)
{
	struct lb_work *work = lb_work_here();

	drop(packet, DROP_FRAG_NEEDED);
	if (!work)
		return CTX_DROP;
	work->packet = *packet;
	return lb_send_error(ctx, fits);
}

/* The service has no backend for the packet, which is at work. */
static __always_inline int lb_unserved(CTX *ctx, const struct lb_packet *packet)
{
	drop(packet, DROP_NO_SERVICE_BACKEND);
	return reject_unserved ? lb_send_error(ctx, 0) : CTX_DROP;
}

#endif
