/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What large functions hand to each other, one set a CPU. */
#ifndef PCL_LB_WORK_H
#define PCL_LB_WORK_H

#include "lb_nat.h"

/* Between whom a packet shall be. */
struct lb_nat_ends {
	struct addr source;
	struct addr destination;
	__be16 ports[2];	/* in the packet's order */
	__u32 pad;
};

/*
 * The large functions are global, so that the verifier walks each by itself, once. Until Linux 5.12
 * such a function takes the context and numbers only, so the rest is here.
 */
struct lb_work {
	struct lb_packet packet;
	struct lb_flow flow;	/* the packet's */
	struct lb_nat_key key;	/* of the entry that looks for a port */
	struct lb_nat nat;	/* that entry */
	struct lb_nat_ends ends;	/* that the packet shall have */
	__u8 ethernet[12];	/* of the next hop, as in struct lb_hop */
	__u8 pad[4];
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct lb_work);
} lb_work SEC(".maps");

static __always_inline struct lb_work *lb_work_here(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&lb_work, &zero);
}

#endif
