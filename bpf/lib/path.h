/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The packet's path from the parsed header to its flow: established, kept, or decided.
 *
 * It is the same for every program that enforces an endpoint's policy. What differs between them
 * is who the ends are; a program that includes this header says so by defining the six functions
 * declared first. What follows those is about services, and in translate.h or in untranslated.h.
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

/* Fills in who the ends of a new flow are, of which `from` sent a packet to this hook. */
static __always_inline void resolve_ends(struct __sk_buff *skb, const struct flow_key *key,
					 struct flow *flow, __u32 from, enum hook hook);
/* Whether that end of the flow may send from where this packet came (anti-spoofing). */
static __always_inline bool arrives_right(struct __sk_buff *skb, const struct flow *flow,
					  __u64 from, enum hook hook);
/* Whether the source of an ICMP error may speak about flows that pass here. */
static __always_inline bool speaker_right(struct __sk_buff *skb, const struct packet *packet,
					  enum hook hook);
/* The id of the endpoint whose device this is, for a drop's event; 0 = none. */
static __always_inline __u16 subject_of(struct __sk_buff *skb);
/* The identity behind an address, for a drop's event; `came_by` of a source, else 0. */
static __always_inline __u32 identity_of(const struct addr *addr, __u32 came_by);
/* Where a packet goes from here, for its trace: to the endpoint, or away from it. */
static __always_inline enum trace_point trace_point(const struct flow *flow, bool delivered);

/* A packet for a service gets its backend's address in `work->packet`; 0 or a drop reason. */
static __always_inline int translate_find(enum hook hook);
/* Whether an answer's flow, which is stale, may go on with its backend; 0 or a drop reason. */
static __always_inline int translate_again(void);
/* Whether the entry is one for packets of this end; of a flow that is not translated it always is. */
static __always_inline bool translate_serves(const struct flow *flow, __u32 from);
/* How often anything has changed that some flow such as this one rests on. */
static __always_inline __u32 translate_changes(const struct flow *flow);
/* The revision of the flow's addresses, and of its service. */
static __always_inline __u64 translate_revision(const struct flow *flow,
						const struct flow_key *key);

/*
 * Whether nothing that the flow's verdict rests on has changed since. As long as nothing at all has
 * changed, its `changes` say so; this compares each. Not inline: what it needs of the stack would be
 * every packet's.
 */
static __noinline bool flow_current(struct flow *flow, const struct flow_key *key)
{
	/* First, so that a change while we look is met by the next packet. */
	__u32 changes = translate_changes(flow);

	if (flow->revision != translate_revision(flow, key) + flow_policy_revision(flow))
		return false;
	flow->changes = changes;
	return true;
}

static __always_inline void trace(struct __sk_buff *skb, struct work *work,
				  const struct flow *flow, enum hook hook, __u8 flags)
{
	__u32 from = work->packet.from;
	__u16 target = flow->endpoint[END(!from)];
	bool delivered = hook == TO_ENDPOINT || (target && flow->ifindex[END(!from)]);

	work->event = (struct event_context){
		.src_identity = flow->identity[END(from)],
		.dst_identity = flow->identity[END(!from)],
		.rule = flow->rule,
		.frontend = flow->frontend,
		.endpoint = delivered ? target : flow->endpoint[END(from)],
		.type = EVENT_TRACE,
		.reason = trace_point(flow, delivered),
		.direction = delivered ? DIRECTION_INGRESS : DIRECTION_EGRESS,
		.flags = flags | (from == flow->opener ? 0 : EVENT_REPLY),
	};
	event_send(skb);
}

/*
 * Fills in who the ends of `work->flow` are, and the revisions that its verdict is to rest on.
 * Always those before what they tell of: a change while we look makes the entry stale, not wrong.
 * A function of its own for the verifier's sake (work.h).
 */
