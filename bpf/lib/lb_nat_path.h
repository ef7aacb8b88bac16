/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The way of translated packets: on to the backend, and its answers back to the client. */
#ifndef PCL_LB_NAT_PATH_H
#define PCL_LB_NAT_PATH_H

#include "lb_count.h"
#include "lb_nat_mates.h"
#include "lb_nat_packet.h"
#include "lb_nat_port.h"

/* lb_path.h has these; what they say of a flow counts for its answers too. */
static __always_inline struct lb_backend *backend_of(const struct lb_flow *flow);
static __always_inline int service_for(const struct lb_flow_key *key, struct lb_service **service);

/* Beside the drop reasons: the packet is not for a service. */
#define NOT_OURS -1

/* Sends a client's packet, or an ICMP error about an answer, to the backend. */
__noinline int lb_nat_to_backend(CTX *ctx)
{
	struct lb_work *work = lb_work_here();
	const struct lb_packet *packet;
	const struct lb_flow *flow;
	struct lb_backend *backend;
	struct lb_hop *hop;
	int reason;

	if (!work)
		return CTX_DROP;
	packet = &work->packet;
	flow = &work->flow;
	backend = backend_of(flow);
	if (!backend)
		return drop(packet, DROP_NO_SERVICE_BACKEND);
	hop = lb_hop_to(ctx, flow->backend, &backend->addr);
	if (!hop)
		return drop(packet, DROP_FIB);
	lb_own_address(&work->ends.source, !packet->ipv6);
	work->ends.destination = backend->addr;
	work->ends.ports[0] = flow->nat_port;
	work->ends.ports[1] = backend->port;
	packet_ethernet(work->ethernet, hop->ethernet);
	reason = lb_nat_translate(ctx);
	if (reason)
		return drop(packet, reason);
	count_sent(flow, packet->bytes);
	return ctx_send(ctx, hop->ifindex);
}

/* The entry of an answer, NULL if there is none; `*known`: the client has sent more than once. */
static __always_inline struct lb_nat *lb_nat_of(const struct lb_nat_key *key, bool *known)
{
	struct lb_nat *nat = bpf_map_lookup_elem(&lb_nat, key);

	*known = lb_nat_lives(nat);
	if (*known)
		return nat;
	nat = bpf_map_lookup_elem(&lb_nat_pending, key);
	return lb_nat_lives(nat) ? nat : NULL;
}

/*
 * An answer that is for no flow. It may be the node's own; but where the port was last used for this
 * very backend, the flow is what is gone. Its next packet makes the entry again, if the stack does
 * not tell the backend meanwhile that nobody is there.
 */
static __always_inline int lb_nat_unknown(CTX *ctx, const struct lb_packet *packet,
					  const struct lb_nat_key *key)
{
	struct lb_nat_port *port = lb_nat_port_of(key->nat_port);

	if (!port || port->backend != lb_nat_backend_hash(key) || lb_nat_is_nodes(ctx, key))
		return NOT_OURS;
	return drop_answer(packet, DROP_NAT_NO_MAPPING);
}

/* Whether the flow may go on though its service has changed, asked in its own direction; a reason. */
static __noinline int lb_nat_decide_again(struct lb_nat *nat)
{
	struct lb_service *service;
	int reason = service_for(&nat->key, &service);

	if (reason)
		return reason == NOT_OURS ? DROP_NO_SERVICE_BACKEND : reason;
	if (nat->flow.service != service->id || !lb_member(service->id, nat->flow.backend) ||
	    !backend_of(&nat->flow))
		return DROP_NO_SERVICE_BACKEND;
	nat->flow.service_rev = service->revision;
	return 0;
}

/* The way to the client, asked for once a second; NULL if there is none. */
static __always_inline struct lb_hop *lb_nat_hop(CTX *ctx, struct lb_nat *nat)
{
	struct lb_hop *hop = &nat->hop;
	__u32 now = bpf_jiffies64();
	long err;

	if (now - hop->resolved >= jiffies_per_second) {
		hop->resolved = now;
		err = lb_hop_resolve(ctx, &nat->key.service, &nat->key.client, hop);
		/* Of a neighbour that is not known, the last that was, or who sent for the client. */
		if (err && err != BPF_FIB_LKUP_RET_NO_NEIGH)
			hop->ifindex = 0;
	}
	return hop->ifindex ? hop : NULL;
}

/* Sends an answer, or an ICMP error about what the backend was sent, to the client; or NOT_OURS. */
__noinline int lb_nat_to_client(CTX *ctx)
{
	struct lb_work *work = lb_work_here();
	const struct lb_packet *packet;
	struct lb_nat_key key = {};
	struct lb_nat *nat;
	struct lb_hop *hop;
	__u32 *revision;
	int reason = 0;
	bool known;

	if (!work)
		return CTX_DROP;
	packet = &work->packet;
	key.backend = packet->key.client;
	key.backend_port = packet->key.client_port;
	key.nat_port = packet->key.service_port;
	key.proto = packet->key.proto;
	nat = lb_nat_of(&key, &known);
	if (!nat)
		return lb_nat_unknown(ctx, packet, &key);
	revision = bpf_map_lookup_elem(&lb_revisions, &nat->flow.service);
	if (!revision || *revision != nat->flow.service_rev)
		reason = lb_nat_decide_again(nat);
	else if (known && lb_flow_touch(packet, &nat->flow, LB_FLOW_FIN_BACKEND) &&
		 !lb_nat_refresh_flow(&key, nat))
		reason = DROP_NAT_NO_MAPPING;
	if (reason)
		return drop_answer(packet, reason);
	hop = lb_nat_hop(ctx, nat);
	if (!hop)
		return drop_answer(packet, DROP_FIB);
	work->ends.source = nat->key.service;
	work->ends.destination = nat->key.client;
	work->ends.ports[0] = nat->key.service_port;
	work->ends.ports[1] = nat->key.client_port;
	packet_ethernet(work->ethernet, hop->ethernet);
	reason = lb_nat_translate(ctx);
	if (reason)
		return drop_answer(packet, reason);
	metrics_count(DIRECTION_EGRESS, FORWARDED, packet->bytes);
	return ctx_send(ctx, hop->ifindex);
}

static __always_inline int lb_nat_forward(CTX *ctx, const struct lb_packet *packet,
					  const struct lb_flow *flow)
{
	struct lb_work *work = lb_work_here();

	if (!work)
		return CTX_DROP;
	work->packet = *packet;
	work->flow = *flow;
	return lb_nat_to_backend(ctx);
}

static __always_inline int lb_nat_back(CTX *ctx, const struct lb_packet *packet)
{
	struct lb_work *work = lb_work_here();

	if (!work)
		return CTX_DROP;
	work->packet = *packet;
	return lb_nat_to_client(ctx);
}

#endif
