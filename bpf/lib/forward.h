/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The way out of a packet that was admitted: to a local endpoint's device, as a router would. */
#ifndef PCL_FORWARD_H
#define PCL_FORWARD_H

#include "config.h"
#include "endpoint.h"
#include "packet.h"
#include "result.h"

/* Set on a packet that goes to a device's own tc egress after its policy was decided. */
#define MARK_MASK 0x0f00
#define MARK_DECIDED 0x0f00

/* One hop less to live; the packet has hops left and its headers can be read. */
static __always_inline void forward_hop(struct ethhdr *eth, bool ipv6)
{
	if (ipv6) {
		((struct ipv6hdr *)(eth + 1))->hop_limit--;
	} else {
		struct iphdr *ip = (void *)(eth + 1);
		/* RFC 1624: the checksum grows by what the TTL's 16-bit word loses. */
		__u32 sum = ip->check + bpf_htons(0x0100);

		ip->check = sum + (sum >> 16);
		ip->ttl--;
	}
}

/* The same, and the link-layer addresses of the next hop. */
static __always_inline void forward_rewrite(struct ethhdr *eth, const struct endpoint_link *link,
					    bool ipv6)
{
	forward_hop(eth, ipv6);
	packet_ethernet(eth, link->ethernet);
}

/* The packet's headers where it may be forwarded, or NULL and a drop reason. */
static __always_inline struct ethhdr *forward_check(struct __sk_buff *skb, bool ipv6, int *reason)
{
	struct ethhdr *eth = (void *)(long)skb->data;
	void *l3 = eth + 1, *end = (void *)(long)skb->data_end;

	*reason = DROP_INVALID_PACKET;
	if (l3 + (ipv6 ? sizeof(struct ipv6hdr) : sizeof(struct iphdr)) > end)
		return NULL;
	*reason = DROP_TTL_EXCEEDED;
	if ((ipv6 ? ((struct ipv6hdr *)l3)->hop_limit : ((struct iphdr *)l3)->ttl) <= 1)
		return NULL;
	return eth;
}

/* Into an endpoint's device at the pod's side, past the program that would decide again. */
static __always_inline int forward_into(struct __sk_buff *skb, __u32 ifindex)
{
	if (redirect_peer)
		return bpf_redirect_peer(ifindex, 0);
	skb->mark = (skb->mark & ~MARK_MASK) | MARK_DECIDED;
	return bpf_redirect(ifindex, 0);
}

/* Hands the packet, whose headers are checked, to a local endpoint at `ifindex`; the tc action. */
static __always_inline int forward_local(struct __sk_buff *skb, struct ethhdr *eth, bool ipv6,
					 __u32 endpoint, __u32 ifindex)
{
	const struct endpoint_link *link = endpoint_link(endpoint);

	if (!link)
		return TC_ACT_SHOT;
	forward_rewrite(eth, link, ipv6);
	return forward_into(skb, ifindex);
}

/*
 * Out of the node by one of its devices, as a router would. The stack would not take it, since its
 * source may be an address of the node; it knows the next hop all the same. The mark tells the
 * programs at the device that this is not what the node says itself.
 */
static __always_inline int forward_out(struct __sk_buff *skb, struct ethhdr *eth, bool ipv6,
				       __u32 ifindex)
{
	forward_hop(eth, ipv6);
	skb->mark = (skb->mark & ~MARK_MASK) | MARK_DECIDED;
	return bpf_redirect_neigh(ifindex, NULL, 0, 0);
}

/*
 * Sends what became of a packet back to where it came from, with this Ethernet header: to an
 * endpoint, or by a device of the node.
 */
static __always_inline int forward_back(struct __sk_buff *skb, const struct ethhdr *came,
					bool to_endpoint)
{
	struct ethhdr eth;

	__builtin_memcpy(eth.h_dest, came->h_source, sizeof(eth.h_dest));
	__builtin_memcpy(eth.h_source, came->h_dest, sizeof(eth.h_source));
	eth.h_proto = came->h_proto;
	if (bpf_skb_store_bytes(skb, 0, &eth, sizeof(eth), 0))
		return TC_ACT_SHOT;
	if (to_endpoint)
		return forward_into(skb, skb->ifindex);
	skb->mark = (skb->mark & ~MARK_MASK) | MARK_DECIDED;
	return bpf_redirect(skb->ifindex, 0);
}

#endif
