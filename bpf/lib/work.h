/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * What the functions of a program hand to each other, one set a CPU.
 *
 * The large functions are global ones: the verifier checks each by itself, once, and not for every
 * way that leads to it: one of them left static doubled what it looks at (tests/bpf/
 * test_verifier_cost.py). Until Linux 5.12 a global function takes the context and numbers only, so
 * the rest is here.
 */
#ifndef PCL_WORK_H
#define PCL_WORK_H

#include "flow.h"
#include "packet.h"

struct event_context {
	__u32 src_identity;
	__u32 dst_identity;
	__u32 rule;
	__u32 frontend;
	__u16 endpoint;
	__u8 type;		/* enum event_type */
	__u8 reason;
	__u8 direction;		/* enum direction */
	__u8 flags;		/* enum event_flags */
	__u8 pad[2];
};

/* What stands between the packet and its flow; all 0 if nothing is translated (translate.h). */
struct translation {
	__u32 backend;		/* as in the flow's entry */
	__u32 frontend;
	__u64 revision;		/* of both, under which the backend was chosen */
	__u32 changes;		/* of services, before anything of them was looked at */
	__u32 device;		/* by which a client outside came; else 0 */
	__u8 state;		/* of the flow: FLOW_BACKEND, FLOW_HAIRPIN and FLOW_OUTSIDE */
	__u8 reject;		/* tell the sender that there is no backend */
	__u8 pad[6];
};

struct work {
	struct packet packet;
	struct flow flow;	/* one that is decided, or a copy of the packet's */
	struct flow_key key;	/* of the packet's flow */
	struct event_context event;
	struct policy_query query;
	struct translation translation;
	__u64 route[8];		/* struct bpf_fib_lookup: see is_for_node */
	struct flow service;	/* the other entry of a translated flow, as it is made */
	__u32 in_flows;		/* `flow` is in `flows`, not in `pending` */
	__u32 came_by;		/* device by which the packet came to the node, 0 = the node made it */
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct work);
} work SEC(".maps");

static __always_inline struct work *work_get(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&work, &zero);
}

#endif
