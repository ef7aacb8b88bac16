/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Services for the pods of a node, packet by packet; for clients outside of it see outside.h.
 *
 * What a client sends to a service goes on to one of its backends, and policy is asked about that
 * one; what the backend answers reaches the client as from the service. The two directions arrive
 * looking different, so such a flow has two entries:
 *
 *	FLOW_BACKEND	client - backend	decided as any flow is; serves the backend's packets
 *	FLOW_SERVICE	client - service	made from the other; serves the client's
 *
 * Whatever passes the slow path in either direction brings the service's entry up to date, or makes
 * it again. An answer whose service's entry names another backend by now is dropped.
 *
 * A pod that meets itself by its service (FLOW_HAIRPIN) would not take packets from its own address,
 * so it is the node's service loopback address that speaks to it, in the backend's key too.
 */
#ifndef PCL_TRANSLATE_H
#define PCL_TRANSLATE_H

#include "endpoint.h"
#include "lb_config.h"
#include "lb_counters.h"
#include "path.h"
#include "service_entry.h"
#include "translate_error.h"

/*
 * Which packets that a program sees may be for services: defined by the program. Those of clients
 * outside have FLOW_OUTSIDE in `work->translation` by then.
 */
static __always_inline bool translates(const struct work *work, enum hook hook);

/* ------------------------------------------------------------------ before the flow is found */

/*
 * Whether an endpoint of this node is at an address: the answers of all others would not come by
 * here, so clients outside cannot have them.
 */
static __always_inline bool backend_is_here(const struct addr *addr)
{
	struct endpoint *endpoint = endpoint_lookup(addr);

	return endpoint && endpoint->ifindex;
}

/*
 * If `work->packet` is for a service: chooses the backend, says so in `work->translation`, and from
 * here on the packet is one for that backend. 0 or a drop reason.
 */
__noinline int service_find(void)
{
	struct work *work = work_get();
	struct translation *translation;
	struct lb_service *service;
	struct lb_backend *backend;
	struct packet *packet;
	struct found found;
	__u32 chosen, revision;
	bool outside;
	int reason;

	if (!work)
		return DROP_NO_SERVICE_BACKEND;
	packet = &work->packet;
	translation = &work->translation;
	outside = translation->state & FLOW_OUTSIDE;
	translation->changes = lb_frontend_revision(LB_FRONTEND_ANY);
	service = service_at(&packet->dst, packet->dport, packet->proto,
			     service_scope(translation->state));
	if (!service) {
		translation->changes = 0;
		return 0;
	}
	if (service->flags & LB_OTHER_PORTS || !service->frontend)
		return DROP(packet, FILE_TRANSLATE, DROP_NO_SERVICE_BACKEND);
	translation->frontend = service->frontend;
	reason = outside ? service_refuses(service, &packet->src) : 0;
	if (reason)
		return DROP(packet, FILE_TRANSLATE, reason);

	flow_find(packet, &work->key, flow_now(), &found);
	if (found.flow && found.flow->state & FLOW_SERVICE &&
	    found.flow->frontend == service->frontend &&
	    service_keeps(service, found.flow, packet))
		chosen = found.flow->backend;
	else
		chosen = service_choose(service, packet, service_scope(translation->state));
	revision = service_has(service, chosen);
	backend = lb_backend(chosen);
	if (!revision || !backend) {
		translation->reject = reject_unserved;
		return DROP(packet, FILE_TRANSLATE, DROP_NO_SERVICE_BACKEND);
	}
	if (outside && !backend_is_here(&backend->addr))
		return DROP(packet, FILE_TRANSLATE, DROP_UNKNOWN_TARGET);
	translation->backend = chosen;
	translation->revision = (__u64)service->frontend_revision + revision;
	translation->state |= FLOW_BACKEND;
	if (!outside && addr_equal(&packet->src, &backend->addr)) {
		translation->state |= FLOW_HAIRPIN;
		service_loopback(&packet->src, packet->ipv6);
	}
	packet->dst = backend->addr;
	packet->dport = backend->port;
	return 0;
}

