/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* An ICMP error belongs to the flow of the packet that it quotes. */
#ifndef PCL_ICMP_H
#define PCL_ICMP_H

#include "packet.h"

/*
 * Fills in `about` as a packet of the quoted flow that goes the error's way: from the quoted
 * destination to the quoted source. False if the quote is too short or not one that we track.
 */
static __always_inline bool icmp_quoted(struct __sk_buff *skb, const struct packet *error,
					struct packet *about)
{
	__u32 off = error->l4_off + 8;
	__u8 l4[8];

	about->ipv6 = error->ipv6;
	if (error->ipv6) {
		struct ipv6hdr ip;

		if (bpf_skb_load_bytes(skb, off, &ip, sizeof(ip)))
			return false;
		__builtin_memcpy(&about->dst, &ip.saddr, sizeof(about->dst));
		__builtin_memcpy(&about->src, &ip.daddr, sizeof(about->src));
		about->proto = ip.nexthdr;
		off += sizeof(ip);
	} else {
		struct iphdr ip;

		if (bpf_skb_load_bytes(skb, off, &ip, sizeof(ip)))
			return false;
		addr_from_v4(&about->dst, ip.saddr);
		addr_from_v4(&about->src, ip.daddr);
		about->proto = ip.protocol;
		off += ip.ihl * 4;
	}
	/* The quoted packet was sent by whom the error is for; anything else is forged. */
	if (!addr_equal(&about->dst, &error->dst))
		return false;
	if (bpf_skb_load_bytes(skb, off, l4, sizeof(l4)))
		return false;

	switch (about->proto) {
	case IPPROTO_TCP:
	case IPPROTO_UDP:
	case PROTO_SCTP:
		about->sport = *(__be16 *)&l4[2];
		about->dport = *(__be16 *)&l4[0];
		return true;
	case IPPROTO_ICMP:
	case PROTO_ICMPV6:
		/* The error goes the way of the quoted message's counterpart: 8 and 0, 128 and 129. */
		packet_icmp(about, l4[0] ^ (about->ipv6 ? 1 : 8), *(__be16 *)&l4[4]);
		return about->icmp_class == ICMP_CLASS_ECHO;
	}
	return false;
}

#endif
