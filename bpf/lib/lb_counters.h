/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What clients send, by the numbers of service and backend. */
#ifndef PCL_LB_COUNTERS_H
#define PCL_LB_COUNTERS_H

#include "metrics.h"

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

/* A client's packet goes to a service's backend. */
static __always_inline void count_client(__u32 service, __u32 backend, __u32 bytes)
{
	count(&lb_service_counters, service, bytes);
	count(&lb_backend_counters, backend, bytes);
}

#endif
