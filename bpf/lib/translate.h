/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Services for the pods of a node, packet by packet.
 *
 * What a pod sends to a service goes on to one of its backends, and policy is asked about that one;
 * what the backend answers reaches the pod as from the service. The two directions arrive looking
 * different, so such a flow has two entries:
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

#include "lb_affinity.h"
#include "lb_filter.h"
#include "lb_frontend.h"
#include "lb_hash.h"
#include "path.h"
#include "rewrite.h"

CONFIG(bool, reject_unserved, "tell the sender if a service has no backend") = true;
CONFIG(__be32, loopback_ipv4, "who speaks to a pod that meets itself by a service") = 0;
CONFIG(__u32, loopback_ipv6[4], "the same, as it lies in the packet") = {};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 4096);
	__type(key, __u32);
	__type(value, struct counter);
} lb_service_counters SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 4096);
	__type(key, __u32);
	__type(value, struct counter);
} lb_backend_counters SEC(".maps");

static __always_inline void count(void *counters, __u32 id, __u32 bytes)
{
	struct counter *counter = bpf_map_lookup_elem(counters, &id);

	if (counter) {
		counter->packets++;
		counter->bytes += bytes;
	}
}

static __always_inline void translate_count(const struct flow *flow,
					    const struct lb_frontend *frontend, __u32 bytes)
{
	count(&lb_service_counters, frontend->service, bytes);
	count(&lb_backend_counters, flow->backend, bytes);
}

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

/* ------------------------------------------------------------------ the choice of a backend */

/* What a client in the cluster finds at an address, port and protocol; NULL if it is no service's. */
static __always_inline struct lb_service *service_at(const struct addr *addr, __be16 port,
						     __u8 proto)
{
	struct lb_service_key key = {
		.addr = *addr,
		.port = port,
		.proto = proto,
		.scope = LB_INTERNAL,
	};
	struct lb_service *service = bpf_map_lookup_elem(&lb_services, &key);

	if (service)
		return service;
	key.scope = LB_EXTERNAL;
	service = bpf_map_lookup_elem(&lb_services, &key);
	if (service)
		return service;
	key.port = 0;
	key.proto = 0;
	return bpf_map_lookup_elem(&lb_services, &key);
}

static __always_inline bool may_be_service(const struct packet *packet)
{
	return lb_filter_has(&packet->dst, lb_filter_port(packet->dport, packet->proto)) ||
	       lb_filter_has(&packet->dst, LB_FILTER_OTHER_PORTS);
}

static __always_inline struct lb_affinity_key service_client(const struct addr *client,
							      __u32 service)
{
	return (struct lb_affinity_key){ .client = *client, .service = service };
}

