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
#include "fragment.h"
#include "icmp.h"
#include "metrics.h"
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
	if (now - flow->reported < TRACE_INTERVAL * jiffies_per_second)
		return false;
	flow->reported = now;
	return true;
}

static __noinline int trace(struct __sk_buff *skb, const struct packet *packet,
			    const struct flow *flow, enum hook hook, __u8 flags)
{
	const struct flow_side *from = &flow->side[packet->sender & 1];
	const struct flow_side *to = &flow->side[!(packet->sender & 1)];
	bool delivered = hook == TO_ENDPOINT || to->endpoint;
	struct event_context context = {
		.src_identity = from->identity,
		.dst_identity = to->identity,
		.rule = flow->rule,
		.endpoint = delivered ? to->endpoint : from->endpoint,
		.type = EVENT_TRACE,
		.reason = delivered ? TRACE_TO_ENDPOINT : TRACE_TO_STACK,
		.direction = delivered ? DIRECTION_INGRESS : DIRECTION_EGRESS,
		.flags = flags | (packet->sender ? EVENT_REPLY : 0),
	};

	return event_send(skb, packet, &context);
}

/* Where a function returns the packet's flow, NULL means dropped, and why is in the packet. */
static __always_inline struct flow *refuse(struct packet *packet, int reason)
{
	packet->result = reason;
	return NULL;
}

/* Decides a packet from scratch: who the ends are, what their policies say. `old` may be NULL. */
static __always_inline struct flow *decide(struct __sk_buff *skb, struct packet *packet,
					   const struct flow_key *key, const struct found *found,
					   struct flow *old, enum hook hook, __u32 now)
{
	/* An echo reply is judged as the request that it answers would be, also if none was seen. */
	bool reversed = old ? flow_sender(old, found->source_is_low) == 1 : is_echo_reply(packet);
	__u32 zero = 0;
	struct flow *flow = bpf_map_lookup_elem(&flow_scratch, &zero);
	int reason;

	if (!flow)
		return refuse(packet, DROP(packet, FILE_PATH, DROP_FLOW_INSERT));
	__builtin_memset(flow, 0, sizeof(*flow));
	flow->epoch = ipcache_revision(0);
	flow->origin_low = found->source_is_low != reversed;
	packet->sender = reversed ? 1 : 0;
	resolve_ends(packet, flow, reversed, hook);
	if (!arrives_right(skb, flow, packet->sender, hook))
		return refuse(packet, DROP(packet, FILE_PATH, DROP_INVALID_SOURCE));
	if (old) {
		flow->state = old->state;
		flow->side[0].packets = old->side[0].packets;
		flow->side[0].bytes = old->side[0].bytes;
		flow->side[1].packets = old->side[1].packets;
		flow->side[1].bytes = old->side[1].bytes;
	} else if (!(packet->tcp_flags & TCP_SYN)) {
		flow->state = FLOW_CONFIRMED;
	}
	/* Counted before it is stored: from then on the entry is a copy. */
	flow->side[packet->sender & 1].packets++;
	flow->side[packet->sender & 1].bytes += skb->len;

	reason = admit_flow(skb, packet, flow, key, old, found->in_pending, reversed, now);
	if (reason)
		return refuse(packet, reason);
	/* An opening that was admitted takes the place of what the ports were used for before. */
	if (!old && found->flow && !found->in_pending)
		bpf_map_delete_elem(&flows, key);
	trace(skb, packet, flow, hook, old ? 0 : EVENT_NEW);
	return flow;
}

/* Keeps a flow that stands: handshake and end, life, promotion by the first reply. */
static __always_inline struct flow *keep(struct __sk_buff *skb, struct packet *packet,
					 const struct flow_key *key, const struct found *found,
					 enum hook hook, __u32 now)
{
	struct flow *flow = found->flow;
	int reason;

	packet->sender = flow_sender(flow, found->source_is_low);
	if (!arrives_right(skb, flow, packet->sender, hook))
		return refuse(packet, DROP(packet, FILE_PATH, DROP_INVALID_SOURCE));
	if (found->in_pending && packet->sender == 1) {
		reason = flow_promote(packet, key, flow);
		if (reason)
			return refuse(packet, reason);
		flow = bpf_map_lookup_elem(&flows, key);
		if (!flow)
			return refuse(packet, DROP(packet, FILE_PATH, DROP_FLOW_INSERT));
	}
	if (packet->proto == IPPROTO_TCP)
		flow_track_tcp(flow, packet->tcp_flags, packet->sender, now);
	flow_refresh(flow, packet->proto, now);
	if (packet->tcp_flags & (TCP_SYN | TCP_FIN | TCP_RST) || trace_due(flow, now))
		trace(skb, packet, flow, hook, 0);
	flow_count(&flow->side[packet->sender & 1], skb->len);
	return flow;
}

