/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The one parser: Ethernet, IPv4 or IPv6 with its extensions, and the head of what they carry. */
#ifndef PCL_PARSE_H
#define PCL_PARSE_H

#include "work.h"

#define IPV6_EXTENSIONS 6

/* Asks that the first `bytes` of the frame can be read directly; false if it is shorter. */
static __always_inline bool packet_readable(struct __sk_buff *skb, __u32 bytes)
{
	if ((void *)(long)skb->data + bytes <= (void *)(long)skb->data_end)
		return true;
	if (bpf_skb_pull_data(skb, bytes))
		return false;
	return (void *)(long)skb->data + bytes <= (void *)(long)skb->data_end;
}

/* Protocols without ports that policy can name. */
static __always_inline bool protocol_extended(__u8 proto)
{
	switch (proto) {
	case IPPROTO_IGMP:
	case IPPROTO_IPIP:
	case IPPROTO_IPV6:
	case IPPROTO_GRE:
	case IPPROTO_ESP:
	case IPPROTO_AH:
	case PROTO_VRRP:
		return extended_protocols;
	}
	return false;
}

/* Reads ports, TCP flags or the ICMP type at `packet->l4_off`. */
static __always_inline int packet_parse_l4(struct __sk_buff *skb, struct packet *packet)
{
	__u32 off = packet->l4_off;
	__u8 *l4;

	if (off > 512 || !packet_readable(skb, off + (packet->proto == IPPROTO_TCP ? 20 : 8)))
		return DROP(packet, FILE_PACKET, DROP_INVALID_PACKET);
	l4 = (void *)(long)skb->data + off;
	/* Or the compiler computes the pointer again, and the verifier forgets that it was checked. */
	barrier_var(l4);
	if (l4 + 8 > (__u8 *)(long)skb->data_end)
		return DROP(packet, FILE_PACKET, DROP_INVALID_PACKET);

	switch (packet->proto) {
	case IPPROTO_TCP:
		packet->sport = *(__be16 *)l4;
		packet->dport = *(__be16 *)(l4 + 2);
		if (l4 + 20 > (__u8 *)(long)skb->data_end)
			return DROP(packet, FILE_PACKET, DROP_INVALID_PACKET);
		packet->tcp_flags = l4[13];
		return 0;
	case IPPROTO_UDP:
	case PROTO_SCTP:
		packet->sport = *(__be16 *)l4;
		packet->dport = *(__be16 *)(l4 + 2);
		return 0;
	case IPPROTO_ICMP:
		if (packet->ipv6)
			return DROP(packet, FILE_PACKET, DROP_UNKNOWN_L4);
		packet_icmp(packet, l4[0], *(__be16 *)(l4 + 4));
		return 0;
	case PROTO_ICMPV6:
		if (!packet->ipv6)
			return DROP(packet, FILE_PACKET, DROP_UNKNOWN_L4);
		packet_icmp(packet, l4[0], *(__be16 *)(l4 + 4));
		return 0;
	}
	return protocol_extended(packet->proto) ? 0 : DROP(packet, FILE_PACKET, DROP_UNKNOWN_L4);
}

/*
 * Walks IPv6 extension headers (RFC 8200, 4), of which the first is a `next`; fills in proto, l4_off
 * and fragment. Global, or all that comes after would be verified for each number of headers.
 */
__noinline int packet_skip_extensions(struct __sk_buff *skb, __u32 next)
{
	__u32 off = ETHER_LEN + sizeof(struct ipv6hdr);
	struct work *work = work_get();
	struct packet *packet;

	if (!work)
		return DROP_INVALID_PACKET;
	packet = &work->packet;
	for (int i = 0; i < IPV6_EXTENSIONS; i++) {
		__u8 header[8];

		if (next != 0 && next != 43 && next != 60 && next != 44 && next != 51) {
			packet->proto = next;
			packet->l4_off = off;
			return next == 59 ? DROP(packet, FILE_PACKET, DROP_UNKNOWN_L4) : 0;
		}
		if (bpf_skb_load_bytes(skb, off, header, sizeof(header)))
			return DROP(packet, FILE_PACKET, DROP_IPV6_EXTENSION);
		if (next == 44) {
			__u16 place = bpf_ntohs(*(__be16 *)&header[2]);

			packet->fragment_id = *(__u32 *)&header[4];
			if (place >> 3)
				packet->fragment = FRAGMENT_LATER;
			else if (place & 1)
				packet->fragment = FRAGMENT_FIRST;
			off += 8;
			next = header[0];
			if (packet->fragment == FRAGMENT_LATER) {
				/* What follows is payload; only the fragment map knows the ports. */
				packet->proto = next;
				packet->l4_off = off;
				return 0;
			}
			continue;
		}
		off += next == 51 ? (header[1] + 2) * 4 : (header[1] + 1) * 8;
		next = header[0];
	}
	return DROP(packet, FILE_PACKET, DROP_IPV6_EXTENSION);
}

