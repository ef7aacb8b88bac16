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
	__be16 ports[2];	/* source, destination */
	__u8 rest[9];
	__u8 tcp_flags;
};

/* What is known of a plain packet besides its flow's key. */
struct plain {
	__u64 high;		/* the source's end: all ones if it is the high one, else 0 */
	struct ethhdr *eth;	/* readable up to the flags */
	bool ipv6;
};

/*
 * All ones if a < b, else 0, of numbers below 2^63. Without a branch: which end is low differs from
 * flow to flow, so a branch on it is mispredicted every other time.
 */
static __always_inline __u64 less_mask(__u64 a, __u64 b)
{
	__u64 difference = a - b;

	/* Or the compiler sees a comparison again. */
	barrier_var(difference);
	return (__s64)difference >> 63;
}

/* Fills in the key's ports and protocol; false if the packet is not plain. */
static __always_inline bool plain_transport(const struct plain_l4 *l4, __u8 proto,
					    struct flow_key *key, __u64 high)
{
	__u32 ports = *(const packet_half *)(const void *)l4->ports, turn = high & 16;

	if (__builtin_expect(proto == IPPROTO_TCP, true)) {
		if (l4->tcp_flags & (TCP_SYN | TCP_FIN | TCP_RST))
			return false;
	} else if (proto != IPPROTO_UDP && proto != PROTO_SCTP) {
		return false;
	}
	/* Exchanges the ports if the source's is the high end's. */
	flow_key_transport(key, ports << turn | ports >> turn, proto);
	return true;
}

static __always_inline bool plain_ipv4(struct __sk_buff *skb, struct flow_key *key,
				       struct plain *plain)
{
	struct iphdr *ip = (void *)(plain->eth + 1);
	struct plain_l4 *l4 = (void *)(ip + 1);
	__u32 src, dst, differ;

	if ((void *)(l4 + 1) > (void *)(long)skb->data_end)
		return false;
	src = ip->saddr;
	dst = ip->daddr;
	if (*(__u8 *)ip != 0x45 || ip->frag_off & bpf_htons(0x3fff) || ip->ttl <= 1 || src == dst)
		return false;
	/* As addr_less orders two v4-mapped addresses: by the half in which they differ. */
	plain->high = less_mask(dst, src);
	differ = (src ^ dst) & plain->high;
	addr_from_v4(&key->low, src ^ differ);
	addr_from_v4(&key->high, dst ^ differ);
	plain->ipv6 = false;
	return plain_transport(l4, ip->protocol, key, plain->high);
}

static __always_inline bool plain_ipv6(struct __sk_buff *skb, struct flow_key *key,
				       struct plain *plain)
{
	struct ipv6hdr *ip = (void *)(plain->eth + 1);
	struct plain_l4 *l4 = (void *)(ip + 1);
	struct addr src, dst;
	__u64 differ;

	if ((void *)(l4 + 1) > (void *)(long)skb->data_end)
		return false;
	packet_addr(&src, &ip->saddr);
	packet_addr(&dst, &ip->daddr);
	if (ip->version != 6 || ip->hop_limit <= 1 || addr_is_v4(&src) || addr_is_v4(&dst))
		return false;
	differ = src.halves[1] ^ dst.halves[1];
	/* As addr_less: by the halves that it compares first, if these differ in more than a bit. */
	if (__builtin_expect(differ > 1, true))
		plain->high = less_mask(dst.halves[1] >> 1, src.halves[1] >> 1);
	else if (addr_equal(&src, &dst))
		return false;
	else
		plain->high = -(__u64)addr_less(&dst, &src);
	differ &= plain->high;
	key->low.halves[1] = src.halves[1] ^ differ;
	key->high.halves[1] = dst.halves[1] ^ differ;
	differ = (src.halves[0] ^ dst.halves[0]) & plain->high;
	key->low.halves[0] = src.halves[0] ^ differ;
	key->high.halves[0] = dst.halves[0] ^ differ;
	plain->ipv6 = true;
	return plain_transport(l4, ip->nexthdr, key, plain->high);
}

static __always_inline bool plain_key(struct __sk_buff *skb, struct flow_key *key,
				      struct plain *plain)
{
	plain->eth = (void *)(long)skb->data;
	if (skb->protocol == bpf_htons(ETH_P_IP))
		return plain_ipv4(skb, key, plain);
	return skb->protocol == bpf_htons(ETH_P_IPV6) && plain_ipv6(skb, key, plain);
}

#endif
