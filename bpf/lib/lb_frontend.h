/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Frontends by number, for programs that give answers the service's address back. */
#ifndef PCL_LB_FRONTEND_H
#define PCL_LB_FRONTEND_H

#include "lb.h"

struct lb_frontend {
	struct addr addr;
	__be16 port;
	__u8 proto;
	__u8 pad;
	__u32 revision;		/* of the entry that has the number; only ever grows */
	__u32 service;		/* id, for the counters */
	__u32 affinity;		/* seconds that a client may be silent, 0: none */
};

/* 0 is nobody's, and its revision counts every change of services: it is bumped after the others. */
#define LB_FRONTEND_ANY 0

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 4096);
	__type(key, __u32);
	__type(value, struct lb_frontend);
} lb_frontends SEC(".maps");

static __always_inline struct lb_frontend *lb_frontend(__u32 number)
{
	return bpf_map_lookup_elem(&lb_frontends, &number);
}

static __always_inline __u32 lb_frontend_revision(__u32 number)
{
	struct lb_frontend *frontend = lb_frontend(number);

	return frontend ? READ_ONCE(frontend->revision) : 0;
}

#endif