static __always_inline int packet_parse_ipv4(struct __sk_buff *skb, struct packet *packet)
{
	struct iphdr *ip;
	__u16 place;

	if (!packet_readable(skb, ETHER_LEN + sizeof(*ip)))
		return DROP(packet, FILE_PACKET, DROP_INVALID_PACKET);
	ip = (void *)(long)skb->data + ETHER_LEN;
	if ((void *)(ip + 1) > (void *)(long)skb->data_end)
		return DROP(packet, FILE_PACKET, DROP_INVALID_PACKET);
	if (ip->version != 4 || ip->ihl < 5)
		return DROP(packet, FILE_PACKET, DROP_INVALID_PACKET);

	addr_from_v4(&packet->src, ip->saddr);
	addr_from_v4(&packet->dst, ip->daddr);
	packet->proto = ip->protocol;
	packet->l4_off = ETHER_LEN + ip->ihl * 4;
	place = bpf_ntohs(ip->frag_off);
	if (place & 0x3fff) {
		packet->fragment = place & 0x1fff ? FRAGMENT_LATER : FRAGMENT_FIRST;
		packet->fragment_id = ip->id;
	}
	return 0;
}

static __always_inline int packet_parse_ipv6(struct __sk_buff *skb, struct packet *packet)
{
	struct ipv6hdr *ip;

	packet->ipv6 = 1;
	if (!packet_readable(skb, ETHER_LEN + sizeof(*ip)))
		return DROP(packet, FILE_PACKET, DROP_INVALID_PACKET);
	ip = (void *)(long)skb->data + ETHER_LEN;
	if ((void *)(ip + 1) > (void *)(long)skb->data_end)
		return DROP(packet, FILE_PACKET, DROP_INVALID_PACKET);
	if (ip->version != 6)
		return DROP(packet, FILE_PACKET, DROP_INVALID_PACKET);

	__builtin_memcpy(&packet->src, &ip->saddr, sizeof(packet->src));
	__builtin_memcpy(&packet->dst, &ip->daddr, sizeof(packet->dst));
	/* Keys hold IPv4 as v4-mapped, so such an address on the wire would pass for IPv4's. */
	if (addr_is_v4(&packet->src) || addr_is_v4(&packet->dst))
		return DROP(packet, FILE_PACKET, DROP_V4_MAPPED);
	return packet_skip_extensions(skb, ip->nexthdr);
}

/*
 * Fills in `work->packet` from an Ethernet frame that carries IPv4 or IPv6; 0 or a drop reason.
 * `from` and `direction` are the caller's to set.
 */
__noinline int packet_parse(struct __sk_buff *skb)
{
	struct work *work = work_get();
	struct packet *packet;
	int reason;

	if (!work)
		return DROP_INVALID_PACKET;
	packet = &work->packet;

	__builtin_memset(packet, 0, sizeof(*packet));
	if (skb->vlan_present || skb->protocol == bpf_htons(ETH_P_8021Q) ||
	    skb->protocol == bpf_htons(ETH_P_8021AD))
		return DROP(packet, FILE_PACKET, DROP_VLAN);
	switch (skb->protocol) {
	case bpf_htons(ETH_P_IP):
		reason = packet_parse_ipv4(skb, packet);
		break;
	case bpf_htons(ETH_P_IPV6):
		reason = packet_parse_ipv6(skb, packet);
		break;
	default:
		return DROP(packet, FILE_PACKET, DROP_UNSUPPORTED_L3);
	}
	if (reason)
		return reason;
	/* The stack takes such a packet where `route_localnet` is on. */
	if (addr_is_loopback(&packet->src))
		return DROP(packet, FILE_PACKET, DROP_INVALID_SOURCE);
	if (addr_is_loopback(&packet->dst))
		return DROP(packet, FILE_PACKET, DROP_UNKNOWN_TARGET);
	if (packet->fragment == FRAGMENT_LATER)
		return 0;
	return packet_parse_l4(skb, packet);
}

#endif
