/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The datapath's side of hooks.h. */
#ifndef PCL_HOOK_CALL_H
#define PCL_HOOK_CALL_H

#include "config.h"
#include "hooks.h"
#include "packet.h"

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, HOOK_SLOTS);
	__type(key, __u32);
	__type(value, __u32);
} hooks SEC(".maps");

/* A tail call from a subprogram comes back here with the callee's return value. */
static __noinline int hook_run(struct __sk_buff *skb, __u32 slot)
{
	int result = TC_ACT_UNSPEC;

	bpf_tail_call(skb, &hooks, slot);
	/* Reached only when the slot is empty. */
	barrier_var(result);
	return result;
}

/* Calls a slot's program; TC_ACT_OK or a drop reason. */
static __always_inline int hook_call(struct __sk_buff *skb, struct packet *packet, __u32 slot,
				     __u8 direction, __u32 src_identity, __u32 dst_identity)
{
	struct hook_args *args;
	__u32 zero = 0;

	if (!hooks_enabled)
		return TC_ACT_OK;
	args = bpf_map_lookup_elem(&hook_args, &zero);
	if (!args)
		return DROP(packet, FILE_NONE, DROP_HOOK);
	args->src = packet->src;
	args->dst = packet->dst;
	args->sport = packet->sport;
	args->dport = packet->dport;
	args->proto = packet->proto;
	args->direction = direction;
	args->slot = slot;
	args->src_identity = src_identity;
	args->dst_identity = dst_identity;
	return hook_run(skb, slot) == TC_ACT_SHOT ? DROP(packet, FILE_NONE, DROP_HOOK) : TC_ACT_OK;
}

#endif