/* The service loopback address takes answers alone; others would leave the node. 0 or a reason. */
__noinline int loopback_expects(void)
{
	struct work *work = work_get();
	struct found found;

	if (!work)
		return DROP_NO_SERVICE_BACKEND;
	flow_find(&work->packet, &work->key, flow_now(), &found);
	if (found.flow && found.flow->state & FLOW_HAIRPIN)
		return 0;
	return DROP(&work->packet, FILE_TRANSLATE, DROP_NO_SERVICE_BACKEND);
}

static __always_inline int translate_find(enum hook hook)
{
	struct work *work = work_get();
	struct addr loopback;

	if (!work)
		return DROP_NO_SERVICE_BACKEND;
	if (!translates(work, hook) || work->packet.icmp_class != ICMP_CLASS_NONE)
		return 0;
	service_loopback(&loopback, work->packet.ipv6);
	if (addr_equal(&work->packet.dst, &loopback))
		return loopback_expects();
	return may_be_service(&work->packet) ? service_find() : 0;
}

/*
 * An answer's flow was decided before something changed. The service must still have the backend,
 * and the client's packets must still go to it. 0 or a drop reason.
 */
__noinline int service_again(void)
{
	struct work *work = work_get();
	struct translation *translation;
	struct lb_frontend *frontend;
	struct lb_service *service;
	struct flow_key key;
	struct found found;
	__u32 revision;

	if (!work)
		return DROP_NO_SERVICE_BACKEND;
	translation = &work->translation;
	if (!(translation->state & FLOW_BACKEND))
		return 0;
	translation->changes = lb_frontend_revision(LB_FRONTEND_ANY);
	frontend = lb_frontend(translation->frontend);
	if (!frontend)
		return DROP(&work->packet, FILE_TRANSLATE, DROP_NO_SERVICE_BACKEND);
	service = service_at(&frontend->addr, frontend->port, frontend->proto,
			     service_scope(translation->state));
	if (!service || service->frontend != translation->frontend)
		return DROP(&work->packet, FILE_TRANSLATE, DROP_NO_SERVICE_BACKEND);
	revision = service_has(service, translation->backend);
	service_key(&key, work, !work->packet.from, frontend);
	flow_lookup(&key, flow_now(), &found);
	if (!revision || !found.flow || !service_entry_of(found.flow, translation))
		return DROP(&work->packet, FILE_TRANSLATE, DROP_NO_SERVICE_BACKEND);
	translation->revision = (__u64)service->frontend_revision + revision;
	return 0;
}

static __always_inline int translate_again(void)
{
	return service_again();
}

/* ------------------------------------------------------------------ revisions */

static __always_inline bool translate_serves(const struct flow *flow, __u32 from)
{
	if (!(flow->state & FLOW_TRANSLATED))
		return true;
	return !(flow->state & FLOW_SERVICE) == (from != flow->opener);
}

static __always_inline __u32 translate_changes(const struct flow *flow)
{
	__u32 changes = flow_changes();

	if (flow->state & FLOW_TRANSLATED)
		changes += lb_frontend_revision(LB_FRONTEND_ANY);
	return changes;
}

static __always_inline __u64 translate_revision(const struct flow *flow,
						const struct flow_key *key)
{
	const struct addr *one = &key->low, *other = &key->high;
	struct lb_backend *backend;
	struct addr loopback;
	__u64 revision = 0;

	if (flow->state & FLOW_TRANSLATED) {
		backend = lb_backend(flow->backend);
		if (!backend)
			return 0;
		revision = (__u64)lb_frontend_revision(flow->frontend) +
			   READ_ONCE(backend->revision);
		if (flow->state & FLOW_SERVICE) {
			/* The addresses are those of the other entry. */
			one = flow_addr(key, flow->opener);
			other = &backend->addr;
			if (flow->state & FLOW_HAIRPIN) {
				service_loopback(&loopback, !addr_is_v4(one));
				other = &loopback;
			}
		}
	}
	return revision + flow_address_revision(one, other);
}