__noinline int resolve(struct __sk_buff *skb)
{
	struct work *work = work_get();
	struct flow *flow;

	/* Or, where resolve_ends has no use for it, the compiler leaves it out of the call. */
	barrier_var(skb);
	if (!work)
		return DROP_POLICY;
	flow = &work->flow;
	flow->changes = flow_changes() + work->translation.changes;
	flow->revision = flow_address_revision(&work->key.low, &work->key.high) +
			 work->translation.revision;
	resolve_ends(skb, &work->key, flow, work->packet.from, work->packet.direction);
	if (flow->state & FLOW_OUTSIDE)
		flow->ifindex[END(flow->opener)] = work->translation.device;
	flow->revision += flow_policy_revision(flow);
	return 0;
}

/* Decides a packet from scratch: who the ends are, what their policies say. 0 or a drop reason. */
static __always_inline int decide(struct __sk_buff *skb, struct work *work,
				  const struct found *found, bool opening, enum hook hook, __u64 now)
{
	struct packet *packet = &work->packet;
	struct flow *flow = &work->flow, *old = opening ? NULL : found->flow;
	/* An echo reply that nothing asked for is judged as the request would be. */
	bool reversed = old ? packet->from != old->opener : icmp_is_echo_reply(packet);
	int reason;

	__builtin_memset(flow, 0, sizeof(*flow));
	flow->opener = packet->from ^ reversed;
	flow->backend = work->translation.backend;
	flow->frontend = work->translation.frontend;
	flow->state = old ? old->state : work->translation.state;
	flow->origin = old ? old->origin : ORIGIN_OTHER;
	work->came_by = skb->ingress_ifindex;
	reason = resolve(skb);
	if (reason)
		return reason;
	if (!arrives_right(skb, flow, packet->from, hook))
		return DROP(packet, FILE_PATH, DROP_INVALID_SOURCE);
	if (old) {
		flow->due = old->due;
		flow->expires = old->expires;
		flow->expires_high = old->expires_high;
		__builtin_memcpy(flow->sent, old->sent, sizeof(flow->sent));
		__builtin_memcpy(flow->packets, old->packets, sizeof(flow->packets));
		__builtin_memcpy(flow->bytes, old->bytes, sizeof(flow->bytes));
	} else if (!(packet->tcp_flags & TCP_SYN)) {
		flow->state |= FLOW_CONFIRMED;
	}
	/* Counted before it is stored: from then on `work->flow` is a copy. */
	flow_count(flow, packet->from, skb->len);

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
				const struct found *found, enum hook hook, __u64 now)
{
	struct packet *packet = &work->packet;
	struct flow *flow = found->flow;
	bool goes_on = flow_lengthens(flow, packet->from);
	bool report = packet->tcp_flags & (TCP_SYN | TCP_FIN | TCP_RST) || trace_every_packet ||
		      (goes_on && flow_due(flow, now));

	if (!arrives_right(skb, flow, packet->from, hook))
		return DROP(packet, FILE_PATH, DROP_INVALID_SOURCE);
	if (packet->proto == IPPROTO_TCP)
		flow_track_tcp(flow, packet->tcp_flags, packet->from, now);
	flow_count(flow, packet->from, skb->len);
	if (goes_on)
		flow_review(flow, packet->proto, now);
	if (report)
		trace(skb, work, flow, hook, 0);
	work->flow = *flow;
	work->in_flows = !found->in_pending || packet->from != flow->opener;
	if (!found->in_pending || !work->in_flows)
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
	if (!found.flow || !flow_current(found.flow, &work->key))
		return NOT_RELATED;
	work->packet.from = about.from;
	if (!translate_serves(found.flow, about.from) ||
	    !arrives_right(skb, found.flow, about.from, hook))
		return NOT_RELATED;
	if (!speaker_right(skb, &work->packet, hook))
		return DROP(&work->packet, FILE_PATH, DROP_INVALID_SOURCE);
	work->flow = *found.flow;
	trace(skb, work, &work->flow, hook, EVENT_RELATED);
	return 0;
}

