/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The slow path: decides a packet that the flow table could not, and keeps the table.
 *
 * A program resolves who the two ends are (`resolve_ends`), everything else is here: the flow's
 * direction, both ends' policies under one generation, the entry, the verdict events.
 */
#ifndef PCL_ADMIT_H
#define PCL_ADMIT_H

#include "event.h"
#include "flow.h"

struct found {
	struct flow *flow;
	bool in_pending;
};

/* The live entry under a key, from either table. */
static __always_inline void flow_lookup(const struct flow_key *key, __u64 now, struct found *found)
{
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

/* The one of this packet's flow; sets `from`. */
static __always_inline void flow_find(struct packet *packet, struct flow_key *key, __u64 now,
				      struct found *found)
{
	packet->from = flow_key_of(packet, key);
	flow_lookup(key, now, found);
}

/* The port that policy judges: the responder's, or the type of an ICMP message. */
static __always_inline __be16 policy_port(const struct packet *packet, bool reversed)
{
	if (packet->icmp_class == ICMP_CLASS_ECHO)	/* judged by its request */
		return packet->ipv6 ? bpf_htons(128) : bpf_htons(8);
	if (packet->icmp_class != ICMP_CLASS_NONE)
		return bpf_htons(packet->icmp_type);
	return reversed ? packet->sport : packet->dport;
}

static __always_inline void verdict_event(struct __sk_buff *skb, struct work *work, bool reversed,
					  const struct policy_query *query, int reason, __u32 rule)
{
	work->event = (struct event_context){
		.src_identity = work->flow.identity[END(work->packet.from)],
		.dst_identity = work->flow.identity[END(!work->packet.from)],
		.rule = rule,
		.frontend = work->flow.frontend,
		.endpoint = query->endpoint,
		.type = EVENT_VERDICT,
		.reason = reason,
		.direction = query->direction,
		.flags = EVENT_NEW | (reversed ? EVENT_REPLY : 0),
	};
	event_send(skb);
}

/*
 * Asks `work->query` of the policy of one end of `work->flow`: the opener's egress or the
 * responder's ingress. A global function for the verifier's sake (work.h).
 */
__noinline int admit_end(struct __sk_buff *skb, __u32 direction, __u32 reversed)
{
	struct work *work = work_get();
	struct policy_query *query;
	__u32 end, rule = 0;
	int reason;

	if (!work)
		return DROP_POLICY;
	query = &work->query;
	end = work->flow.opener ^ (direction == DIRECTION_INGRESS);
	query->endpoint = work->flow.endpoint[END(end)];
	if (!query->endpoint)
		return FORWARDED;
	query->identity = work->flow.identity[END(!end)];
	query->direction = direction;
	reason = policy_decide(query, &rule);
	if (reason || query->tell)
		verdict_event(skb, work, reversed, query, reason, rule);
	if (rule)
		work->flow.rule = rule;
	return reason;
}

/*
 * Asks both ends. A redirect is not the end of the way: beyond its proxy the responder's policy
 * would be asked too, so a missing proxy is the reason only where nothing else denies.
 */
static __always_inline int admit_ends(struct __sk_buff *skb, struct packet *packet, bool reversed)
{
	int egress, ingress = FORWARDED;

	egress = admit_end(skb, DIRECTION_EGRESS, reversed);
	if (egress == FORWARDED || egress == DROP_NO_PROXY)
		ingress = admit_end(skb, DIRECTION_INGRESS, reversed);
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
 * Decides `work->flow`, whose two ends are filled in, and stores it under `work->key`.
 * `known` is whether a live entry was found, in `pending` or not. 0 or a drop reason.
 *
 * On denial a stale entry stays as it is: were it gone, the other end's next packet would be
 * judged as a flow that this end opens, and not in the direction in which it was opened.
 */
static __always_inline int admit_flow(struct __sk_buff *skb, struct work *work, bool known,
				      bool in_pending, bool reversed, __u64 now)
{
	struct packet *packet = &work->packet;
	struct flow *flow = &work->flow;
	long failed;
	int reason;

	work->query = (struct policy_query){
		.generation = policy_current_generation(),
		.port = policy_port(packet, reversed),
		.proto = packet->proto,
		.tell = !known,
	};
	/* Nobody needs a permit to speak with himself. */
	reason = flow->state & FLOW_HAIRPIN ? 0 : admit_ends(skb, packet, reversed);
	if (reason)
		return reason;

	if (!known)
		flow_expire_at(flow, now + flow_timeout(flow, packet->proto));
	if (!known || flow_lengthens(flow, packet->from))
		flow_review(flow, packet->proto, now);
	work->in_flows = known && !in_pending;
	if (work->in_flows)
		failed = bpf_map_update_elem(&flows, &work->key, flow, BPF_ANY);
	else
		failed = bpf_map_update_elem(&pending, &work->key, flow, BPF_ANY);
	return failed ? DROP(packet, FILE_ADMIT, DROP_FLOW_INSERT) : 0;
}

#endif
