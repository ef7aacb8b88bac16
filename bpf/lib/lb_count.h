/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What the load balancer counts: packets of clients by service and backend, and all by reason. */
#ifndef PCL_LB_COUNT_H
#define PCL_LB_COUNT_H

#include "lb_flow.h"
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

static __always_inline void count_sent(const struct lb_flow *flow, __u32 bytes)
{
	count(&lb_service_counters, flow->service, bytes);
	count(&lb_backend_counters, flow->backend, bytes);
	metrics_count(DIRECTION_INGRESS, FORWARDED, bytes);
}

static __always_inline int drop(const struct lb_packet *packet, enum drop_reason reason)
{
	metrics_count(DIRECTION_INGRESS, reason, packet->bytes);
	return CTX_DROP;
}

/* What goes back to clients counts in the other direction. */
static __always_inline int drop_answer(const struct lb_packet *packet, enum drop_reason reason)
{
	metrics_count(DIRECTION_EGRESS, reason, packet->bytes);
	return CTX_DROP;
}

#endif
