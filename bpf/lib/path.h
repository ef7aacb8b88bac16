/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The packet's path from the parsed header to its flow: established, kept, or decided.
 *
 * It is the same for every program that enforces an endpoint's policy. What differs between them
 * is who the ends are; a program that includes this header says so by defining the five functions
 * declared first.
 */
#ifndef PCL_PATH_H
#define PCL_PATH_H

#include "admit.h"
#include "established.h"
#include "fragment.h"
#include "icmp.h"
#include "metrics.h"
#include "parse.h"
#include "result.h"

/* Which way the packet goes, seen from the endpoint: also the direction of its policy. */
enum hook {
	TO_ENDPOINT = DIRECTION_INGRESS,
	FROM_ENDPOINT = DIRECTION_EGRESS,
};

/* Fills in both sides of a new flow, revisions first; `reversed`: the packet is the replier's. */
static __always_inline void resolve_ends(const struct packet *packet, struct flow *flow,
					 bool reversed, enum hook hook);
/* Whether the flow's sender may send from where this packet came (anti-spoofing). */
static __always_inline bool arrives_right(struct __sk_buff *skb, const struct flow *flow,
					  __u32 sender, enum hook hook);
/* Whether the source of an ICMP error may speak about flows that pass here. */
static __always_inline bool speaker_right(struct __sk_buff *skb, const struct packet *packet,
					  enum hook hook);
/* The id of the endpoint whose device this is, for a drop's event; 0 = none. */
static __always_inline __u16 subject_of(struct __sk_buff *skb);
/* The identity behind an address, for a drop's event. */
static __always_inline __u32 identity_of(const struct addr *addr);

#define TRACE_INTERVAL 5 /* seconds between reports of a flow that goes on */

static __always_inline bool trace_due(struct flow *flow, __u32 now)
{
	if (trace_every_packet)
		return true;
	return now - flow->reported >= TRACE_INTERVAL * jiffies_per_second;
}

static __always_inline void trace(struct __sk_buff *skb, struct work *work,
				  const struct flow *flow, enum hook hook, __u8 flags)
{
	const struct flow_side *from = FLOW_SIDE(flow, work->packet.sender);
	const struct flow_side *to = FLOW_SIDE(flow, !work->packet.sender);
	bool delivered = hook == TO_ENDPOINT || to->endpoint;

	work->event = (struct event_context){
		.src_identity = from->identity,
		.dst_identity = to->identity,
		.rule = flow->rule,
		.endpoint = delivered ? to->endpoint : from->endpoint,
		.type = EVENT_TRACE,
		.reason = delivered ? TRACE_TO_ENDPOINT : TRACE_TO_STACK,
		.direction = delivered ? DIRECTION_INGRESS : DIRECTION_EGRESS,
		.flags = flags | (work->packet.sender ? EVENT_REPLY : 0),
	};
	event_send(skb);
}

/* Fills in both sides of `work->flow`; a function of its own for the verifier's sake (work.h). */
__noinline int resolve(__u32 reversed)
{
	struct work *work = work_get();

	if (!work)
		return DROP_POLICY;
	resolve_ends(&work->packet, &work->flow, reversed, work->packet.direction);
	return 0;
}

/* Decides a packet from scratch: who the ends are, what their policies say. 0 or a drop reason. */
static __always_inline int decide(struct __sk_buff *skb, struct work *work,
				  const struct found *found, bool opening, enum hook hook, __u32 now)
{
	struct packet *packet = &work->packet;
	struct flow *flow = &work->flow, *old = opening ? NULL : found->flow;
	/* An echo reply that nothing asked for is judged as the request would be. */
	bool reversed = old ? flow_sender(old, found->source_is_low) == 1 :
			      icmp_is_echo_reply(packet);
	int reason;

	__builtin_memset(flow, 0, sizeof(*flow));
	flow->epoch = ipcache_revision(0);
	flow->origin_low = found->source_is_low != reversed;
	packet->sender = reversed ? 1 : 0;
	reason = resolve(reversed);
	if (reason)
		return reason;
	if (!arrives_right(skb, flow, packet->sender, hook))
		return DROP(packet, FILE_PATH, DROP_INVALID_SOURCE);
	if (old) {
		flow->state = old->state;
		flow->side[0].packets = old->side[0].packets;
		flow->side[0].bytes = old->side[0].bytes;
		flow->side[1].packets = old->side[1].packets;
		flow->side[1].bytes = old->side[1].bytes;
	} else if (!(packet->tcp_flags & TCP_SYN)) {
		flow->state = FLOW_CONFIRMED;
	}
	/* Counted before it is stored: from then on `work->flow` is a copy. */
	FLOW_SIDE(flow, packet->sender)->packets++;
	FLOW_SIDE(flow, packet->sender)->bytes += skb->len;

	reason = admit_flow(skb, work, old != NULL, found->in_pending, reversed, now);
	if (reason)
		return reason;
	/* An opening that was admitted takes the place of what the ports were used for before. */
	if (opening && found->flow && !found->in_pending)
		bpf_map_delete_elem(&flows, &work->key);
	trace(skb, work, flow, hook, old ? 0 : EVENT_NEW);
	return 0;
}

