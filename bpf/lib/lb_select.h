/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The choice of a backend: who the client met before, the Maglev table, or chance. */
#ifndef PCL_LB_SELECT_H
#define PCL_LB_SELECT_H

#include "lb_affinity.h"
#include "lb_flow.h"
#include "lb_hash.h"
#include "lb_range.h"

static __always_inline struct lb_affinity_key lb_client(const struct lb_flow_key *key,
							 __u32 service)
{
	struct lb_affinity_key client = { .client = key->client, .service = service };

	return client;
}

/* The backend of a new flow; 0 if there is none. */
static __always_inline __u32 lb_choose(const struct lb_service *service,
				       const struct lb_flow_key *key)
{
	struct lb_affinity_key client = lb_client(key, service->id);
	__u32 backend;

	if (service->affinity) {
		backend = lb_remembered(service, &client, LB_EXTERNAL);
		if (backend)
			return backend;
	}
	if (service->flags & LB_MAGLEV)
		return lb_backend_in(service,
				     lb_flow_hash(&key->client,
						  service->affinity ? 0 : key->client_port,
						  key->service_port, key->proto));
	return lb_backend_in(service, bpf_get_prandom_u32());
}

static __always_inline void lb_remember_client(const struct lb_flow_key *key,
					       const struct lb_flow *flow)
{
	struct lb_affinity_key client = lb_client(key, flow->service);

	lb_remember(&client, flow->backend);
}

#endif
