/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Room behind an IP header of 20 or 40 bytes, for options, and taking headers off. All pointers into
 * the packet are void afterwards.
 */
#ifndef PCL_ROOM_H
#define PCL_ROOM_H

#include "ctx.h"
#include "packet.h"

#ifdef PCL_TC

/* TCP that is to be cut is cut smaller, so that the packets still fit; datagrams keep their size. */
static __always_inline bool room_make(CTX *ctx, __u32 bytes, bool ipv6, bool tcp)
{
	return !bpf_skb_adjust_room(ctx, bytes, BPF_ADJ_ROOM_NET,
				    tcp ? 0 : BPF_F_ADJ_ROOM_FIXED_GSO);
}

/* What was cut already is as large as it is. */
static __always_inline bool room_take(CTX *ctx, __u32 bytes, bool ipv6)
{
	return !bpf_skb_adjust_room(ctx, -(int)bytes, BPF_ADJ_ROOM_NET, BPF_F_ADJ_ROOM_FIXED_GSO);
}

/* From 6.3 on, the family of the packet may change. */
#define ROOM_TO_IPV4 (1ULL << 7)	/* BPF_F_ADJ_ROOM_DECAP_L3_IPV4 */
#define ROOM_TO_IPV6 (1ULL << 8)

/* Takes off what is between the Ethernet header and an inner IP header of protocol `proto`. */
static __always_inline bool room_take_outer(CTX *ctx, __u32 bytes, __be16 proto)
{
	__u64 flags = BPF_F_ADJ_ROOM_FIXED_GSO;
	struct ethhdr *eth;

	if (ctx->protocol != proto)
		flags |= proto == bpf_htons(ETH_P_IPV6) ? ROOM_TO_IPV6 : ROOM_TO_IPV4;
	if (bpf_skb_adjust_room(ctx, -(int)bytes, BPF_ADJ_ROOM_MAC, flags))
		return false;
	eth = (void *)(long)ctx->data;
	if ((void *)(eth + 1) > (void *)(long)ctx->data_end)
		return false;
	eth->h_proto = proto;
	return true;
}

#else

/* Copies the first `words` words of eight bytes, and a rest of 2 or 6; both places may overlap. */
static __always_inline void room_copy(void *to, const void *from, __u32 words, bool long_rest)
{
	packet_word kept[6];
	packet_half half = 0;
	__u16 rest;

#pragma unroll
	for (__u32 i = 0; i < words; i++)
		kept[i] = ((const packet_word *)from)[i];
	from += words * 8;
	if (long_rest)
		half = *(const packet_half *)from;
	rest = *(const __u16 *)(from + (long_rest ? 4 : 0));
#pragma unroll
	for (__u32 i = 0; i < words; i++)
		((packet_word *)to)[i] = kept[i];
	to += words * 8;
	if (long_rest)
		*(packet_half *)to = half;
	*(__u16 *)(to + (long_rest ? 4 : 0)) = rest;
}

/* Moves the Ethernet and the IP header. */
static __always_inline bool room_move(CTX *ctx, __u32 from, __u32 to, bool ipv6)
{
	void *old = (void *)(long)ctx->data + from, *new = (void *)(long)ctx->data + to;
	void *end = (void *)(long)ctx->data_end;

	if (ipv6) {
		if (old + 54 > end || new + 54 > end)
			return false;
		room_copy(new, old, 6, true);
	} else {
		if (old + 34 > end || new + 34 > end)
			return false;
		room_copy(new, old, 4, false);
	}
	return true;
}

static __always_inline bool room_make(CTX *ctx, __u32 bytes, bool ipv6, bool tcp)
{
	return !bpf_xdp_adjust_head(ctx, -(int)bytes) && room_move(ctx, bytes, 0, ipv6);
}

static __always_inline bool room_take(CTX *ctx, __u32 bytes, bool ipv6)
{
	return room_move(ctx, 0, bytes, ipv6) && !bpf_xdp_adjust_head(ctx, bytes);
}

static __always_inline bool room_take_outer(CTX *ctx, __u32 bytes, __be16 proto)
{
	struct ethhdr *eth = (void *)(long)ctx->data, kept;

	if ((void *)(eth + 1) > (void *)(long)ctx->data_end)
		return false;
	kept = *eth;
	kept.h_proto = proto;
	if (bpf_xdp_adjust_head(ctx, bytes))
		return false;
	eth = (void *)(long)ctx->data;
	if ((void *)(eth + 1) > (void *)(long)ctx->data_end)
		return false;
	*eth = kept;
	return true;
}

#endif

#endif
