/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The backend's side of DSR, where answers go out: those of flows that are known get the service's
 * address and port, so that clients see the service, and ICMP errors about such flows are made to
 * be about what clients sent. All other traffic passes untouched.
 */
#ifndef PCL_DSR_RESTORE_H
#define PCL_DSR_RESTORE_H

#ifndef PCL_TC
#error "for programs at tc: define PCL_TC before the first include"
#endif

#include "dsr_flow.h"
#include "metrics.h"
#include "rewrite.h"

struct dsr_fragment_key {
	struct addr client;
	struct addr backend;
	__u32 id;
	__u8 proto;
	__u8 pad[3];
};

/* The service of an answer whose first fragment went out: later ones have no ports. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 8192);
	__type(key, struct dsr_fragment_key);
	__type(value, struct addr);
} dsr_fragments SEC(".maps");

/* The flow of a packet that goes to a client: its ends are the other way round. */
static __always_inline struct lb_flow_key dsr_answered(const struct lb_flow_key *answer)
{
	return (struct lb_flow_key){
		.client = answer->service,
		.service = answer->client,
		.client_port = answer->service_port,
		.service_port = answer->client_port,
		.proto = answer->proto,
	};
}

/* An answer comes from the service, and an error is about a packet that the client sent there. */
static __always_inline bool dsr_rewrite(struct __sk_buff *skb, const struct lb_packet *packet,
					const struct dsr_flow *flow)
{
	struct headers headers = {
		.l4_off = packet->l4_off,
		.proto = packet->key.proto,
		.ipv6 = packet->ipv6,
		.skip = packet->quoted_skip,
	};
	struct headers error = {
		.l4_off = packet->l4_off,
		.proto = packet->ipv6 ? PROTO_ICMPV6 : IPPROTO_ICMP,
		.ipv6 = packet->ipv6,
	};

	if (!packet->quoted)
		return rewrite_end(skb, &headers, SOURCE, &flow->service, flow->port);
	return rewrite_address(skb, &error, SOURCE, &flow->service) &&
	       rewrite_quoted(skb, &headers, DESTINATION, &flow->service, flow->port);
}

/* Whether the packet is an answer to be restored, and then its flow, of which the service counts. */
static __always_inline bool dsr_flow_of(const struct lb_packet *packet, struct dsr_flow *flow)
{
	struct lb_flow_key key = dsr_answered(&packet->key);
	struct dsr_fragment_key whole = {
		.client = key.client,
		.backend = key.service,
		.id = packet->fragment_id,
		.proto = key.proto,
	};
	struct addr *service;

	if (packet->fragment == FRAGMENT_LATER) {
		service = bpf_map_lookup_elem(&dsr_fragments, &whole);
		if (service)
			flow->service = *service;
		return service;
	}
	if (!dsr_port_used(key.service_port) ||
	    !dsr_flow_find(packet, &key, DIRECTION_EGRESS, flow))
		return false;
	if (packet->fragment)
		bpf_map_update_elem(&dsr_fragments, &whole, &flow->service, BPF_ANY);
	return true;
}

/* What becomes of a packet that goes out: an action of tc. */
static __always_inline int dsr_restore(struct __sk_buff *skb)
{
	struct lb_packet packet = {};
	struct dsr_flow flow = {};
	int reason = FORWARDED;

	if (!lb_parse(skb, &packet) || !dsr_flow_of(&packet, &flow))
		return TC_ACT_OK;
	if (packet.fragment == FRAGMENT_LATER)
		packet.l4_off = 0;
	if (!dsr_rewrite(skb, &packet, &flow))
		reason = DROP_WRITE_ERROR;
	metrics_count(DIRECTION_EGRESS, reason, packet.bytes);
	return reason ? TC_ACT_SHOT : TC_ACT_OK;
}

#endif
