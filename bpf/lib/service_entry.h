/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The service's entry of a translated flow, made from the backend's (translate.h). */
#ifndef PCL_SERVICE_ENTRY_H
#define PCL_SERVICE_ENTRY_H

#include "admit.h"
#include "lb_affinity.h"
#include "lb_frontend.h"

/* The client's own address, by the backend's `work->key` and the end that it has there. */
static __always_inline const struct addr *service_client_addr(const struct work *work, __u32 client)
{
	bool hairpin = work->translation.state & FLOW_HAIRPIN;

	return flow_addr(&work->key, hairpin ? !client : client);
}

/* The key of the service's entry, by the same; returns the client's end in it. */
static __always_inline __u32 service_key(struct flow_key *key, const struct work *work,
					 __u32 client, const struct lb_frontend *frontend)
{
	return flow_key_make(key, service_client_addr(work, client),
			     flow_port(&work->key, client), &frontend->addr, frontend->port,
			     frontend->proto);
}

/* The client of `work->flow` is to meet the same backend again. */
static __always_inline void service_remember(const struct work *work,
					     const struct lb_frontend *frontend)
{
	struct lb_affinity_key client = {
		.client = *service_client_addr(work, work->flow.opener),
		.service = frontend->service,
	};

	lb_remember(&client, work->flow.backend);
}

/* Whether a service's entry leads to the same backend. */
static __always_inline bool service_entry_of(const struct flow *entry,
					     const struct translation *translation)
{
	return entry->state & FLOW_SERVICE && entry->backend == translation->backend &&
	       entry->frontend == translation->frontend;
}

/*
 * All but what the entry counts itself, from the backend's entry; `client` is the end in this key.
 * Which of the ends has closed is not asked of this entry, only whether one or both have.
 */
static __always_inline void service_entry_fill(struct flow *entry, const struct flow *flow,
					       __u32 client)
{
	__u32 turned = client ^ flow->opener;

	entry->ifindex[0] = flow->ifindex[END(turned)];
	entry->ifindex[1] = flow->ifindex[END(!turned)];
	entry->endpoint[0] = flow->endpoint[END(turned)];
	entry->endpoint[1] = flow->endpoint[END(!turned)];
	entry->identity[0] = flow->identity[END(turned)];
	entry->identity[1] = flow->identity[END(!turned)];
	entry->due = flow->due;
	entry->changes = flow->changes;
	entry->opener = client;
	entry->state = FLOW_SERVICE | (flow->state & ~FLOW_BACKEND);
	entry->expires = flow->expires;
	entry->expires_high = flow->expires_high;
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
	__u32 client;
	__u64 now = flow_now();
	struct flow_key key;
	struct found found;
	long failed;

	client = service_key(&key, work, flow->opener, frontend);
	flow_lookup(&key, now, &found);
	/* A client that is to be remembered is looked after once a second. */
	if (frontend->affinity && (__s32)(flow->due - (__u32)now) > (__s32)jiffies_per_second)
		flow->due = now + jiffies_per_second;
	if (found.flow && service_entry_of(found.flow, &work->translation)) {
		service_entry_fill(found.flow, flow, client);
		flow_add_up(found.flow, END(client));
		if (!found.in_pending || !work->in_flows)
			return 0;
	} else if (found.flow) {
		/* The ports lead to another backend, or are in use without the service. */
		if (answer)
			return DROP(&work->packet, FILE_TRANSLATE, DROP_NO_SERVICE_BACKEND);
		if (!found.in_pending)
			bpf_map_delete_elem(&flows, &key);
	}
	__builtin_memset(made, 0, sizeof(*made));
	service_entry_fill(made, flow, client);
	if (!work->in_flows) {
		failed = bpf_map_update_elem(&pending, &key, made, BPF_ANY);
	} else {
		failed = bpf_map_update_elem(&flows, &key, made, BPF_ANY);
		if (found.flow && found.in_pending)
			bpf_map_delete_elem(&pending, &key);
	}
	return failed ? DROP(&work->packet, FILE_TRANSLATE, DROP_FLOW_INSERT) : 0;
}

#endif
