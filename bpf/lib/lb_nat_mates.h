/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The two entries of a translated flow are kept alike, and made again from each other. */
#ifndef PCL_LB_NAT_MATES_H
#define PCL_LB_NAT_MATES_H

#include "lb_nat.h"

/* What one entry of a flow has learned, the other learns: the end of a side, and a longer life. */
static __always_inline void lb_nat_tell(const struct lb_flow *from, struct lb_flow *to)
{
	to->flags |= from->flags & LB_FLOW_KEPT;
	to->expires = from->expires;
}

/*
 * Brings the entry for answers up to date with the flow's; false if it is gone or another flow's.
 * Not inline: what it needs of the stack would be every packet's.
 */
static __noinline bool lb_nat_refresh_answers(const struct lb_flow_key *flow_key,
					      const struct lb_flow *flow)
{
	struct lb_backend *backend = bpf_map_lookup_elem(&lb_backends, &flow->backend);
	struct lb_nat_key key = {};
	struct lb_nat *nat;

	if (!backend)
		return false;
	lb_nat_key_of(backend, flow->nat_port, flow_key->proto, &key);
	nat = bpf_map_lookup_elem(&lb_nat, &key);
	if (!lb_nat_lives(nat) || !lb_flow_key_equal(&nat->key, flow_key))
		return false;
	lb_nat_tell(flow, &nat->flow);
	lb_nat_use(&key);
	return true;
}

/* The other way round; the flow's entry is made again if it is gone. */
static __noinline bool lb_nat_refresh_flow(const struct lb_nat_key *key, const struct lb_nat *nat)
{
	struct lb_flow *flow = bpf_map_lookup_elem(&lb_flows, &nat->key);

	lb_nat_use(key);
	if (!flow || lb_flow_expired(flow))
		return lb_is_collecting() ||
		       !bpf_map_update_elem(&lb_flows, &nat->key, &nat->flow, BPF_ANY);
	if (flow->backend != nat->flow.backend || flow->nat_port != nat->flow.nat_port)
		return false;
	lb_nat_tell(&nat->flow, flow);
	return true;
}

/* The flow is known: its entry for answers leaves the pending ones. */
static __noinline bool lb_nat_confirm(const struct lb_flow_key *flow_key,
				      const struct lb_flow *flow)
{
	struct lb_backend *backend = bpf_map_lookup_elem(&lb_backends, &flow->backend);
	struct lb_nat_key key = {};
	struct lb_nat *pending;

	if (!backend)
		return false;
	lb_nat_key_of(backend, flow->nat_port, flow_key->proto, &key);
	pending = bpf_map_lookup_elem(&lb_nat_pending, &key);
	if (!pending)
		return true;
	if (bpf_map_update_elem(&lb_nat, &key, pending, BPF_ANY))
		return false;
	bpf_map_delete_elem(&lb_nat_pending, &key);
	return true;
}

#endif