/*
 * Whether the packet belongs to the flow that was found under its key: 0, or a drop reason. If it
 * does not, since the one is translated and the other is not, it opens a flow in that one's place.
 */
static __always_inline int join(struct work *work, const struct flow *flow, bool *opening)
{
	struct translation *translation = &work->translation;

	if (work->packet.from == flow->opener) {
		if (flow->backend != translation->backend ||
		    flow->frontend != translation->frontend)
			*opening = true;
		return 0;
	}
	/* A service's address is spoken for by its backends alone. */
	if (flow->state & FLOW_SERVICE)
		return DROP(&work->packet, FILE_PATH, DROP_INVALID_SOURCE);
	if (translation->backend) {
		*opening = true;
		return 0;
	}
	translation->backend = flow->backend;
	translation->frontend = flow->frontend;
	translation->state = flow->state & (FLOW_BACKEND | FLOW_HAIRPIN | FLOW_OUTSIDE);
	if (flow->state & FLOW_OUTSIDE)
		translation->device = flow->ifindex[END(flow->opener)];
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
	__u64 now;
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
	result = translate_find(hook);
	if (result)
		return result;
	now = flow_now();
	opening = packet_opens(packet);
	flow_find(packet, &work->key, now, &found);
	if (found.flow) {
		result = join(work, found.flow, &opening);
		if (result)
			return result;
	}
	if (found.flow && !opening && flow_is_from(found.flow, packet->from, skb->ingress_ifindex) &&
	    flow_current(found.flow, &work->key))
		return keep(skb, work, &found, hook, now);
	if (found.flow && !opening && packet->from != found.flow->opener) {
		result = translate_again();
		if (result)
			return result;
	}
	return decide(skb, work, &found, opening, hook, now);
}

/*
 * The flow of a plain packet, found by one lookup. It is for the caller to see whether it stands, and
 * to count the packet. NULL: the packet is to be parsed and to take the slow path, which also reports.
 */
static __always_inline struct flow *established(struct __sk_buff *skb, enum hook hook,
						struct flow_key *key, struct plain *plain)
{
	struct flow *flow;

	if (trace_every_packet || skb->vlan_present || !plain_key(skb, key, plain))
		return NULL;
	flow = bpf_map_lookup_elem(&flows, key);
	if (!flow || !arrives_right(skb, flow, plain->high, hook) || flow_due(flow, flow_now()) ||
	    !flow_is_from(flow, plain->high, skb->ingress_ifindex))
		return NULL;
	return flow;
}

/* Whether a plain packet may go the established way, in its flow that is not translated. */
static __always_inline bool established_stands(struct flow *flow, const struct flow_key *key)
{
	return flow->state & FLOW_CONFIRMED && (flow_unchanged(flow) || flow_current(flow, key));
}

/* Whether a plain packet goes the established way; then it is counted. Where passing is all there is. */
static __always_inline bool established_passes(struct __sk_buff *skb, enum hook hook)
{
	struct flow_key key;
	struct plain plain;
	struct flow *flow = established(skb, hook, &key, &plain);

	/* A service's entry is none of its own packets' here: see outside.h. */
	if (!flow || flow->state & FLOW_TRANSLATED || !established_stands(flow, &key))
		return false;
	metrics_count(hook, FORWARDED, skb->len);
	flow_count(flow, plain.high, skb->len);
	return true;
}

/* Tells of a packet that ends here. */
__noinline int report_drop(struct __sk_buff *skb, __u32 reason)
{
	struct work *work = work_get();

	if (!work)
		return TC_ACT_SHOT;
	work->event = (struct event_context){
		.src_identity = identity_of(&work->packet.src, skb->ingress_ifindex),
		.dst_identity = identity_of(&work->packet.dst, 0),
		.frontend = work->translation.frontend,
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
