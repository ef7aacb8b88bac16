// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * What translation costs for each packet, in XDP or at tc, by test run.
 *
 * BPF_PROG_TEST_RUN does not restore the packet between repeats. So `wrap` writes its headers as
 * they were, with the ends of the next flow, and calls the program under test through a slot. That
 * is in the figure of the empty program too.
 */

#include <lib/lb_nat.h>

#define HEADS 80

CONFIG(__u32, flows_in_use, "packets go round this many flows, a power of two") = 1;
CONFIG(bool, ipv6, "the packet's family") = false;
CONFIG(bool, back, "it is an answer") = false;

struct head {
	__u64 words[HEADS / 8];
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

SEC(HOOK)
int wrap(CTX *ctx)
{
	__u32 zero = 0, header = ETH_HLEN + (ipv6 ? 40 : 20), flow;
	__u64 *turn = bpf_map_lookup_elem(&turns, &zero);
	struct head *head = bpf_map_lookup_elem(&heads, &zero);
	packet_word *words = (void *)(long)ctx->data;
	__u8 *packet = (void *)words;

	if (!turn || !head || packet + HEADS > (__u8 *)(long)ctx->data_end)
		return FAILED;
	for (int i = 0; i < HEADS / 8; i++)
		words[i] = head->words[i];
	flow = (*turn)++ & (flows_in_use - 1);
	/* The last byte of the source's address, and a port of those that are for flows. */
	packet[ipv6 ? 37 : 29] += flow >> 15;
	*(__be16 *)(packet + header + (back ? 2 : 0)) = bpf_htons(0x8000 | flow);
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
