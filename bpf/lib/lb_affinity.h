/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Session affinity: which backend a client met, and for how long that holds. */
#ifndef PCL_LB_AFFINITY_H
#define PCL_LB_AFFINITY_H

#include "config.h"
#include "lb.h"

struct lb_affinity_key {
	struct addr client;	/* or the cookie of its network namespace, in the second half */
	__u32 service;
	__u32 netns;		/* a namespace is a client once for each IP version, this one; else 0 */
};

struct lb_affinity {
	__u32 backend;
	__u32 last_used;	/* jiffies, low word */
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, struct lb_affinity_key);
	__type(value, struct lb_affinity);
} lb_affinity SEC(".maps");

static __always_inline void lb_remember(const struct lb_affinity_key *client, __u32 backend)
{
	struct lb_affinity value = {
		.backend = backend,
		.last_used = bpf_jiffies64(),
	};

	bpf_map_update_elem(&lb_affinity, client, &value, BPF_ANY);
}

/* The backend that the client met before and may still have; 0 if there is none. */
static __always_inline __u32 lb_remembered(const struct lb_service *service,
					   const struct lb_affinity_key *client,
					   enum lb_scope scope)
{
	struct lb_affinity *met = bpf_map_lookup_elem(&lb_affinity, client);
	__u32 silent;

	if (!met)
		return 0;
	silent = (__u32)bpf_jiffies64() - met->last_used;
	if (silent >= service->affinity * jiffies_per_second)
		return 0;
	return lb_takes(service->id, met->backend, scope) ? met->backend : 0;
}

#endif
