// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Tells of every TCP connection attempt that a device sees, IPv4 and IPv6. */

#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/pkt_cls.h>
#include <linux/tcp.h>

#include <lib/addr.h>

struct attempt {
	struct addr src;
	struct addr dst;
	__be16 sport;
	__be16 dport;
	__u32 ifindex;
};

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 64 * 1024);
} attempts SEC(".maps");

/* Attempts that found the ring full. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} lost SEC(".maps");

/*
 * Where the TCP header is, or 0; fills the addresses. Options of IPv6 are not looked into.
 * A function of its own, so that its argument brings `struct attempt` into the object's BTF.
 */
static __noinline __u32 read_addresses(struct __sk_buff *skb, struct attempt *attempt)
{
	struct ipv6hdr v6;
	struct iphdr v4;

	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		if (bpf_skb_load_bytes(skb, ETH_HLEN, &v4, sizeof(v4)) || v4.protocol != IPPROTO_TCP)
			return 0;
		addr_from_v4(&attempt->src, v4.saddr);
		addr_from_v4(&attempt->dst, v4.daddr);
		return ETH_HLEN + v4.ihl * 4;
	}
	if (skb->protocol == bpf_htons(ETH_P_IPV6)) {
		if (bpf_skb_load_bytes(skb, ETH_HLEN, &v6, sizeof(v6)) || v6.nexthdr != IPPROTO_TCP)
			return 0;
		__builtin_memcpy(&attempt->src, &v6.saddr, sizeof(attempt->src));
		__builtin_memcpy(&attempt->dst, &v6.daddr, sizeof(attempt->dst));
		return ETH_HLEN + sizeof(v6);
	}
	return 0;
}

SEC("tc")
int log_syn(struct __sk_buff *skb)
{
	struct attempt attempt = { .ifindex = skb->ifindex };
	__u32 offset = read_addresses(skb, &attempt), zero = 0;
	struct tcphdr tcp;
	__u64 *count;

	if (!offset || bpf_skb_load_bytes(skb, offset, &tcp, sizeof(tcp)) || !tcp.syn || tcp.ack)
		return TC_ACT_UNSPEC;
	attempt.sport = tcp.source;
	attempt.dport = tcp.dest;
	if (bpf_ringbuf_output(&attempts, &attempt, sizeof(attempt), 0)) {
		count = bpf_map_lookup_elem(&lost, &zero);
		if (count)
			*count += 1;
	}
	return TC_ACT_UNSPEC;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