/* The backend of a new connection; 0 if there is none. */
static __always_inline __u32 service_choose(const struct lb_service *service,
					    const struct packet *packet)
{
	struct lb_affinity_key client = service_client(&packet->src, service->id);
	__u32 met = service->affinity ? lb_remembered(service, &client, LB_INTERNAL) : 0;

	if (met)
		return met;
	if (!(service->flags & LB_MAGLEV_INSIDE))
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

/*
 * If `work->packet`, which a pod sends, is for a service: chooses the backend, says so in
 * `work->translation`, and from here on the packet is one for that backend. 0 or a drop reason.
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

	if (!work)
		return DROP_NO_SERVICE_BACKEND;
	packet = &work->packet;
	translation = &work->translation;
	translation->changes = lb_frontend_revision(LB_FRONTEND_ANY);
	service = service_at(&packet->dst, packet->dport, packet->proto);
	if (!service) {
		translation->changes = 0;
		return 0;
	}
	if (service->flags & LB_OTHER_PORTS || !service->frontend)
		return DROP(packet, FILE_TRANSLATE, DROP_NO_SERVICE_BACKEND);

	flow_find(packet, &work->key, flow_now(), &found);
	if (found.flow && found.flow->state & FLOW_SERVICE &&
	    found.flow->frontend == service->frontend &&
	    service_keeps(service, found.flow, packet))
		chosen = found.flow->backend;
	else
		chosen = service_choose(service, packet);
	revision = service_has(service, chosen);
	backend = lb_backend(chosen);
	translation->frontend = service->frontend;
	if (!revision || !backend) {
		translation->reject = reject_unserved;
		return DROP(packet, FILE_TRANSLATE, DROP_NO_SERVICE_BACKEND);
	}
	translation->backend = chosen;
	translation->revision = (__u64)service->frontend_revision + revision;
	translation->state = FLOW_BACKEND;
	if (addr_equal(&packet->src, &backend->addr)) {
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
	if (hook != FROM_ENDPOINT || work->packet.icmp_class != ICMP_CLASS_NONE)
		return 0;
	service_loopback(&loopback, work->packet.ipv6);
	if (addr_equal(&work->packet.dst, &loopback))
		return loopback_expects();
	return may_be_service(&work->packet) ? service_find() : 0;
}

/* ------------------------------------------------------------------ the service's entry */

/* The key of the service's entry, from the backend's `work->key` and the client's end in that. */
static __always_inline __u32 service_key(struct flow_key *key, const struct work *work,
					 __u32 client, const struct lb_frontend *frontend)
{
	bool hairpin = work->translation.state & FLOW_HAIRPIN;
	const struct addr *addr = flow_addr(&work->key, hairpin ? !client : client);

	return flow_key_make(key, addr, flow_port(&work->key, client), &frontend->addr,
			     frontend->port, frontend->proto);
}

/* Whether a service's entry leads to the same backend. */
static __always_inline bool service_entry_of(const struct flow *entry,
					     const struct translation *translation)
{
	return entry->state & FLOW_SERVICE && entry->backend == translation->backend &&
	       entry->frontend == translation->frontend;
}

/* All but what the entry counts itself, from the backend's entry; `client` is the end in this key. */
static __always_inline void service_entry_fill(struct flow *entry, const struct flow *flow,
					       __u32 client)
{
	__u32 turned = client ^ flow->opener;
	__u8 closing = flow->state & FLOW_CLOSING;

	if (turned)
		closing = (closing >> 1 | closing << 1) & FLOW_CLOSING;
	entry->ifindex[0] = flow->ifindex[END(turned)];
	entry->ifindex[1] = flow->ifindex[END(!turned)];
	entry->endpoint[0] = flow->endpoint[END(turned)];
	entry->endpoint[1] = flow->endpoint[END(!turned)];
	entry->identity[0] = flow->identity[END(turned)];
	entry->identity[1] = flow->identity[END(!turned)];
	entry->due = flow->due;
	entry->changes = flow->changes;
	entry->opener = client;
	entry->state = FLOW_SERVICE | (flow->state & (FLOW_CONFIRMED | FLOW_HAIRPIN)) | closing;
	entry->expires = flow->expires;
	entry->rule = flow->rule;
	entry->revision = flow->revision;
	entry->backend = flow->backend;
	entry->frontend = flow->frontend;
}

/* Brings the service's entry up to date with `work->flow`; 0 or a drop reason. */
static __always_inline int service_entry_keep(struct work *work, const struct lb_frontend *frontend,
					      bool answer)
{
	struct flow *flow = &work->flow, *made = &work->service;
	__u32 now = flow_now(), client;
	struct flow_key key;
	struct found found;
	long failed;

	client = service_key(&key, work, flow->opener, frontend);
	flow_lookup(&key, now, &found);
	/* A client that is to be remembered is looked after once a second. */
	if (frontend->affinity && (__s32)(flow->due - now) > (__s32)jiffies_per_second)
		flow->due = now + jiffies_per_second;
	if (found.flow && service_entry_of(found.flow, &work->translation)) {
		service_entry_fill(found.flow, flow, client);
		flow_add_up(found.flow, END(client));
		if (!found.in_pending || !work->in_flows)
			return 0;
		*made = *found.flow;
	} else {
		/* The ports lead to another backend, or are in use without the service. */
		if (found.flow && answer)
			return DROP(&work->packet, FILE_TRANSLATE, DROP_NO_SERVICE_BACKEND);
		if (found.flow && !found.in_pending)
			bpf_map_delete_elem(&flows, &key);
		__builtin_memset(made, 0, sizeof(*made));
		service_entry_fill(made, flow, client);
	}
	if (!work->in_flows) {
		failed = bpf_map_update_elem(&pending, &key, made, BPF_ANY);
	} else {
		failed = bpf_map_update_elem(&flows, &key, made, BPF_ANY);
		if (found.flow && found.in_pending)
			bpf_map_delete_elem(&pending, &key);
	}
	return failed ? DROP(&work->packet, FILE_TRANSLATE, DROP_FLOW_INSERT) : 0;
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
	service = service_at(&frontend->addr, frontend->port, frontend->proto);
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
	struct addr one = key->low, other = key->high;
	struct lb_backend *backend;
	__u64 revision;

	if (!(flow->state & FLOW_TRANSLATED))
		return flow_address_revision(&one, &other);
	backend = lb_backend(flow->backend);
	if (!backend)
		return 0;
	revision = (__u64)lb_frontend_revision(flow->frontend) + READ_ONCE(backend->revision);
	if (flow->state & FLOW_SERVICE) {
		/* The addresses are those of the other entry. */
		one = *flow_addr(key, flow->opener);
		if (flow->state & FLOW_HAIRPIN)
			service_loopback(&other, !addr_is_v4(&one));
		else
			other = backend->addr;
	}
	return revision + flow_address_revision(&one, &other);
}

/* Whether a plain packet of this end may go the established way, in its translated flow. */
static __always_inline bool translate_stands(struct flow *flow, const struct flow_key *key,
					     __u32 from)
{
	return flow->state & FLOW_CONFIRMED && translate_serves(flow, from) &&
	       (flow->changes == translate_changes(flow) || flow_current(flow, key));
}

/* ------------------------------------------------------------------ the packet */

/* What one end of a packet changes into. */
struct new_end {
	struct addr from;
	struct addr to;
	__be16 port;
	enum end_kind end;
};

/*
 * An answer is from the service, anything else for the backend. Of a flow with itself also the other
 * end, which `self` says, gets another address; it keeps its port, and `port` what it was.
 */
static __always_inline bool translate_change(struct new_end *change, const struct flow *flow,
					     bool answer, bool self)
{
	struct lb_frontend *frontend = lb_frontend(flow->frontend);
	struct lb_backend *backend = lb_backend(flow->backend);
	struct addr loopback;

	if (!frontend || !backend)
		return false;
	if (self) {
		service_loopback(&loopback, !addr_is_v4(&backend->addr));
		change->from = answer ? loopback : backend->addr;
		change->to = answer ? backend->addr : loopback;
	} else {
		change->from = answer ? backend->addr : frontend->addr;
		change->to = answer ? frontend->addr : backend->addr;
		change->port = answer ? frontend->port : backend->port;
	}
	change->end = answer != self ? SOURCE : DESTINATION;
	return true;
}

/* Writes the translation into a packet of the flow, whose transport header is at `l4`. */
static __noinline bool translate_write(struct __sk_buff *skb, const struct flow *flow, __u8 proto,
				       __u32 l4, bool answer)
{
	struct headers headers = { .l4_off = l4, .proto = proto };
	struct new_end change = {};

	if (!translate_change(&change, flow, answer, false))
		return false;
	headers.ipv6 = !addr_is_v4(&change.to);
	if (!rewrite_end(skb, &headers, change.end, &change.to, change.port))
		return false;
	if (!(flow->state & FLOW_HAIRPIN))
		return true;
	return translate_change(&change, flow, answer, true) &&
	       rewrite_address(skb, &headers, change.end, &change.to);
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
		translate_count(flow, frontend, skb->len);
		if (frontend->affinity) {
			struct lb_affinity_key client =
				service_client(flow_addr(&work->key, flow->opener),
					       frontend->service);

			lb_remember(&client, flow->backend);
		}
	}
	if (!translate_write(skb, flow, packet->proto,
			     packet->fragment == FRAGMENT_LATER ? 0 : packet->l4_off, answer))
		return DROP(packet, FILE_TRANSLATE, DROP_WRITE_ERROR);
	return 0;
}

