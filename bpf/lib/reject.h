/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* "Port unreachable" for a packet that nobody takes, from the address that it was for. */
#ifndef PCL_REJECT_H
#define PCL_REJECT_H

#include "checksum.h"
#include "forward.h"
#include "packet.h"
#include "work.h"

/*
 * The IP header with its options or extensions, and the transport's first 8 bytes (RFC 792); a power
 * of two.
 */
#define REJECT_QUOTED 128

/* A number from 1 to that, bounded right before its use, since the verifier of 5.10 forgets it. */
static __always_inline __u32 reject_bytes(__u32 bytes)
{
	bytes--;
	barrier_var(bytes);
	return (bytes & (REJECT_QUOTED - 1)) + 1;
}

struct unreachable {
	__u8 type;
	__u8 code;
	__u16 check;
	__u32 unused;
};

static __always_inline bool reject_ipv4(struct __sk_buff *skb, const struct packet *packet,
					__u32 quoted, __u64 sum)
{
	struct unreachable icmp = { .type = 3, .code = 3 };
	struct iphdr ip = {
		.version = 4,
		.ihl = 5,
		.tot_len = bpf_htons(sizeof(ip) + sizeof(icmp) + quoted),
		.ttl = 64,
		.protocol = IPPROTO_ICMP,
		.saddr = packet->dst.words[3],
		.daddr = packet->src.words[3],
	};

	icmp.check = ~checksum_fold(sum + checksum_sum(&icmp, sizeof(icmp)));
	ip.check = checksum_ipv4(&ip);
	return !bpf_skb_store_bytes(skb, ETHER_LEN, &ip, sizeof(ip), 0) &&
	       !bpf_skb_store_bytes(skb, ETHER_LEN + sizeof(ip), &icmp, sizeof(icmp), 0);
}

static __always_inline bool reject_ipv6(struct __sk_buff *skb, const struct packet *packet,
					__u32 quoted, __u64 sum)
{
	struct unreachable icmp = { .type = 1, .code = 4 };
	struct ipv6hdr ip = {
		.version = 6,
		.payload_len = bpf_htons(sizeof(icmp) + quoted),
		.nexthdr = PROTO_ICMPV6,
		.hop_limit = 64,
	};

	__builtin_memcpy(&ip.saddr, &packet->dst, sizeof(ip.saddr));
	__builtin_memcpy(&ip.daddr, &packet->src, sizeof(ip.daddr));
	sum += bpf_htonl(sizeof(icmp) + quoted) + (__u64)bpf_htonl(PROTO_ICMPV6);
	sum += checksum_sum(&ip.saddr, 32);
	icmp.check = ~checksum_fold(sum + checksum_sum(&icmp, sizeof(icmp)));
	return !bpf_skb_store_bytes(skb, ETHER_LEN, &ip, sizeof(ip), 0) &&
	       !bpf_skb_store_bytes(skb, ETHER_LEN + sizeof(ip), &icmp, sizeof(icmp), 0);
}

/* Turns the packet, as it came, into the answer and sends it back; a tc action. */
__noinline int reject(struct __sk_buff *skb, __u32 to_endpoint)
{
	struct work *work = work_get();
	__u8 quoted[REJECT_QUOTED] = {};
	struct packet *packet;
	struct ethhdr eth;
	__u32 bytes, head;
	__s64 sum;

	if (!work)
		return TC_ACT_SHOT;
	packet = &work->packet;
	bytes = packet->l4_off - ETHER_LEN + 8;
	if (packet->fragment == FRAGMENT_LATER || bytes > REJECT_QUOTED || bytes < 28)
		return TC_ACT_SHOT;
	head = ETHER_LEN + sizeof(struct unreachable) +
	       (packet->ipv6 ? sizeof(struct ipv6hdr) : sizeof(struct iphdr));
	if (bpf_skb_load_bytes(skb, ETHER_LEN, quoted, reject_bytes(bytes)) ||
	    bpf_skb_load_bytes(skb, 0, &eth, sizeof(eth)) ||
	    bpf_skb_change_tail(skb, head + bytes, 0) ||
	    bpf_skb_store_bytes(skb, head, quoted, reject_bytes(bytes), 0))
		return TC_ACT_SHOT;
	sum = bpf_csum_diff(NULL, 0, (__be32 *)quoted, sizeof(quoted), 0);
	if (sum < 0 || !(packet->ipv6 ? reject_ipv6(skb, packet, bytes, sum) :
					reject_ipv4(skb, packet, bytes, sum)))
		return TC_ACT_SHOT;
	return forward_back(skb, &eth, to_endpoint);
}

#endif
