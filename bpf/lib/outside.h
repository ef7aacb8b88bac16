/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Services for clients outside the node, whose packets come in by one of its devices.
 *
 * Such a packet is decided here, as one for the backend, and goes right into the pod's device with
 * the client's address. Its flow has the two entries of any translated flow (translate.h), with
 * FLOW_OUTSIDE, and the device instead of the interface that a pod would have: the answers are
 * given the service's address where the pod sends them, and leave by that device.
 *
 * The stack never sees either direction. It would refuse the answers, which have an address of the
 * node and come by a pod's device, and whatever follows connections there would see one half.
 */
#ifndef PCL_OUTSIDE_H
#define PCL_OUTSIDE_H

#ifndef PCL_TC
#error "for programs at tc: define PCL_TC before the first include"
#endif

#include <linux/if_packet.h>

#include "forward.h"
#include "hook_call.h"
#include "reject.h"
#include "translate.h"

/* The packet is for no service: others have their turn. No tc action has this number. */
#define NOT_OURS -2

/* The entry of such a client's own packets. */
#define OUTSIDE_CLIENT (FLOW_OUTSIDE | FLOW_SERVICE)

/* Into the pod's device, as a router would; a tc action, or a drop reason. */
static __always_inline int outside_deliver(struct __sk_buff *skb, const struct flow *flow,
					   __u32 from, bool ipv6)
{
	__u32 device = flow->ifindex[END(!from)], endpoint = flow->endpoint[END(!from)];
	struct ethhdr *eth;
	int reason;

	eth = forward_check(skb, ipv6, &reason);
	if (!eth)
		return reason;
	metrics_count(TO_ENDPOINT, FORWARDED, skb->len);
	return forward_local(skb, eth, ipv6, endpoint, device);
}

static __always_inline bool outside_may_be(const struct addr *addr, __be16 port, __u8 proto)
{
	return lb_filter_has(addr, lb_filter_port(port, proto)) ||
	       lb_filter_has(addr, LB_FILTER_OTHER_PORTS);
}

/* A plain packet: NOT_OURS of one that is for no service, 0 if all of it is to be looked at. */
__noinline int outside_plain(struct __sk_buff *skb)
{
	struct flow_key key;
	struct plain plain;
	struct flow *flow;
	__u32 from;
	int result;

	if (!plain_key(skb, &key, &plain))
		return 0;
	from = plain.high & 1;
	if (!outside_may_be(flow_addr(&key, !from), flow_port(&key, !from), key.proto))
		return NOT_OURS;
	/* The user's programs see every packet, so with them none is short-cut. */
	if (hooks_enabled || trace_every_packet)
		return 0;
	flow = bpf_map_lookup_elem(&flows, &key);
	if (!flow || (flow->state & OUTSIDE_CLIENT) != OUTSIDE_CLIENT ||
	    flow_due(flow, flow_now()) || !translate_stands(flow, &key, from))
		return 0;
	flow_count(flow, from, skb->len);
	if (!translate_established(skb, flow, &key))
		return TC_ACT_SHOT;
	result = outside_deliver(skb, flow, from, plain.ipv6);
	return is_drop(result) ? TC_ACT_SHOT : result;
}

/*
 * An ICMP error about a service's answers goes where those came from; 0, NOT_OURS or a reason. Slots
 * of the user see it when it is translated only: there is no stack left for a tail call from here.
 */
__noinline int outside_error(struct __sk_buff *skb)
{
	struct work *work = work_get();
	struct packet about = {};
	struct found found;
	int result;

	if (!work || work->packet.fragment || !icmp_quoted(skb, &work->packet, &about))
		return NOT_OURS;
	flow_find(&about, &work->key, flow_now(), &found);
	if (!found.flow || (found.flow->state & OUTSIDE_CLIENT) != OUTSIDE_CLIENT)
		return NOT_OURS;
	result = related(skb, TO_ENDPOINT);
	if (result == NOT_RELATED)
		return NOT_OURS;
	return result ?: service_error(skb);
}

/*
 * What `work->packet` is: 0 and its flow in `work->flow`, NOT_OURS, or a drop reason. The user's
 * programs have a look at what they would see at the pod's device.
 */
static __always_inline int outside_decide(struct __sk_buff *skb, struct work *work)
{
	struct packet *packet = &work->packet;
	int result;

	if (packet->fragment == FRAGMENT_LATER &&
	    (!lb_filter_has(&packet->dst, LB_FILTER_FRAGMENTS) || fragment_resolve(skb, packet)))
		return NOT_OURS;
	if (packet->icmp_class == ICMP_CLASS_ERROR)
		return lb_filter_has(&packet->dst, LB_FILTER_FRAGMENTS) ? outside_error(skb) : NOT_OURS;
	if (packet->icmp_class != ICMP_CLASS_NONE ||
	    !outside_may_be(&packet->dst, packet->dport, packet->proto) ||
	    !service_at(&packet->dst, packet->dport, packet->proto, LB_EXTERNAL))
		return NOT_OURS;
	work->translation.state = FLOW_OUTSIDE;
	work->translation.device = skb->ifindex;
	result = hook_call(skb, packet, HOOK_BEFORE_POLICY, TO_ENDPOINT, 0, 0);
	if (is_drop(result))
		return result;
	result = slow_path(skb, TO_ENDPOINT);
	return result ?: service_finish(skb);
}

/* The end of it: the user's program has a look, then the packet goes to its pod. */
static __always_inline int outside_finish(struct __sk_buff *skb, struct work *work)
{
	struct packet *packet = &work->packet;
	struct flow *flow = &work->flow;
	__u32 from = packet->from;
	int result = hook_call(skb, packet, HOOK_AFTER_POLICY, TO_ENDPOINT,
			       flow->identity[END(from)], flow->identity[END(!from)]);

	if (is_drop(result))
		return result;
	result = outside_deliver(skb, flow, from, packet->ipv6);
	return is_drop(result) ? DROP(packet, FILE_FORWARD, result) : result;
}

/* What becomes of a packet that comes in by the node's device: a tc action, or NOT_OURS. */
static __always_inline int outside(struct __sk_buff *skb)
{
	struct work *work;
	int result;

	/* Frames to another MAC are seen where a link is flooded or listened to. */
	if (skb->vlan_present || skb->pkt_type != PACKET_HOST)
		return NOT_OURS;
	result = outside_plain(skb);
	if (result)
		return result;
	work = work_get();
	/* What cannot be parsed is dropped by whoever it is for. */
	if (!work || packet_parse(skb))
		return NOT_OURS;
	__builtin_memset(&work->translation, 0, sizeof(work->translation));
	work->packet.direction = TO_ENDPOINT;
	result = outside_decide(skb, work);
	if (result == NOT_OURS)
		return NOT_OURS;
	if (!result)
		result = outside_finish(skb, work);
	if (!is_drop(result))
		return result;
	report_drop(skb, result);
	return work->translation.reject ? reject(skb, false) : TC_ACT_SHOT;
}

#endif
