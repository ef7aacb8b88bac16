/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Which service a pod's packet is for, and which backend serves it. */
#ifndef PCL_SERVICE_H
#define PCL_SERVICE_H

#include "flow.h"
#include "lb_affinity.h"
#include "lb_filter.h"
#include "lb_frontend.h"
#include "lb_hash.h"
#include "lb_range.h"

CONFIG(__be32, loopback_ipv4, "who speaks to a pod that meets itself by a service") = 0;
CONFIG(__u32, loopback_ipv6[4], "the same, as it lies in the packet") = {};

static __always_inline struct lb_backend *lb_backend(__u32 id)
{
	return bpf_map_lookup_elem(&lb_backends, &id);
}

static __always_inline void service_loopback(struct addr *addr, bool ipv6)
{
	if (!ipv6) {
		addr_from_v4(addr, loopback_ipv4);
		return;
	}
	addr->words[0] = loopback_ipv6[0];
	addr->words[1] = loopback_ipv6[1];
	addr->words[2] = loopback_ipv6[2];
	addr->words[3] = loopback_ipv6[3];
}

/*
 * What a client in a scope finds at an address, port and protocol; NULL if it is no service's. The
 * internal scope is asked first, where it is the client's.
 */
static __always_inline struct lb_service *service_at(const struct addr *addr, __be16 port,
						     __u8 proto, enum lb_scope scope)
{
	struct lb_service_key key = {
		.addr = *addr,
		.port = port,
		.proto = proto,
		.scope = scope,
	};
	struct lb_service *service = bpf_map_lookup_elem(&lb_services, &key);

	if (service)
		return service;
	if (scope == LB_INTERNAL) {
		key.scope = LB_EXTERNAL;
		service = bpf_map_lookup_elem(&lb_services, &key);
		if (service)
			return service;
	}
	key.port = 0;
	key.proto = 0;
	return bpf_map_lookup_elem(&lb_services, &key);
}

static __always_inline bool may_be_service(const struct packet *packet)
{
	return lb_filter_has(&packet->dst, lb_filter_port(packet->dport, packet->proto)) ||
	       lb_filter_has(&packet->dst, LB_FILTER_OTHER_PORTS);
}

/* Whose services a flow of this state is for. */
static __always_inline enum lb_scope service_scope(__u8 state)
{
	return state & FLOW_OUTSIDE ? LB_EXTERNAL : LB_INTERNAL;
}

/* Why a client outside may not use the service; 0 if it may. */
static __always_inline int service_refuses(const struct lb_service *service,
					   const struct addr *client)
{
	if (service->flags & LB_CLUSTER_IP)
		return DROP_IS_CLUSTER_IP;
	return lb_admits(service, client) ? 0 : DROP_LB_SOURCE_RANGE;
}

/* The backend of a new connection; 0 if there is none. */
static __always_inline __u32 service_choose(const struct lb_service *service,
					    const struct packet *packet, enum lb_scope scope)
{
	struct lb_affinity_key client = { .client = packet->src, .service = service->id };
	__u32 met = service->affinity ? lb_remembered(service, &client, scope) : 0;

	if (met)
		return met;
	if (!(service->flags & (scope == LB_INTERNAL ? LB_MAGLEV_INSIDE : LB_MAGLEV)))
		return lb_backend_in(service, bpf_get_prandom_u32());
	return lb_backend_in(service,
			     lb_flow_hash(&packet->src, service->affinity ? 0 : packet->sport,
					  packet->dport, packet->proto));
}

/* Whether the service has the backend and it is there; its revision, else 0. */
static __always_inline __u32 service_has(const struct lb_service *service, __u32 id)
{
	struct lb_backend *backend = lb_backend(id);
	__u32 revision = backend ? READ_ONCE(backend->revision) : 0;

	return revision & 1 && lb_member(service->id, id) ? revision : 0;
}

/* A connection keeps its backend; one that opens leaves a backend that takes no new ones. */
static __always_inline bool service_keeps(const struct lb_service *service,
					  const struct flow *flow, const struct packet *packet)
{
	struct lb_backend *backend = lb_backend(flow->backend);

	if (!backend || !service_has(service, flow->backend))
		return false;
	return !packet_opens(packet) ||
	       (backend->state == LB_ACTIVE && !(flow->state & FLOW_CLOSING));
}

#endif
