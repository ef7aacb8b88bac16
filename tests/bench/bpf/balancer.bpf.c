// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * What the load balancer costs for each packet, by test run.
 *
 * BPF_PROG_TEST_RUN does not restore the packet between repeats. So `wrap` takes off what the
 * program under test put around it, gives it the port and address of the next flow, and calls the
 * program through a slot. Taking the header off is in the program's figure, not in the empty one's.
 */

#include <lib/lb_flow.h>

CONFIG(__u32, flows_in_use, "packets go round this many flows, a power of two") = 1;
CONFIG(__u32, length, "of the frame as it was") = 54;
CONFIG(bool, ipv6, "the packet's family") = false;
CONFIG(__u8, client, "last byte of the first client's address") = 7;

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

SEC("xdp")
int wrap(struct xdp_md *ctx)
{
	__u32 zero = 0, header = ipv6 ? 40 : 20, flow;
	__u64 *turn = bpf_map_lookup_elem(&turns, &zero);
	struct ethhdr *eth;
	__u8 *ip;

	if (!turn)
		return XDP_ABORTED;
	if (ctx->data_end - ctx->data > length && bpf_xdp_adjust_head(ctx, header))
		return XDP_ABORTED;
	eth = (void *)(long)ctx->data;
	ip = (void *)(eth + 1);
	if (ip + header + 2 > (__u8 *)(long)ctx->data_end)
		return XDP_ABORTED;
	__builtin_memset(eth, 2, 12);
	eth->h_proto = ipv6 ? bpf_htons(ETH_P_IPV6) : bpf_htons(ETH_P_IP);
	flow = (*turn)++ & (flows_in_use - 1);
	*(__be16 *)(ip + header) = bpf_htons(flow);
	ip[ipv6 ? 23 : 15] = client + (flow >> 16);
	bpf_tail_call(ctx, &under_test, 0);
	return XDP_ABORTED;
}

SEC("xdp")
int empty(struct xdp_md *ctx)
{
	return XDP_TX;
}

/* The least that any flow table with these keys must do: make the key and find the entry. */
SEC("xdp")
int lru_hit(struct xdp_md *ctx)
{
	struct lb_packet packet = {};

	if (!lb_parse(ctx, &packet))
		return XDP_ABORTED;
	return bpf_map_lookup_elem(&lb_flows, &packet.key) ? XDP_TX : XDP_ABORTED;
}

/* The least that any such table must do for a new flow: not find it, and put it in. */
SEC("xdp")
int lru_new(struct xdp_md *ctx)
{
	struct lb_packet packet = {};
	struct lb_flow flow = {};

	if (!lb_parse(ctx, &packet) || bpf_map_lookup_elem(&lb_flows, &packet.key))
		return XDP_ABORTED;
	return bpf_map_update_elem(&lb_pending, &packet.key, &flow, BPF_ANY) ? XDP_ABORTED : XDP_TX;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
