/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Every neighbour of an endpoint is its host-side device: ARP (RFC 826) and NDP (RFC 4861) from BPF. */
#ifndef PCL_NEIGHBOUR_H
#define PCL_NEIGHBOUR_H

#include "endpoint.h"
#include "parse.h"
#include "result.h"

/* Not <linux/if_arp.h>, which wants the C library. */
#define ARPOP_REQUEST 1
#define ARPOP_REPLY 2

struct arp_ipv4 {
	__be16 hardware;
	__be16 protocol;
	__u8 hardware_length;
	__u8 protocol_length;
	__be16 operation;
	__u8 sender_mac[6];
	__u8 sender_ip[4];
	__u8 target_mac[6];
	__u8 target_ip[4];
} __attribute__((packed));

#define ND_SOLICITATION 135
#define ND_ADVERTISEMENT 136
#define ND_SOLICITED_OVERRIDE bpf_htonl(0x60000000)

struct nd_message {
	__u8 type;
	__u8 code;
	__be16 checksum;
	__be32 flags;
	struct addr target;
	__u8 option;		/* 1 source, 2 target link-layer address */
	__u8 option_length;	/* in units of 8 bytes */
	__u8 mac[6];
} __attribute__((packed));

/* Answers an endpoint's ARP request for any address but its own; lets its replies to the stack pass. */
__noinline int neighbour_arp(struct __sk_buff *skb)
{
	struct work *work = work_get();
	struct packet *packet;
	struct ethhdr *eth;
	struct arp_ipv4 *arp;
	struct device *device = device_lookup(skb->ifindex);
	__u8 asked[4];

	if (!work)
		return DROP_UNSUPPORTED_L3;
	packet = &work->packet;
	__builtin_memset(packet, 0, sizeof(*packet));
	packet->direction = DIRECTION_EGRESS;
	if (!device)
		return DROP(packet, FILE_NEIGHBOUR, DROP_ENDPOINT_NOT_READY);
	if (!packet_readable(skb, ETHER_LEN + sizeof(*arp)))
		return DROP(packet, FILE_NEIGHBOUR, DROP_INVALID_PACKET);
	eth = (void *)(long)skb->data;
	arp = (void *)(eth + 1);
	if ((void *)(arp + 1) > (void *)(long)skb->data_end)
		return DROP(packet, FILE_NEIGHBOUR, DROP_INVALID_PACKET);
	if (arp->protocol != bpf_htons(ETH_P_IP) || arp->hardware_length != 6 ||
	    arp->protocol_length != 4)
		return DROP(packet, FILE_NEIGHBOUR, DROP_UNSUPPORTED_L3);
	addr_from_v4(&packet->src, *(__be32 *)arp->sender_ip);
	addr_from_v4(&packet->dst, *(__be32 *)arp->target_ip);

	if (arp->operation == bpf_htons(ARPOP_REPLY)) {
		if (!endpoint_owns(skb->ifindex, &packet->src))
			return DROP(packet, FILE_NEIGHBOUR, DROP_INVALID_SOURCE);
		return TC_ACT_OK;
	}
	/* A probe or an announcement of its own address wants silence. */
	if (arp->operation != bpf_htons(ARPOP_REQUEST) || *(__u32 *)arp->sender_ip == 0 ||
	    addr_equal(&packet->src, &packet->dst))
		return DROP(packet, FILE_NEIGHBOUR, DROP_UNSUPPORTED_L3);

	__builtin_memcpy(asked, arp->target_ip, 4);
	__builtin_memcpy(arp->target_mac, arp->sender_mac, 6);
	__builtin_memcpy(arp->target_ip, arp->sender_ip, 4);
	__builtin_memcpy(arp->sender_mac, device->node_mac, 6);
	__builtin_memcpy(arp->sender_ip, asked, 4);
	arp->operation = bpf_htons(ARPOP_REPLY);
	__builtin_memcpy(eth->h_dest, eth->h_source, 6);
	__builtin_memcpy(eth->h_source, device->node_mac, 6);
	return bpf_redirect(skb->ifindex, 0);
}

static __always_inline __u16 csum_fold(__s64 sum)
{
	__u32 folded = sum;

	folded = (folded & 0xffff) + (folded >> 16);
	folded = (folded & 0xffff) + (folded >> 16);
	return ~folded;
}

