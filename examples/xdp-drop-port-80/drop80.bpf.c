// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Drops TCP to port 80, IPv4 and IPv6, and counts what it drops and passes. */

#include <stdbool.h>
#include <stddef.h>
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

const volatile __u16 port = 80;

struct verdicts {
	__u64 passed;
	__u64 dropped;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct verdicts);
} counters SEC(".maps");

/* The TCP header, or NULL: another protocol, a later fragment, or a frame that is too short. */
static __always_inline struct tcphdr *find_tcp(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct ethhdr *eth = data;
	struct tcphdr *tcp;

	if ((void *)(eth + 1) > end)
		return NULL;
	if (eth->h_proto == bpf_htons(ETH_P_IP)) {
		struct iphdr *ip = (void *)(eth + 1);

		if ((void *)(ip + 1) > end || ip->ihl < 5 || ip->protocol != IPPROTO_TCP)
			return NULL;
		if (ip->frag_off & bpf_htons(0x1fff))
			return NULL;
		tcp = (void *)ip + ip->ihl * 4;
	} else if (eth->h_proto == bpf_htons(ETH_P_IPV6)) {
		struct ipv6hdr *ip = (void *)(eth + 1);

		if ((void *)(ip + 1) > end || ip->nexthdr != IPPROTO_TCP)
			return NULL;
		tcp = (void *)(ip + 1);
	} else {
		return NULL;
	}
	return (void *)(tcp + 1) > end ? NULL : tcp;
}

SEC("xdp")
int xdp_drop_tcp_port_80(struct xdp_md *ctx)
{
	struct tcphdr *tcp = find_tcp(ctx);
	__u32 zero = 0;
	struct verdicts *counter = bpf_map_lookup_elem(&counters, &zero);
	bool drop = tcp && tcp->dest == bpf_htons(port);

	if (counter) {
		counter->dropped += drop;
		counter->passed += !drop;
	}
	return drop ? XDP_DROP : XDP_PASS;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
