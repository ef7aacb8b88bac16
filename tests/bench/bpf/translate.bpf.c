// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * What translation and DSR cost for each packet, in XDP or at tc, by test run.
 *
 * BPF_PROG_TEST_RUN does not restore the packet between repeats. So `wrap` writes its headers as
 * they were, with the ends of the next flow, and calls the program under test through a slot. That
 * is in the figure of the empty program too.
 *
 * It writes words that hold whole fields: a CPU that reads what was just written in parts waits for
 * the cache, which no packet from a device makes it do.
 */

#include <lib/lb_nat.h>

#define WORDS 8

CONFIG(__u32, flows_in_use, "packets go round this many flows, a power of two") = 1;
CONFIG(bool, ipv6, "the packet's family") = false;
CONFIG(bool, back, "it is an answer") = false;
CONFIG(__u32, length, "of the frame, where it changes; in XDP alone") = 0;

struct head {
	__u64 words[WORDS];	/* of the IP header and what follows */
	__u8 ethernet[16];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct head);
} heads SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} under_test SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} turns SEC(".maps");

#ifdef PCL_TC
#define HOOK "tc"
#define FAILED TC_ACT_SHOT
#define SENT TC_ACT_REDIRECT
#else
#define HOOK "xdp"
#define FAILED XDP_ABORTED
#define SENT XDP_TX
#endif

/* The last byte of the source's address, and one port of those that are for flows. */
static __always_inline __u64 next_flow(__u32 word, __u64 was, __u32 flow)
{
	__u32 address = ipv6 ? 2 : 1, ports = ipv6 ? 5 : 2, bits = (ipv6 ? 0 : 32) + (back ? 16 : 0);

	if (flows_in_use == 1)
		return was;
	if (word == address)
		return was + ((__u64)(flow >> 15) << 56);
	if (word == ports)
		return (was & ~(0xffffULL << bits)) | (__u64)bpf_htons(0x8000 | flow) << bits;
	return was;
}

SEC(HOOK)
int wrap(CTX *ctx)
{
	__u32 zero = 0, flow;
	__u64 *turn = bpf_map_lookup_elem(&turns, &zero);
	struct head *head = bpf_map_lookup_elem(&heads, &zero);
	__u8 *packet;

#ifndef PCL_TC
	if (length && ctx_length(ctx) != length &&
	    bpf_xdp_adjust_head(ctx, (int)(ctx_length(ctx) - length)))
		return FAILED;
#endif
	packet = (void *)(long)ctx->data;
	if (!turn || !head || packet + ETH_HLEN + 8 * WORDS > (__u8 *)(long)ctx->data_end)
		return FAILED;
	flow = (*turn)++ & (flows_in_use - 1);
	*(packet_word *)packet = *(packet_word *)head->ethernet;
	*(packet_half *)(packet + 8) = *(packet_half *)(head->ethernet + 8);
	*(__u16 *)(packet + 12) = *(__u16 *)(head->ethernet + 12);
#pragma unroll
	for (int i = 0; i < WORDS; i++)
		*(packet_word *)(packet + ETH_HLEN + 8 * i) = next_flow(i, head->words[i], flow);
	bpf_tail_call(ctx, &under_test, 0);
	return FAILED;
}

SEC(HOOK)
int empty(CTX *ctx)
{
	return SENT;
}

/* The least that any table of flows must do: make the key and find the entry. */
SEC(HOOK)
int lru_hit(CTX *ctx)
{
	struct lb_packet packet = {};
	struct lb_nat_key key = {};

	if (!lb_parse(ctx, &packet))
		return FAILED;
	if (!back)
		return bpf_map_lookup_elem(&lb_flows, &packet.key) ? SENT : FAILED;
	key.backend = packet.key.client;
	key.backend_port = packet.key.client_port;
	key.nat_port = packet.key.service_port;
	key.proto = packet.key.proto;
	return bpf_map_lookup_elem(&lb_nat, &key) ? SENT : FAILED;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
