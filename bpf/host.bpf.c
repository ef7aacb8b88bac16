// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * The node's devices that lead out of it: services for clients outside (outside.h), and policy of
 * the node itself (Cilium's host firewall). Either may be off.
 *
 * To policy the node is one more endpoint, without a device that is its alone: what it sends itself
 * and what is sent to its addresses is judged, in the tables of the endpoint programs. All else only
 * passes here and is left alone: what endpoints send and are sent, what is forwarded for others, ARP.
 * Between the node and its endpoints `endpoint.bpf.c` asks its policy.
 */

#define PCL_TC

#include <linux/if_packet.h>

#include "lib/ends.h"
#include "lib/link_messages.h"
#include "lib/outside.h"

CONFIG(bool, host_firewall, "policy of the node itself is enforced") = true;
CONFIG(bool, node_port, "clients outside reach services by here") = false;

/* What is not dropped goes to the next program at the device, which may be another's. */
#define PASS TC_ACT_UNSPEC

static __always_inline void resolve_ends(struct __sk_buff *skb, const struct flow_key *key,
					 struct flow *flow, __u32 from, enum hook hook)
{
	__u32 stack = hook == FROM_ENDPOINT ? from : !from;

	resolve_end(skb, &key->low, flow, 0, stack == 0);
	resolve_end(skb, &key->high, flow, 1, stack == 1);
}

/* What is on this node sends from here, and nothing that comes from outside has its addresses. */
static __always_inline bool arrives_right(struct __sk_buff *skb, const struct flow *flow,
					  __u64 from, enum hook hook)
{
	bool here = flow->endpoint[END(from)] || flow->identity[END(from)] == IDENTITY_HOST ||
		    (flow->origin && END(from) == flow->opener);

	return here == (hook == FROM_ENDPOINT);
}

/* Any router may speak about what the node sends, and the node about what passes through it. */
static __always_inline bool speaker_right(struct __sk_buff *skb, const struct packet *packet,
					  enum hook hook)
{
	return hook == FROM_ENDPOINT || !endpoint_lookup(&packet->src);
}

static __always_inline enum trace_point trace_point(const struct flow *flow, bool delivered)
{
	if (!delivered)
		return TRACE_TO_NETWORK;
	return flow->state & FLOW_OUTSIDE ? TRACE_TO_ENDPOINT : TRACE_TO_HOST;
}

/* What clients outside send to services; what the node sends is for no service. */
static __always_inline bool translates(const struct work *work, enum hook hook)
{
	return work->translation.state & FLOW_OUTSIDE;
}

/* Reads the addresses into `work->packet`; whether there are any. */
static __always_inline bool read_addresses(struct __sk_buff *skb, struct packet *packet)
{
	__be32 v4[2];

	switch (skb->protocol) {
	case bpf_htons(ETH_P_IP):
		if (bpf_skb_load_bytes(skb, ETHER_LEN + offsetof(struct iphdr, saddr), v4,
				       sizeof(v4)))
			return false;
		addr_from_v4(&packet->src, v4[0]);
		addr_from_v4(&packet->dst, v4[1]);
		return true;
	case bpf_htons(ETH_P_IPV6):
		return !bpf_skb_load_bytes(skb, ETHER_LEN + offsetof(struct ipv6hdr, saddr),
					   &packet->src, 2 * sizeof(packet->src));
	default:
		return false;
	}
}

/*
 * Whether the packet is the node's to judge: what leaves with an address of it, what comes for one
 * or for a group, and what comes from one, which is a forgery wherever it is going.
 */
static __always_inline bool is_of_host(struct __sk_buff *skb, enum hook hook)
{
	struct work *work = work_get();
	struct endpoint *endpoint;

	if (!work)
		return true;
	if (!read_addresses(skb, &work->packet))
		return false;
	endpoint = endpoint_lookup(&work->packet.src);
	if (endpoint ? endpoint->flags & ENDPOINT_HOST : addr_is_loopback(&work->packet.src))
		return true;
	if (hook == FROM_ENDPOINT)
		return !endpoint && is_for_node(skb, true);
	endpoint = endpoint_lookup(&work->packet.dst);
	return endpoint ? endpoint->flags & ENDPOINT_HOST : is_for_node(skb, false);
}

#define VLAN_NUMBER 0xfff

/*
 * Whether a tagged frame is another device's, that of its VLAN. The VLAN 0 is none (IEEE 802.1Q,
 * 6.8: a priority alone): what comes with such a tag the stack takes as if it had none, so the tag
 * is taken off here. A frame that has one more is refused by the parser.
 */
static __always_inline bool is_of_vlan(struct __sk_buff *skb, enum hook hook)
{
	if (hook == FROM_ENDPOINT || skb->vlan_tci & VLAN_NUMBER)
		return true;
	bpf_skb_vlan_pop(skb);
	return skb->vlan_present && skb->vlan_tci & VLAN_NUMBER;
}

static __always_inline int enforce(struct __sk_buff *skb, enum hook hook)
{
	struct work *work;
	int reason;

	/* What the node sends to a group that it is in itself comes back here, and has no frame. */
	if (hook == TO_ENDPOINT && skb->pkt_type == PACKET_LOOPBACK)
		return PASS;
	if (skb->vlan_present && is_of_vlan(skb, hook))
		return PASS;
	if (!skb->vlan_present && !is_of_host(skb, hook))
		return PASS;
	if (established_passes(skb, hook))
		return PASS;
	work = work_get();
	if (!work)
		return TC_ACT_SHOT;
	__builtin_memset(&work->translation, 0, sizeof(work->translation));
	reason = packet_parse(skb);
	work->packet.direction = hook;
	/* The node speaks more than TCP and UDP; policy judges what has no ports by its number. */
	if (reason == DROP_UNKNOWN_L4)
		reason = DROP(&work->packet, FILE_NONE, 0);
	if (!reason && keeps_link(&work->packet, hook))
		return PASS;
	if (!reason)
		reason = slow_path(skb, hook);
	if (reason)
		return report_drop(skb, reason);
	metrics_count(hook, FORWARDED, skb->len);
	return PASS;
}

SEC("tc")
int from_host(struct __sk_buff *skb)
{
	/* A service's answer: it has an address of the node, and came by the device of a pod. */
	if (skb->ingress_ifindex && (skb->mark & MARK_MASK) == MARK_DECIDED) {
		skb->mark &= ~MARK_MASK;
		return PASS;
	}
	return host_firewall ? enforce(skb, FROM_ENDPOINT) : PASS;
}

SEC("tc")
int to_host(struct __sk_buff *skb)
{
	if (node_port) {
		int action = outside(skb);

		if (action != NOT_OURS)
			return action;
	}
	return host_firewall ? enforce(skb, TO_ENDPOINT) : PASS;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
