/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What the load balancer counts: packets of clients by service and backend, and all by reason. */
#ifndef PCL_LB_COUNT_H
#define PCL_LB_COUNT_H

#include "lb_counters.h"
#include "lb_flow.h"

static __always_inline void count_sent(const struct lb_flow *flow, __u32 bytes)
{
	count_client(flow->service, flow->backend, bytes);
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