/* Keeps a flow that stands: handshake and end, life, promotion by the first reply. */
static __always_inline int keep(struct __sk_buff *skb, struct work *work,
				const struct found *found, enum hook hook, __u32 now)
{
	struct packet *packet = &work->packet;
	struct flow *flow = found->flow;

	packet->sender = flow_sender(flow, found->source_is_low);
	if (!arrives_right(skb, flow, packet->sender, hook))
		return DROP(packet, FILE_PATH, DROP_INVALID_SOURCE);
	if (packet->proto == IPPROTO_TCP)
		flow_track_tcp(flow, packet->tcp_flags, packet->sender, now);
	flow_refresh(flow, packet->proto, now);
	flow_count(FLOW_SIDE(flow, packet->sender), skb->len);
	if (packet->tcp_flags & (TCP_SYN | TCP_FIN | TCP_RST) || trace_due(flow, now)) {
		flow->reported = now;
		trace(skb, work, flow, hook, 0);
	}
	work->flow = *flow;
	if (!found->in_pending || packet->sender == 0)
		return 0;
	/* The first packet back: the flow is real, and moves where a flood cannot evict it. */
	if (bpf_map_update_elem(&flows, &work->key, &work->flow, BPF_ANY))
		return DROP(packet, FILE_PATH, DROP_FLOW_INSERT);
	bpf_map_delete_elem(&pending, &work->key);
	return 0;
}

#define NOT_RELATED 1

/*
 * An ICMP error about a live flow passes with it: 0. NOT_RELATED leaves it to policy: the quoted
 * flow is not there, is stale, or could not have brought this error here. Else a drop reason.
 */
__noinline int related(struct __sk_buff *skb, __u32 hook)
{
	struct work *work = work_get();
	struct packet about = {};
	struct found found;

	if (!work || !icmp_quoted(skb, &work->packet, &about))
		return NOT_RELATED;
	flow_find(&about, &work->key, flow_now(), &found);
	if (!found.flow || !flow_current(found.flow))
		return NOT_RELATED;
	work->packet.sender = flow_sender(found.flow, found.source_is_low);
	if (!arrives_right(skb, found.flow, work->packet.sender, hook))
		return NOT_RELATED;
	if (!speaker_right(skb, &work->packet, hook))
		return DROP(&work->packet, FILE_PATH, DROP_INVALID_SOURCE);
	work->flow = *found.flow;
	trace(skb, work, &work->flow, hook, EVENT_RELATED);
	return 0;
}

/*
 * The way of every packet that `established` leaves. 0, and `work->flow` is a copy of its flow, or a
 * drop reason.
 */
__noinline int slow_path(struct __sk_buff *skb, __u32 hook)
{
	struct work *work = work_get();
	struct packet *packet;
	struct found found;
	bool opening;
	__u32 now;
	int result;

	if (!work)
		return DROP_POLICY;
	packet = &work->packet;
	if (packet->fragment) {
		result = fragment_resolve(skb, packet);
		if (result)
			return result;
	}
	if (packet->icmp_class == ICMP_CLASS_ERROR && packet->fragment != FRAGMENT_LATER) {
		result = related(skb, hook);
		if (result != NOT_RELATED)
			return result;
	}
	now = flow_now();
	opening = packet->proto == IPPROTO_TCP &&
		  (packet->tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_SYN;
	flow_find(packet, &work->key, now, &found);
	if (found.flow && !opening && flow_current(found.flow))
		return keep(skb, work, &found, hook, now);
	return decide(skb, work, &found, opening, hook, now);
}

/*
 * The flow of a plain packet, found by one lookup, with its sender in `*sender` and its family in
 * `*ipv6`. NULL: parse it and take the slow path, which also reports and counts.
 */
static __always_inline struct flow *established(struct __sk_buff *skb, enum hook hook,
						__u32 *sender, bool *ipv6)
{
	struct plain plain;
	struct flow *flow;
	__u32 now;

	if (skb->vlan_present || !plain_key(skb, &plain))
		return NULL;
	flow = bpf_map_lookup_elem(&flows, &plain.key);
	if (!flow)
		return NULL;
	now = flow_now();
	*sender = flow_sender(flow, plain.low & 1);
	*ipv6 = plain.ipv6;
	if (!arrives_right(skb, flow, *sender, hook) || flow_expired(flow, now) ||
	    !flow_current(flow) || trace_due(flow, now))
		return NULL;
	if (!(flow->state & FLOW_CONFIRMED))
		flow->state |= FLOW_CONFIRMED;
	flow_refresh(flow, plain.key.proto, now);
	flow_count(FLOW_SIDE(flow, *sender), skb->len);
	return flow;
}

/* Tells of a packet that ends here. */
__noinline int report_drop(struct __sk_buff *skb, __u32 reason)
{
	struct work *work = work_get();

	if (!work)
		return TC_ACT_SHOT;
	work->event = (struct event_context){
		.src_identity = identity_of(&work->packet.src),
		.dst_identity = identity_of(&work->packet.dst),
		.endpoint = subject_of(skb),
		.type = EVENT_DROP,
		.reason = reason,
		.direction = work->packet.direction,
	};
	event_send(skb);
	metrics_count(work->packet.direction & 1, reason, skb->len);
	return TC_ACT_SHOT;
}

/* Neighbour discovery and what else only makes sense on the link. */
static __always_inline bool is_link_icmpv6(const struct packet *packet)
{
	return packet->proto == PROTO_ICMPV6 && packet->icmp_type >= 130 &&
	       packet->fragment == FRAGMENT_NONE;
}

#endif
