/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The load balancer's path, in XDP or tc: packets for services go on to backends. Either as clients
 * sent them, with word of the service, and the backends answer the clients themselves (DSR); or
 * translated (SNAT), and the answers come back by here.
 */
#ifndef PCL_LB_PATH_H
#define PCL_LB_PATH_H

#include "lb_count.h"
#include "lb_dispatch.h"
#include "lb_error.h"
#include "lb_filter.h"
#include "lb_fragment.h"
#include "lb_hop.h"
#include "lb_nat_path.h"
#include "lb_select.h"
#include "lb_work.h"

/* Beside the drop reasons and NOT_OURS: no backend of the service may take the packet. */
#define UNSERVED -2

/* Whether the packet may be for a service, by the filter alone. */
static __always_inline bool may_be_ours(const struct lb_packet *packet)
{
	const struct lb_flow_key *key = &packet->key;

	if (packet->fragment == FRAGMENT_LATER)
		return lb_filter_has(&key->service, LB_FILTER_FRAGMENTS);
	return lb_filter_has(&key->service, lb_filter_port(key->service_port, key->proto)) ||
	       lb_filter_has(&key->service, LB_FILTER_OTHER_PORTS);
}

/* The backend of a flow, if it is the one that the flow was given. */
static __always_inline struct lb_backend *backend_of(const struct lb_flow *flow)
{
	struct lb_backend *backend = bpf_map_lookup_elem(&lb_backends, &flow->backend);

	return backend && backend->revision == flow->backend_rev ? backend : NULL;
}

/* A connection keeps its backend; one that opens leaves a backend that takes no new ones. */
static __always_inline bool keeps(const struct lb_packet *packet, const struct lb_flow *flow,
				  const struct lb_backend *backend)
{
	if (!backend || lb_flow_expired(flow))
		return false;
	return !lb_is_opening(packet) ||
	       (backend->state == LB_ACTIVE && !(flow->flags & LB_FLOW_CLOSING));
}

static __always_inline struct lb_service *service_of(const struct lb_flow_key *key)
{
	struct lb_service_key wanted = {
		.addr = key->service,
		.port = key->service_port,
		.proto = key->proto,
	};
	struct lb_service *service = bpf_map_lookup_elem(&lb_services, &wanted);

	if (service)
		return service;
	wanted.port = 0;
	wanted.proto = 0;
	return bpf_map_lookup_elem(&lb_services, &wanted);
}

/* The service that a client's packet is for, if it may use it; 0, a drop reason or NOT_OURS. */
static __always_inline int service_for(const struct lb_flow_key *key, struct lb_service **service)
{
	*service = service_of(key);
	if (!*service)
		return NOT_OURS;
	if ((*service)->flags & LB_OTHER_PORTS)
		return DROP_NO_SERVICE_BACKEND;
	if ((*service)->flags & LB_CLUSTER_IP)
		return DROP_IS_CLUSTER_IP;
	return lb_admits(*service, &key->client) ? 0 : DROP_LB_SOURCE_RANGE;
}

/* Puts a flow where it belongs: with those that are known, or with those that are pending. */
static __always_inline int flow_store(const struct lb_packet *packet, const struct lb_flow *flow,
				      bool known, bool pending)
{
	bool collecting = lb_is_collecting();
	bool confirmed = pending && !lb_is_opening(packet) && !collecting;

	if (!known && !confirmed)
		return bpf_map_update_elem(&lb_pending, &packet->key, flow, BPF_ANY) ?
			DROP_FLOW_INSERT : 0;
	if (flow->flags & LB_FLOW_SNAT && !collecting && !lb_nat_confirm(&packet->key, flow))
		return DROP_FLOW_INSERT;
	if (bpf_map_update_elem(&lb_flows, &packet->key, flow, BPF_ANY))
		return DROP_FLOW_INSERT;
	if (confirmed)
		bpf_map_delete_elem(&lb_pending, &packet->key);
	return 0;
}

/*
 * Decides on the flow of the packet at work, which is new, or was decided before its service changed;
 * `in_flows`: it is in `lb_flows`. 0 and the flow there, a drop reason, NOT_OURS, or UNSERVED.
 */
