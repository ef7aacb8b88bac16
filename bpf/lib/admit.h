/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The slow path: decides a packet that the flow table could not, and keeps the table.
 *
 * A program resolves who the two ends are (`struct ends`), everything else is here: the flow's
 * direction, both ends' policies under one generation, the entry, the verdict events.
 */
#ifndef PCL_ADMIT_H
#define PCL_ADMIT_H

#include "event.h"
#include "flow.h"

/* Room for a flow under construction: too large for the stack, and of this CPU only. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct flow);
} flow_scratch SEC(".maps");

struct found {
	struct flow *flow;
	bool in_pending;
	bool source_is_low;
};

/* The live entry of this packet's flow, from either table. */
static __always_inline void flow_find(const struct packet *packet, struct flow_key *key, __u32 now,
				      struct found *found)
{
	found->source_is_low = flow_key_of(packet, key);
	found->in_pending = false;
	found->flow = bpf_map_lookup_elem(&flows, key);
	/* A dead entry lies in `flows` until it is collected; the ports may be in use again. */
	if (!found->flow || flow_expired(found->flow, now)) {
		found->flow = bpf_map_lookup_elem(&pending, key);
		found->in_pending = true;
		if (found->flow && flow_expired(found->flow, now))
			found->flow = NULL;
	}
}

/* The port that policy judges: the responder's, or the type of an ICMP message. */
static __always_inline __be16 policy_port(const struct packet *packet, bool reversed)
{
	if (packet->icmp_class == ICMP_CLASS_ECHO)
		return packet->ipv6 ? bpf_htons(128) : bpf_htons(8);
	if (packet->icmp_class != ICMP_CLASS_NONE)
		return bpf_htons(packet->icmp_type);
	return reversed ? packet->sport : packet->dport;
}

static __always_inline void verdict_event(struct __sk_buff *skb, const struct packet *packet,
					  const struct flow *flow, bool reversed, __u16 endpoint,
					  enum direction direction, int reason, __u32 rule)
{
	struct event_context context = {
		.src_identity = flow->side[reversed ? 1 : 0].identity,
		.dst_identity = flow->side[reversed ? 0 : 1].identity,
		.rule = rule,
		.endpoint = endpoint,
		.type = EVENT_VERDICT,
		.reason = reason,
		.direction = direction,
		.flags = EVENT_NEW | (reversed ? EVENT_REPLY : 0),
	};

	event_send(skb, packet, &context);
}

/* Asks the policy of one end: `side` 0 is the opener's egress, 1 the responder's ingress. */
static __always_inline int admit_side(struct __sk_buff *skb, const struct packet *packet,
				      struct flow *flow, __u32 side, bool reversed, bool known,
				      struct policy_query *query)
{
	__u32 rule = 0;
	int reason;

	if (!flow->side[side].endpoint)
		return FORWARDED;
	query->endpoint = flow->side[side].endpoint;
	query->identity = flow->side[side ? 0 : 1].identity;
	query->direction = side ? DIRECTION_INGRESS : DIRECTION_EGRESS;
	reason = policy_decide(query, &rule);
	if (reason || !known)
		verdict_event(skb, packet, flow, reversed, query->endpoint, query->direction,
			      reason, rule);
	if (rule)
		flow->rule = rule;
	return reason;
}

/*
 * Asks both ends. A redirect is not the end of the way: beyond its proxy the responder's policy
 * would be asked too, so a missing proxy is the reason only where nothing else denies.
 */
static __always_inline int admit_ends(struct __sk_buff *skb, struct packet *packet,
				      struct flow *flow, bool reversed, bool known,
				      struct policy_query *query)
{
	int egress, ingress = FORWARDED;

	egress = admit_side(skb, packet, flow, 0, reversed, known, query);
	if (egress == FORWARDED || egress == DROP_NO_PROXY)
		ingress = admit_side(skb, packet, flow, 1, reversed, known, query);
	if (egress == FORWARDED && ingress == FORWARDED)
		return FORWARDED;
	if (ingress != FORWARDED && (egress == FORWARDED || ingress != DROP_NO_PROXY)) {
		packet->direction = DIRECTION_INGRESS;
		return DROP(packet, FILE_ADMIT, ingress);
	}
	packet->direction = DIRECTION_EGRESS;
	return DROP(packet, FILE_ADMIT, egress);
}

/*
 * Decides the flow whose two sides are filled in, and stores it.
 * `old` is the live entry that was found, or NULL for a new flow. 0 or a drop reason.
 */
static __always_inline int admit_flow(struct __sk_buff *skb, struct packet *packet,
				      struct flow *flow, const struct flow_key *key,
				      struct flow *old, bool in_pending, bool reversed, __u32 now)
{
	struct policy_query query = {
		.port = policy_port(packet, reversed),
		.proto = packet->proto,
	};
	int reason;

	/* Revisions first: a change while we look makes the entry stale, not wrong. */
	flow->side[0].policy_rev = policy_revision(flow->side[0].endpoint);
	flow->side[1].policy_rev = policy_revision(flow->side[1].endpoint);
	query.generation = policy_current_generation();
	reason = admit_ends(skb, packet, flow, reversed, old != NULL, &query);
	/* An old entry stays, stale: so either side's packets go on being judged in its direction. */
	if (reason)
		return reason;

	flow->expires = now + flow_timeout(flow, packet->proto);
	flow->reported = now;
	if (old && !in_pending)
		reason = bpf_map_update_elem(&flows, key, flow, BPF_ANY);
	else
		reason = bpf_map_update_elem(&pending, key, flow, BPF_ANY);
	return reason ? DROP(packet, FILE_ADMIT, DROP_FLOW_INSERT) : 0;
}

/* The first packet back: the flow is real, and moves where a flood cannot evict it. */
static __always_inline int flow_promote(struct packet *packet, const struct flow_key *key,
					struct flow *flow)
{
	if (bpf_map_update_elem(&flows, key, flow, BPF_ANY))
		return DROP(packet, FILE_ADMIT, DROP_FLOW_INSERT);
	bpf_map_delete_elem(&pending, key);
	return 0;
}

#endif
