/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Where XDP and tc differ, so that one path serves both. A tc program defines PCL_TC before its
 * first include.
 *
 * Whatever moves or grows the packet makes all pointers into it void: read them again.
 */
#ifndef PCL_CTX_H
#define PCL_CTX_H

#include <linux/if_ether.h>
#include <linux/pkt_cls.h>

#include "checksum.h"
#include "common.h"

/* How much of the frame's head is read directly: Ethernet, the longest IP header, TCP's. */
#define CTX_HEAD 256

#ifdef PCL_TC

#define CTX struct __sk_buff
#define CTX_PASS TC_ACT_OK
#define CTX_DROP TC_ACT_SHOT

/* Makes the head readable; the rest of the frame may lie in pages of its own. */
static __always_inline void ctx_pull(CTX *ctx)
{
	bpf_skb_pull_data(ctx, ctx->len < CTX_HEAD ? ctx->len : CTX_HEAD);
}

static __always_inline __u32 ctx_device(const CTX *ctx)
{
	return ctx->ifindex;
}

static __always_inline __u32 ctx_length(const CTX *ctx)
{
	return ctx->len;
}

/* Bytes of payload in each of the packets that this one is cut into, 0: it goes as it is. */
static __always_inline __u32 ctx_segment(const CTX *ctx)
{
	return ctx->gso_size;
}

/*
 * Makes room for an outer IP header behind the Ethernet header, which is to be written again.
 * TCP that is to be cut is cut smaller, so that the packets still fit; datagrams keep their size.
 */
static __always_inline bool ctx_outer_room(CTX *ctx, __u32 bytes, bool tcp)
{
	__u64 flags = bytes == 20 ? BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 : BPF_F_ADJ_ROOM_ENCAP_L3_IPV6;

	if (!tcp)
		flags |= BPF_F_ADJ_ROOM_FIXED_GSO;
	return !bpf_skb_adjust_room(ctx, bytes, BPF_ADJ_ROOM_MAC, flags);
}

/*
 * A device may have summed up all of the packet behind its Ethernet header. That sum grew by what no
 * checksum in the packet makes up for.
 */
static __always_inline void ctx_sum_add(CTX *ctx, __u64 grown)
{
	bpf_csum_update(ctx, checksum_fold(grown));
}

/*
 * Makes room for an outer frame of Ethernet, IP and UDP headers, `bytes` before this frame, which
 * stays what it is. As above, TCP that is to be cut is cut smaller.
 */
static __always_inline bool ctx_frame_room(CTX *ctx, __u32 bytes, bool ipv6, bool tcp)
{
	struct ethhdr *eth = (void *)(long)ctx->data, kept;
	__u64 flags = BPF_F_ADJ_ROOM_ENCAP_L4_UDP | BPF_F_ADJ_ROOM_ENCAP_L2(sizeof(*eth));

	if ((void *)(eth + 1) > (void *)(long)ctx->data_end)
		return false;
	kept = *eth;
	flags |= ipv6 ? BPF_F_ADJ_ROOM_ENCAP_L3_IPV6 : BPF_F_ADJ_ROOM_ENCAP_L3_IPV4;
	if (!tcp)
		flags |= BPF_F_ADJ_ROOM_FIXED_GSO;
	/* Cards want to know that a frame is inside; kernels before 5.13 cannot be told. */
	if (bpf_skb_adjust_room(ctx, bytes, BPF_ADJ_ROOM_MAC, flags | BPF_F_ADJ_ROOM_ENCAP_L2_ETH) &&
	    bpf_skb_adjust_room(ctx, bytes, BPF_ADJ_ROOM_MAC, flags))
		return false;
	eth = (void *)(long)ctx->data + bytes;
	if ((void *)(eth + 1) > (void *)(long)ctx->data_end)
		return false;
	*eth = kept;
	ctx_sum_add(ctx, checksum_sum(eth, 12) + eth->h_proto);
	return true;
}

/* Leaves the first `keep` bytes of the frame. */
static __always_inline bool ctx_cut(CTX *ctx, __u32 keep)
{
	return !bpf_skb_change_tail(ctx, keep, 0);
}

/* Makes room behind the Ethernet header, which is to be written again. */
static __always_inline bool ctx_room(CTX *ctx, __u32 bytes)
{
	return !bpf_skb_adjust_room(ctx, bytes, BPF_ADJ_ROOM_MAC, BPF_F_ADJ_ROOM_FIXED_GSO);
}

/* The action that sends the packet out of a device. */
static __always_inline int ctx_send(CTX *ctx, __u32 ifindex)
{
	return bpf_redirect(ifindex, 0);
}

#else

#define CTX struct xdp_md
#define CTX_PASS XDP_PASS
#define CTX_DROP XDP_DROP

static __always_inline void ctx_pull(CTX *ctx)
{
}

static __always_inline __u32 ctx_device(const CTX *ctx)
{
	return ctx->ingress_ifindex;
}

static __always_inline __u32 ctx_length(const CTX *ctx)
{
	return ctx->data_end - ctx->data;
}

static __always_inline __u32 ctx_segment(const CTX *ctx)
{
	return 0;
}

static __always_inline bool ctx_outer_room(CTX *ctx, __u32 bytes, bool tcp)
{
	return !bpf_xdp_adjust_head(ctx, -(int)bytes);
}

static __always_inline bool ctx_frame_room(CTX *ctx, __u32 bytes, bool ipv6, bool tcp)
{
	return !bpf_xdp_adjust_head(ctx, -(int)bytes);
}

static __always_inline bool ctx_cut(CTX *ctx, __u32 keep)
{
	long length = ctx->data_end - ctx->data;

	barrier_var(length);	/* pointers are subtracted in 64 bits only */
	return !bpf_xdp_adjust_tail(ctx, (int)(keep - length));
}

static __always_inline bool ctx_room(CTX *ctx, __u32 bytes)
{
	return !bpf_xdp_adjust_head(ctx, -(int)bytes);
}

static __always_inline void ctx_sum_add(CTX *ctx, __u64 grown)
{
}

static __always_inline int ctx_send(CTX *ctx, __u32 ifindex)
{
	return ifindex == ctx->ingress_ifindex ? XDP_TX : bpf_redirect(ifindex, 0);
}

#endif

#endif