__noinline int decide(CTX *ctx, bool in_flows)
{
	struct lb_work *work = lb_work_here();
	struct lb_flow *known = NULL, *pending = NULL, *before, *decided;
	struct lb_packet *packet;
	struct lb_service *service;
	struct lb_backend *backend;
	int reason;
	bool kept;

	if (!work)
		return NOT_OURS;
	packet = &work->packet;
	decided = &work->flow;
	__builtin_memset(decided, 0, sizeof(*decided));
	reason = service_for(&packet->key, &service);
	if (reason)
		return reason;
	if (in_flows)
		known = bpf_map_lookup_elem(&lb_flows, &packet->key);
	if (known && lb_flow_expired(known))
		known = NULL;
	if (!known)
		pending = bpf_map_lookup_elem(&lb_pending, &packet->key);
	before = known ?: pending;
	kept = before && before->service == service->id &&
	       lb_member(service->id, before->backend) && keeps(packet, before, backend_of(before));
	decided->service = service->id;
	decided->service_rev = service->revision;
	decided->flags = service->affinity ? LB_FLOW_AFFINITY : 0;
	if (kept) {
		decided->backend = before->backend;
		decided->backend_rev = before->backend_rev;
		decided->flags |= before->flags & LB_FLOW_KEPT;
		decided->nat_port = before->nat_port;
		decided->expires = before->expires;
	}
	/* An ICMP error is not the flow's own packet: it follows a backend, and chooses none. */
	if (packet->quoted)
		return kept ? 0 : NOT_OURS;
	if (!kept) {
		packet->first = 1;
		decided->backend = lb_choose(service, &packet->key);
		backend = bpf_map_lookup_elem(&lb_backends, &decided->backend);
		if (!decided->backend || !backend || !(backend->revision & 1))
			return UNSERVED;
		decided->backend_rev = backend->revision;
		decided->flags |= service->flags & (LB_OPTION | LB_GENEVE);
		decided->flags |= service->flags & LB_SNAT ? LB_FLOW_SNAT : 0;
		decided->expires = bpf_jiffies64();
	}
	lb_flow_touch(packet, decided, LB_FLOW_FIN_CLIENT);
	if (decided->flags & LB_FLOW_SNAT) {
		reason = lb_nat_bind(ctx, &packet->key, decided);
		if (reason)
			return reason;
	}
	if (service->affinity)
		lb_remember_client(&packet->key, decided);
	return flow_store(packet, decided, known, pending);
}

/* The largest IP packet that will be of this one; of TCP that is to be cut none is too large. */
static __always_inline __u32 largest(const CTX *ctx, const struct lb_packet *packet)
{
	__u32 segment = ctx_segment(ctx);

	if (!segment)
		return packet->bytes;
	if (packet->key.proto == IPPROTO_TCP)
		return 0;
	return segment + (packet->ipv6 ? sizeof(struct ipv6hdr) : sizeof(struct iphdr)) + 8;
}

/* Sends the packet to its backend. */
static __always_inline int forward(CTX *ctx, const struct lb_packet *packet,
				   const struct lb_flow *flow)
{
	struct lb_backend *backend;
	__u32 bytes = packet->bytes, growth;
	struct lb_hop *hop;
	int reason;

	if (flow->flags & LB_FLOW_SNAT)
		return lb_nat_forward(ctx, packet, flow);
	backend = backend_of(flow);
	if (!backend)
		return drop(packet, DROP_NO_SERVICE_BACKEND);
	growth = lb_growth(packet, flow);
	if (largest(ctx, packet) + growth > mtu)
		return lb_too_big(ctx, packet, mtu - growth);
	hop = lb_hop_to(ctx, flow->backend, &backend->addr);
	if (!hop)
		return drop(packet, DROP_FIB);
	reason = lb_dispatch(ctx, packet, flow, backend, hop->ethernet);
	if (reason)
		return drop(packet, reason);
	count_sent(flow, bytes);
	return ctx_send(ctx, hop->ifindex);
}

/* Whether a known flow was decided under what holds now, so that its packet need not be. */
static __always_inline bool holds(const struct lb_packet *packet, struct lb_flow *flow)
{
	__u32 *revision = bpf_map_lookup_elem(&lb_revisions, &flow->service);

	if (!revision || *revision != flow->service_rev)
		return false;
	if (!keeps(packet, flow, backend_of(flow)))
		return false;
	if (!lb_flow_touch(packet, flow, LB_FLOW_FIN_CLIENT))
		return true;
	if (flow->flags & LB_FLOW_AFFINITY)
		lb_remember_client(&packet->key, flow);
	return !(flow->flags & LB_FLOW_SNAT) || lb_nat_refresh_answers(&packet->key, flow);
}

/* What becomes of the packet: an action of the hook. */
static __always_inline int lb_balance(CTX *ctx)
{
	struct lb_packet packet = {};
	struct lb_work *work;
	struct lb_flow *flow;
	bool ours, answer;
	int result;

	if (!lb_parse(ctx, &packet))
		return CTX_PASS;
	answer = lb_nat_may_answer(&packet);
	ours = may_be_ours(&packet);
	if (!ours && !answer)
		return CTX_PASS;
	if (packet.fragment) {
		result = lb_fragment_resolve(&packet);
		if (result == NOT_OURS)
			return CTX_PASS;
		if (result)
			return drop(&packet, result);
	}
	if (answer) {
		result = lb_nat_back(ctx, &packet);
		if (result != NOT_OURS)
			return result;
		if (!ours)
			return CTX_PASS;
	}
	/* One lookup is all that a packet of a known flow takes. */
	flow = bpf_map_lookup_elem(&lb_flows, &packet.key);
	if (!flow || !holds(&packet, flow)) {
		work = lb_work_here();
		if (!work)
			return CTX_DROP;
		work->packet = packet;
		result = decide(ctx, flow);
		if (result == NOT_OURS)
			return CTX_PASS;
		if (result == UNSERVED)
			return lb_unserved(ctx, &packet);
		if (result)
			return drop(&packet, result);
		packet.first = work->packet.first;
		flow = &work->flow;
	}
	return forward(ctx, &packet, flow);
}

#endif