/* A plain packet of an established flow; false if it cannot be written. */
static __always_inline bool translate_established(struct __sk_buff *skb, const struct flow *flow,
						  const struct plain *plain)
{
	__u32 l4 = ETHER_LEN + (plain->ipv6 ? sizeof(struct ipv6hdr) : sizeof(struct iphdr));
	struct lb_frontend *frontend;

	if (flow->state & FLOW_BACKEND)
		return translate_write(skb, flow, plain->key.proto, l4, true);
	frontend = lb_frontend(flow->frontend);
	if (frontend)
		translate_count(flow, frontend, skb->len);
	return translate_write(skb, flow, plain->key.proto, l4, false);
}

/* One end of an ICMP error, and of the packet that it quotes, which went the other way. */
static __noinline bool translate_error_end(struct __sk_buff *skb, const struct work *work,
					   bool answer, bool self)
{
	const struct packet *packet = &work->packet;
	struct headers headers = { packet->l4_off, work->key.proto, packet->ipv6 };
	struct new_end change = { .port = flow_port(&work->key, work->flow.opener) };

	if (!translate_change(&change, &work->flow, answer, self))
		return false;
	if (!rewrite_quoted(skb, &headers, !change.end, &change.to, change.port))
		return false;
	/* A router on the way speaks as itself. */
	if (change.end == SOURCE && !addr_equal(&change.from, &packet->src))
		return true;
	headers.proto = packet->proto;
	/* Or the compiler keeps a pointer into the context, which the verifier does not follow. */
	barrier_var(skb);
	return rewrite_address(skb, &headers, change.end, &change.to);
}

/* An ICMP error about a translated flow goes the way of its packets; 0 or a drop reason. */
__noinline int service_error(struct __sk_buff *skb)
{
	struct work *work = work_get();
	struct packet *packet;
	__u8 head;
	bool answer;

	if (!work)
		return DROP_NO_SERVICE_BACKEND;
	packet = &work->packet;
	answer = work->flow.state & FLOW_BACKEND;
	ctx_pull(skb);
	/* What follows options would be looked for at the wrong place. */
	if (bpf_skb_load_bytes(skb, packet->l4_off + 8, &head, sizeof(head)) ||
	    (!packet->ipv6 && head != 0x45))
		return DROP(packet, FILE_TRANSLATE, DROP_INVALID_PACKET);
	if (!translate_error_end(skb, work, answer, false))
		return DROP(packet, FILE_TRANSLATE, DROP_WRITE_ERROR);
	if (work->flow.state & FLOW_HAIRPIN && !translate_error_end(skb, work, answer, true))
		return DROP(packet, FILE_TRANSLATE, DROP_WRITE_ERROR);
	return 0;
}

/* Writes into a packet that was admitted what its flow's translation is; 0 or a drop reason. */
static __always_inline int translate_packet(struct __sk_buff *skb, const struct work *work)
{
	if (!(work->flow.state & FLOW_TRANSLATED))
		return 0;
	return work->packet.icmp_class == ICMP_CLASS_ERROR ? service_error(skb) : service_finish(skb);
}

#endif
