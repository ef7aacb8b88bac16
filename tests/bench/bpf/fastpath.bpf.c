// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * What a program costs for each packet, by test run.
 *
 * BPF_PROG_TEST_RUN does not restore the packet between repeats. So `wrap` undoes what the program
 * under test did to it, gives it the ports of the next flow, and calls the program through a slot.
 * The same with an empty program in the slot is what the wrapper itself costs.
 *
 * Its stores are as wide as the loads that follow: a CPU that reads what was just written in parts
 * waits for the cache, which no packet from a device makes it do.
 */

#include <linux/tcp.h>

#include <lib/flow.h>
#include <lib/result.h>

CONFIG(__u32, flows_in_use, "packets go round this many flows, a power of two") = 1;
CONFIG(bool, ipv6, "the packet's family") = false;
CONFIG(bool, answers, "the packet is of the flow's other end: its destination's port differs") = false;
CONFIG(__u16, server_port, "the lowest port of the flow's other end") = 80;
CONFIG(bool, translated, "one address of the packet is not any more what it was") = false;
CONFIG(__u64, address[2], "that address, of IPv4 in the last word, as it lies in the packet") = {};
CONFIG(__be16, ipv4_check, "checksum of the IPv4 header as it was") = 0;

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

/* Undoes a translation. */
static __always_inline void restore_address(void *place)
{
	if (ipv6) {
		((packet_word *)place)[0] = address[0];
		((packet_word *)place)[1] = address[1];
	} else {
		*(packet_half *)place = address[1] >> 32;
	}
}

/* Where the TCP header is, after the packet was made as it first was; NULL if it is not there. */
static __always_inline struct tcphdr *restore(struct __sk_buff *skb)
{
	struct ethhdr *eth = (void *)(long)skb->data;
	void *end = (void *)(long)skb->data_end;
	struct tcphdr *tcp;

	if (ipv6) {
		struct ipv6hdr *ip = (void *)(eth + 1);

		tcp = (void *)(ip + 1);
		if ((void *)(tcp + 1) > end)
			return NULL;
		ip->hop_limit = 64;
		if (translated)
			restore_address(answers ? &ip->saddr : &ip->daddr);
	} else {
		struct iphdr *ip = (void *)(eth + 1);

		tcp = (void *)(ip + 1);
		if ((void *)(tcp + 1) > end)
			return NULL;
		ip->ttl = 64;
		ip->check = ipv4_check;
		if (translated)
			restore_address(answers ? &ip->saddr : &ip->daddr);
	}
	__builtin_memset(eth->h_dest, 2, 12);
	skb->mark = 0;
	return tcp;
}

SEC("tc")
int wrap(struct __sk_buff *skb)
{
	__u32 zero = 0;
	__u64 *turn = bpf_map_lookup_elem(&turns, &zero);
	struct tcphdr *tcp = restore(skb);
	__u32 flow;
	__u16 source, dest;

	if (!turn || !tcp)
		return TC_ACT_SHOT;
	flow = (*turn)++ & (flows_in_use - 1);
	source = answers ? server_port : flow;
	dest = answers ? flow : server_port + (flow >> 16);
	*(packet_half *)tcp = bpf_htonl(source << 16 | dest);
	bpf_tail_call(skb, &under_test, 0);
	return TC_ACT_SHOT;
}

SEC("tc")
int empty(struct __sk_buff *skb)
{
	return TC_ACT_OK;
}

/* The least that any flow table with these keys must do: make the key and find the entry. */
SEC("tc")
int lru_hit(struct __sk_buff *skb)
{
	struct ethhdr *eth = (void *)(long)skb->data;
	void *end = (void *)(long)skb->data_end;
	struct packet packet = { .proto = IPPROTO_TCP };
	struct flow_key key;
	struct tcphdr *tcp;

	if (ipv6) {
		struct ipv6hdr *ip = (void *)(eth + 1);

		tcp = (void *)(ip + 1);
		if ((void *)(tcp + 1) > end)
			return TC_ACT_SHOT;
		__builtin_memcpy(&packet.src, &ip->saddr, 16);
		__builtin_memcpy(&packet.dst, &ip->daddr, 16);
	} else {
		struct iphdr *ip = (void *)(eth + 1);

		tcp = (void *)(ip + 1);
		if ((void *)(tcp + 1) > end)
			return TC_ACT_SHOT;
		addr_from_v4(&packet.src, ip->saddr);
		addr_from_v4(&packet.dst, ip->daddr);
	}
	packet.sport = tcp->source;
	packet.dport = tcp->dest;
	flow_key_of(&packet, &key);
	return bpf_map_lookup_elem(&flows, &key) ? TC_ACT_OK : TC_ACT_SHOT;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