/*
 * An ICMP error about a live flow passes with it. NULL with no reason leaves it to policy:
 * the quoted flow is not there, is stale, or could not have brought this error here.
 */
static __noinline struct flow *related(struct __sk_buff *skb, struct packet *packet, enum hook hook)
{
	struct packet about = {};
	struct flow_key key;
	struct found found;
	struct flow *flow;

	if (!icmp_quoted(skb, packet, &about))
		return NULL;
	flow_find(&about, &key, flow_now(), &found);
	flow = found.flow;
	if (!flow || !flow_current(flow))
		return NULL;
	packet->sender = flow_sender(flow, found.source_is_low);
	if (!arrives_right(skb, flow, packet->sender, hook))
		return NULL;
	if (!speaker_right(skb, packet, hook))
		return refuse(packet, DROP(packet, FILE_PATH, DROP_INVALID_SOURCE));
	trace(skb, packet, flow, hook, EVENT_RELATED);
	return flow;
}

/* Whatever is not a plain packet of an established flow. Returns its flow, or NULL. */
static __noinline struct flow *slow_path(struct __sk_buff *skb, struct packet *packet,
					 enum hook hook)
{
	bool opening = packet->proto == IPPROTO_TCP &&
		       (packet->tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_SYN;
	__u32 now = flow_now();
	struct flow_key key;
	struct found found;
	struct flow *flow;
	int reason;

	if (packet->fragment) {
		reason = fragment_resolve(skb, packet);
		if (reason)
			return refuse(packet, reason);
	}
	if (packet->icmp_class == ICMP_CLASS_ERROR && packet->fragment != FRAGMENT_LATER) {
		flow = related(skb, packet, hook);
		if (flow || packet->result)
			return flow;
	}
	flow_find(packet, &key, now, &found);
	flow = found.flow;
	if (flow && !opening && flow_current(flow))
		return keep(skb, packet, &key, &found, hook, now);
	return decide(skb, packet, &key, &found, opening ? NULL : flow, hook, now);
}

/* One lookup for a plain packet of an established flow, or NULL: the slow path must see it. */
static __always_inline struct flow *fast_path(struct __sk_buff *skb, struct packet *packet,
					      enum hook hook)
{
	struct flow_key key;
	struct flow *flow;
	__u32 now;
	bool low;

	if (packet->fragment || packet->tcp_flags & (TCP_SYN | TCP_FIN | TCP_RST) ||
	    packet->icmp_class > ICMP_CLASS_ECHO)
		return NULL;
	low = flow_key_of(packet, &key);
	flow = bpf_map_lookup_elem(&flows, &key);
	if (!flow)
		return NULL;
	now = flow_now();
	packet->sender = flow_sender(flow, low);
	if (!arrives_right(skb, flow, packet->sender, hook) || flow_expired(flow, now) ||
	    !flow_current(flow))
		return NULL;
	if (!(flow->state & FLOW_CONFIRMED))
		flow->state |= FLOW_CONFIRMED;
	flow_refresh(flow, packet->proto, now);
	if (trace_due(flow, now))
		trace(skb, packet, flow, hook, 0);
	flow_count(&flow->side[packet->sender & 1], skb->len);
	return flow;
}

/* Tells of a packet that ends here. */
static __noinline int report_drop(struct __sk_buff *skb, const struct packet *packet, int reason)
{
	struct event_context context = {
		.src_identity = identity_of(&packet->src),
		.dst_identity = identity_of(&packet->dst),
		.endpoint = subject_of(skb),
		.type = EVENT_DROP,
		.reason = reason,
		.direction = packet->direction,
	};

	event_send(skb, packet, &context);
	metrics_count(packet->direction & 1, reason, skb->len);
	return TC_ACT_SHOT;
}

/* Neighbour discovery and what else only makes sense on the link. */
static __always_inline bool is_link_icmpv6(const struct packet *packet)
{
	return packet->proto == PROTO_ICMPV6 && packet->icmp_type >= 130 &&
	       packet->fragment == FRAGMENT_NONE;
}

#endif