/* Whether a plain packet of this end may go the established way, in its translated flow. */
static __always_inline bool translate_stands(struct flow *flow, const struct flow_key *key,
					     __u32 from)
{
	return flow->state & FLOW_CONFIRMED && translate_serves(flow, from) &&
	       (flow->changes == translate_changes(flow) || flow_current(flow, key));
}

/* ------------------------------------------------------------------ the packet */

/* What `translate_write` is to do, beside the packet's protocol in the lowest byte. */
#define TRANSLATE_ANSWER 0x100	/* the packet is from the backend */
#define TRANSLATE_SELF 0x200	/* the other end, of a flow with itself */

/*
 * Writes a translation into a packet whose transport header is at `l4`; whether it could. A global
 * function, or each way to it would be verified with all that lies before.
 */
__noinline int translate_write(struct __sk_buff *skb, __u32 frontend, __u32 backend, __u32 l4,
			       __u32 how)
{
	struct headers headers = { .l4_off = l4, .proto = how };
	bool self = how & TRANSLATE_SELF;
	struct new_end change = {};

	if (!translate_change(&change, frontend, backend, how & TRANSLATE_ANSWER, self))
		return false;
	headers.ipv6 = !addr_is_v4(&change.to);
	return rewrite_parts(skb, &headers, change.end, &change.to, self ? NULL : &change.port);
}

static __always_inline bool translate_of(struct __sk_buff *skb, const struct flow *flow, __u8 proto,
					 __u32 l4, bool answer)
{
	__u32 how = proto | (answer ? TRANSLATE_ANSWER : 0);

	if (!translate_write(skb, flow->frontend, flow->backend, l4, how))
		return false;
	return !(flow->state & FLOW_HAIRPIN) ||
	       translate_write(skb, flow->frontend, flow->backend, l4, how | TRANSLATE_SELF);
}

/* What is left to do for an admitted packet of a translated flow; 0 or a drop reason. */
__noinline int service_finish(struct __sk_buff *skb)
{
	struct work *work = work_get();
	struct lb_frontend *frontend;
	struct packet *packet;
	struct flow *flow;
	bool answer;
	int reason;

	if (!work)
		return DROP_NO_SERVICE_BACKEND;
	packet = &work->packet;
	flow = &work->flow;
	answer = packet->from != flow->opener;
	frontend = lb_frontend(flow->frontend);
	if (!frontend)
		return DROP(packet, FILE_TRANSLATE, DROP_NO_SERVICE_BACKEND);
	reason = service_entry_keep(work, frontend, answer);
	if (reason)
		return reason;
	if (!answer) {
		count_client(frontend->service, flow->backend, skb->len);
		if (frontend->affinity)
			service_remember(work, frontend);
	}
	if (!translate_of(skb, flow, packet->proto,
			  packet->fragment == FRAGMENT_LATER ? 0 : packet->l4_off, answer))
		return DROP(packet, FILE_TRANSLATE, DROP_WRITE_ERROR);
	return 0;
}

/* A plain packet of an established flow; false if it cannot be written. */
static __always_inline bool translate_established(struct __sk_buff *skb, const struct flow *flow,
						  const struct flow_key *key)
{
	bool ipv6 = !addr_is_v4(&key->low);
	__u32 l4 = ETHER_LEN + (ipv6 ? sizeof(struct ipv6hdr) : sizeof(struct iphdr));
	struct lb_frontend *frontend;

	if (flow->state & FLOW_BACKEND)
		return translate_of(skb, flow, key->proto, l4, true);
	frontend = lb_frontend(flow->frontend);
	if (frontend)
		count_client(frontend->service, flow->backend, skb->len);
	return translate_of(skb, flow, key->proto, l4, false);
}

/* Writes into a packet that was admitted what its flow's translation is; 0 or a drop reason. */
static __always_inline int translate_packet(struct __sk_buff *skb, const struct work *work)
{
	if (!(work->flow.state & FLOW_TRANSLATED))
		return 0;
	return work->packet.icmp_class == ICMP_CLASS_ERROR ? service_error(skb) : service_finish(skb);
}

#endif