/* Turns a solicitation into the advertisement that answers it, and sends it back. */
static __always_inline int neighbour_advertise(struct __sk_buff *skb, struct packet *packet,
					       const struct device *device)
{
	struct nd_message nd = {};
	struct addr from, to = packet->src;
	__be32 pseudo[2] = { bpf_htonl(sizeof(nd)), bpf_htonl(PROTO_ICMPV6) };
	__be16 length = bpf_htons(sizeof(nd));
	struct ethhdr eth;
	__s64 sum;

	if (bpf_skb_load_bytes(skb, packet->l4_off + offsetof(struct nd_message, target), &from,
			       sizeof(from)) ||
	    bpf_skb_load_bytes(skb, 0, &eth, sizeof(eth)))
		return DROP(packet, FILE_NEIGHBOUR, DROP_INVALID_PACKET);
	/* Duplicate address detection asks from "::", and for its own address: silence means free. */
	if ((to.halves[0] | to.halves[1]) == 0 || addr_equal(&from, &to))
		return DROP(packet, FILE_NEIGHBOUR, DROP_FORBIDDEN_ICMPV6);
	if (packet->l4_off != ETHER_LEN + sizeof(struct ipv6hdr))
		return DROP(packet, FILE_NEIGHBOUR, DROP_FORBIDDEN_ICMPV6);

	nd.type = ND_ADVERTISEMENT;
	nd.flags = ND_SOLICITED_OVERRIDE;
	nd.target = from;
	nd.option = 2;
	nd.option_length = 1;
	__builtin_memcpy(nd.mac, device->node_mac, 6);
	sum = bpf_csum_diff(NULL, 0, (__be32 *)&from, sizeof(from), 0);
	sum = bpf_csum_diff(NULL, 0, (__be32 *)&to, sizeof(to), sum);
	sum = bpf_csum_diff(NULL, 0, pseudo, sizeof(pseudo), sum);
	sum = bpf_csum_diff(NULL, 0, (__be32 *)&nd, sizeof(nd), sum);
	nd.checksum = csum_fold(sum);
	__builtin_memcpy(eth.h_dest, eth.h_source, 6);
	__builtin_memcpy(eth.h_source, device->node_mac, 6);

	if (bpf_skb_change_tail(skb, packet->l4_off + sizeof(nd), 0) ||
	    bpf_skb_store_bytes(skb, 0, &eth, sizeof(eth), 0) ||
	    bpf_skb_store_bytes(skb, ETHER_LEN + offsetof(struct ipv6hdr, payload_len), &length,
				sizeof(length), 0) ||
	    bpf_skb_store_bytes(skb, ETHER_LEN + offsetof(struct ipv6hdr, saddr), &from,
				sizeof(from), 0) ||
	    bpf_skb_store_bytes(skb, ETHER_LEN + offsetof(struct ipv6hdr, daddr), &to,
				sizeof(to), 0) ||
	    bpf_skb_store_bytes(skb, packet->l4_off, &nd, sizeof(nd), 0))
		return DROP(packet, FILE_NEIGHBOUR, DROP_WRITE_ERROR);
	return bpf_redirect(skb->ifindex, 0);
}

/* Whether an advertisement is the endpoint's own: for its address, from it. */
static __always_inline bool neighbour_owns(struct __sk_buff *skb, const struct packet *packet)
{
	struct endpoint *endpoint = endpoint_lookup(&packet->src);
	struct addr target;

	if (!endpoint || endpoint->ifindex != skb->ifindex)
		return false;
	if (bpf_skb_load_bytes(skb, packet->l4_off + offsetof(struct nd_message, target), &target,
			       sizeof(target)))
		return false;
	endpoint = endpoint_lookup(&target);
	return endpoint && endpoint->ifindex == skb->ifindex;
}

/* What an endpoint says in neighbour discovery and multicast management; `work->packet` is parsed. */
__noinline int neighbour_icmpv6(struct __sk_buff *skb)
{
	struct device *device = device_lookup(skb->ifindex);
	struct work *work = work_get();
	struct packet *packet;

	if (!work)
		return DROP_FORBIDDEN_ICMPV6;
	packet = &work->packet;
	if (!device)
		return DROP(packet, FILE_NEIGHBOUR, DROP_ENDPOINT_NOT_READY);
	if (packet->icmp_type == ND_SOLICITATION)
		return neighbour_advertise(skb, packet, device);
	if (packet->icmp_type != ND_ADVERTISEMENT)
		return DROP(packet, FILE_NEIGHBOUR, DROP_FORBIDDEN_ICMPV6);
	if (!neighbour_owns(skb, packet))
		return DROP(packet, FILE_NEIGHBOUR, DROP_INVALID_SOURCE);
	return TC_ACT_OK;
}

#endif
