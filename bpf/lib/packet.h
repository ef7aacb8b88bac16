/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What the programs know of a packet, and the one parser that fills it in. */
#ifndef PCL_PACKET_H
#define PCL_PACKET_H

#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>

#include "addr.h"
#include "drop.h"

/* A header that some systems' <linux/in.h> lacks the number of. */
#define PROTO_ICMPV6 58
#define PROTO_SCTP 132

#define TCP_FIN 0x01
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_ACK 0x10

enum fragment {
	FRAGMENT_NONE = 0,
	FRAGMENT_FIRST = 1,
	FRAGMENT_LATER = 2,
};

enum icmp_class {
	ICMP_CLASS_NONE = 0,	/* not ICMP */
	ICMP_CLASS_ECHO = 1,	/* request or reply */
	ICMP_CLASS_ERROR = 2,	/* about another packet, which it quotes */
	ICMP_CLASS_OTHER = 3,
};

struct packet {
	struct addr src;
	struct addr dst;
	__be16 sport;		/* of ICMP: see packet_icmp */
	__be16 dport;
	__u8 proto;
	__u8 tcp_flags;
	__u8 icmp_type;
	__u8 icmp_class;	/* enum icmp_class */
	__u8 fragment;		/* enum fragment */
	__u8 ipv6;
	__u8 direction;		/* enum direction: of the policy that decides, or of the hook */
	__u8 file;		/* where the drop reason was set: enum source_file and line */
	__u16 line;
	__u16 l4_off;		/* from the start of the frame */
	__u32 fragment_id;
	__u32 sender;		/* of its flow: 0 it was sent by who opened, 1 by the other */
	int result;		/* 0 or a drop reason, where a function returns something else */
};

/* `return DROP(packet, FILE_X, reason)`: remembers where a packet's fate was decided. */
#define DROP(packet, file_id, reason) \
	({ (packet)->file = (file_id); (packet)->line = __LINE__; (reason); })

#define ETHER_LEN ((__u32)sizeof(struct ethhdr))
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

static __always_inline __u8 icmp_class_of(const struct packet *packet, __u8 type)
{
	if (packet->proto == IPPROTO_ICMP) {
		if (type == 8 || type == 0)
			return ICMP_CLASS_ECHO;
		if (type == 3 || type == 11 || type == 12)
			return ICMP_CLASS_ERROR;
		return ICMP_CLASS_OTHER;
	}
	if (type == 128 || type == 129)
		return ICMP_CLASS_ECHO;
	return type < 128 ? ICMP_CLASS_ERROR : ICMP_CLASS_OTHER;
}

static __always_inline bool is_echo_reply(const struct packet *packet)
{
	return packet->icmp_class == ICMP_CLASS_ECHO &&
	       packet->icmp_type == (packet->ipv6 ? 129 : 0);
}

/*
 * The ports that stand for an ICMP message in a flow's key. An echo has its identifier on the
 * requester's side and 0 on the other, so a request the other way is another flow; an identifier
 * of 0 counts as 65535, or the sides would look alike. Any other message is a flow of its own
 * direction and type; its numbers are never an echo's.
 */
static __always_inline void packet_icmp(struct packet *packet, __u8 type, __be16 echo_id)
{
	packet->icmp_type = type;
	packet->icmp_class = icmp_class_of(packet, type);
	if (packet->icmp_class == ICMP_CLASS_ECHO) {
		__be16 id = echo_id ?: 0xffff;

		packet->sport = is_echo_reply(packet) ? 0 : id;
		packet->dport = is_echo_reply(packet) ? id : 0;
	} else {
		packet->sport = bpf_htons(0x100 | type);
		packet->dport = bpf_htons(0x200 | type);
	}
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
	return DROP(packet, FILE_PACKET, DROP_UNKNOWN_L4);
}

/* Walks IPv6 extension headers (RFC 8200, 4) from `next` at `off`; fills in proto, l4_off, fragment. */
static __always_inline int packet_skip_extensions(struct __sk_buff *skb, struct packet *packet,
						  __u8 next, __u32 off)
{
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
	return packet_skip_extensions(skb, packet, ip->nexthdr, ETHER_LEN + sizeof(*ip));
}

/* Fills in `packet` from an Ethernet frame that carries IPv4 or IPv6; 0 or a drop reason. */
static __always_inline int packet_parse(struct __sk_buff *skb, struct packet *packet)
{
	int reason;

	if (skb->vlan_present)
		return DROP(packet, FILE_PACKET, DROP_VLAN);
	switch (skb->protocol) {
	case bpf_htons(ETH_P_IP):
		reason = packet_parse_ipv4(skb, packet);
		break;
	case bpf_htons(ETH_P_IPV6):
		reason = packet_parse_ipv6(skb, packet);
		break;
	case bpf_htons(ETH_P_8021Q):
	case bpf_htons(ETH_P_8021AD):
		return DROP(packet, FILE_PACKET, DROP_VLAN);
	default:
		return DROP(packet, FILE_PACKET, DROP_UNSUPPORTED_L3);
	}
	if (reason || packet->fragment == FRAGMENT_LATER)
		return reason;
	return packet_parse_l4(skb, packet);
}

#endif
