/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * One lookup for a plain packet of an established flow.
 *
 * Plain is TCP, UDP or SCTP right behind an IP header without options, no fragment, with hops left,
 * and of TCP no SYN, FIN or RST. Nothing of it is kept but the key, on the stack: filling `struct
 * work` cost as much as the lookup. Whatever is not plain, not established, or due for a report is
 * left to parse.h and path.h, which know all of it.
 */
#ifndef PCL_ESTABLISHED_H
#define PCL_ESTABLISHED_H

#include "flow.h"

/* The head of what IP carries, as far as TCP's flags. */
struct plain_l4 {
	__be16 sport;
	__be16 dport;
	__u8 rest[9];
	__u8 tcp_flags;
};

struct plain {
	struct flow_key key;
	__u64 high;		/* all ones if the source is the high end, else 0 */
	struct ethhdr *eth;	/* readable up to the flags */
	struct flow *translated;	/* its flow, if that is translated */
	bool ipv6;
};

/*
 * All ones if a < b, else 0, without a branch: which end is low differs from flow to flow, so a
 * branch on it is mispredicted every other time (Hacker's Delight, 2-12).
 */
static __always_inline __u64 less_mask(__u64 a, __u64 b)
{
	__u64 borrow = (~a & b) | ((~a | b) & (a - b));

	/* Or the compiler sees a comparison again. */
	barrier_var(borrow);
	return (__s64)borrow >> 63;
}

/* Fills in the key's ports and protocol; false if the packet is not plain. */
static __always_inline bool plain_transport(struct __sk_buff *skb, const struct plain_l4 *l4,
					    __u8 proto, struct plain *plain)
{
	__u16 differ;

	if ((void *)(l4 + 1) > (void *)(long)skb->data_end)
		return false;
	if (proto == IPPROTO_TCP) {
		if (l4->tcp_flags & (TCP_SYN | TCP_FIN | TCP_RST))
			return false;
	} else if (proto != IPPROTO_UDP && proto != PROTO_SCTP) {
		return false;
	}
	differ = (l4->sport ^ l4->dport) & plain->high;
	flow_key_transport(&plain->key, l4->sport ^ differ, l4->dport ^ differ, proto);
	return true;
}

static __always_inline bool plain_ipv4(struct __sk_buff *skb, struct plain *plain)
{
	struct iphdr *ip = (void *)(plain->eth + 1);
	__u32 differ;

	if ((void *)(ip + 1) > (void *)(long)skb->data_end)
		return false;
	if (*(__u8 *)ip != 0x45 || ip->frag_off & bpf_htons(0x3fff) || ip->ttl <= 1 ||
	    ip->saddr == ip->daddr)
		return false;
	/* As addr_less orders two v4-mapped addresses: by the word in which they differ. */
	plain->high = less_mask(ip->daddr, ip->saddr);
	differ = (ip->saddr ^ ip->daddr) & plain->high;
	addr_from_v4(&plain->key.low, ip->saddr ^ differ);
	addr_from_v4(&plain->key.high, ip->daddr ^ differ);
	plain->ipv6 = false;
	return plain_transport(skb, (void *)(ip + 1), ip->protocol, plain);
}

static __always_inline bool plain_ipv6(struct __sk_buff *skb, struct plain *plain)
{
	struct ipv6hdr *ip = (void *)(plain->eth + 1);
	struct addr src, dst;
	__u64 differ;

	if ((void *)(ip + 1) > (void *)(long)skb->data_end)
		return false;
	packet_addr(&src, &ip->saddr);
	packet_addr(&dst, &ip->daddr);
	if (ip->version != 6 || ip->hop_limit <= 1 || addr_is_v4(&src) || addr_is_v4(&dst) ||
	    addr_equal(&src, &dst))
		return false;
	/* As addr_less; the halves that it compares first are seldom equal. */
	if (src.halves[1] != dst.halves[1])
		plain->high = less_mask(dst.halves[1], src.halves[1]);
	else
		plain->high = less_mask(dst.halves[0], src.halves[0]);
	differ = (src.halves[0] ^ dst.halves[0]) & plain->high;
	plain->key.low.halves[0] = src.halves[0] ^ differ;
	plain->key.high.halves[0] = dst.halves[0] ^ differ;
	differ = (src.halves[1] ^ dst.halves[1]) & plain->high;
	plain->key.low.halves[1] = src.halves[1] ^ differ;
	plain->key.high.halves[1] = dst.halves[1] ^ differ;
	plain->ipv6 = true;
	return plain_transport(skb, (void *)(ip + 1), ip->nexthdr, plain);
}

static __always_inline bool plain_key(struct __sk_buff *skb, struct plain *plain)
{
	plain->eth = (void *)(long)skb->data;
	if (skb->protocol == bpf_htons(ETH_P_IP))
		return plain_ipv4(skb, plain);
	return skb->protocol == bpf_htons(ETH_P_IPV6) && plain_ipv6(skb, plain);
}

#endif
