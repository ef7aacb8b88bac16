/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * What user space tells the load balancer: services, their backends, and who may use them.
 *
 * A service's slots name a backend each: all slots of its Maglev table, or as many as there are
 * candidates. They lie in rows of one array, and not in a map of their own for each service, since
 * writing a map of maps makes the kernel wait for running programs, ten thousand times.
 */
#ifndef PCL_LB_H
#define PCL_LB_H

#include "addr.h"

enum lb_scope {
	LB_EXTERNAL = 0,	/* for clients outside of the cluster, and for all where it is alone */
	LB_INTERNAL = 1,	/* for clients in the cluster, where other backends are theirs */
};

/*
 * In the internal scope, the unspecified address stands for the node's loopback addresses, at which
 * the node's own clients find its NodePorts.
 */
struct lb_service_key {
	struct addr addr;
	__be16 port;		/* 0 with proto 0: any other port of the address */
	__u8 proto;
	__u8 scope;		/* enum lb_scope */
	__u8 pad[4];
};

enum lb_service_flags {
	LB_MAGLEV = 1,		/* the flow's hash chooses the slot, not chance */
	LB_DENY_RANGES = 2,	/* source ranges are those who may not */
	LB_OTHER_PORTS = 4,	/* no service: what else is sent to a service's address */
	LB_CLUSTER_IP = 8,	/* not for clients from outside */
	LB_NODE_PORT = 16,	/* no socket of the node may be bound to it */
	LB_OPTION = 32,		/* DSR by an IP option; where neither is set, by IP in IP */
	LB_GENEVE = 64,		/* DSR by Geneve */
	LB_SNAT = 128,		/* its new flows are translated */
	LB_MAGLEV_INSIDE = 256,	/* the hash chooses for pods of the node too */
};

struct lb_service {
	__u32 id;		/* of its revision and counters */
	__u32 first;		/* its first slot */
	__u32 slots;		/* how many it has; 0: no backend */
	__u32 ranges;		/* its source ranges, 0: none are checked */
	__u32 affinity;		/* seconds that a client may be silent, 0: none */
	__u32 revision;		/* flows that were decided by this entry have it */
	__u32 frontend;		/* its number in `lb_frontends`, 0: none was given */
	__u32 frontend_revision;	/* the same for flows that know the frontend by its number */
	__u16 flags;		/* enum lb_service_flags */
	__u8 pad[6];
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__type(key, struct lb_service_key);
	__type(value, struct lb_service);
} lb_services SEC(".maps");

#define LB_ROW_BITS 4
#define LB_ROW (1 << LB_ROW_BITS)

struct lb_row {
	__u32 backend[LB_ROW];	/* ids, 0: none */
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 65536);
	__type(key, __u32);
	__type(value, struct lb_row);
} lb_slots SEC(".maps");

enum lb_backend_state {
	LB_ACTIVE = 0,
	LB_TERMINATING = 1,
	LB_QUARANTINED = 2,
	LB_MAINTENANCE = 3,
	LB_TERMINATING_NOT_SERVING = 4,
};

struct lb_backend {
	struct addr addr;
	__be16 port;
	__u8 proto;
	__u8 state;		/* enum lb_backend_state */
	__u32 revision;		/* odd while it is there; goes up when it comes and when it goes */
};

/* By id; 0 is nobody's. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 4096);
	__type(key, __u32);
	__type(value, struct lb_backend);
} lb_backends SEC(".maps");

/* By the service's id: the revision of its entries; flows of another one are decided again. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 4096);
	__type(key, __u32);
	__type(value, __u32);
} lb_revisions SEC(".maps");

struct lb_range_key {
	__u32 prefixlen;	/* 32 and the address's bits */
	__u32 ranges;
	struct addr addr;
};

/* 1 for a range of the set; 0 for IPv4 beside an IPv6 range that would cover its 16-byte form. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 16384);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct lb_range_key);
	__type(value, __u32);
} lb_ranges SEC(".maps");

struct lb_member_key {
	__u32 service;
	__u32 backend;
};

/* Which backends a service has, and in which scopes each takes new connections: bits of those. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__type(key, struct lb_member_key);
	__type(value, __u32);
} lb_members SEC(".maps");

/* NULL if the backend is none of the service's. */
static __always_inline __u32 *lb_member(__u32 service, __u32 backend)
{
	struct lb_member_key key = { .service = service, .backend = backend };

	return bpf_map_lookup_elem(&lb_members, &key);
}

/* Whether the service's backend takes new connections of clients in a scope. */
static __always_inline bool lb_takes(__u32 service, __u32 backend, enum lb_scope scope)
{
	__u32 *takes = lb_member(service, backend);

	return takes && *takes & 1 << scope;
}

/* The slot that a number falls on, and the backend in it; 0 if there is none. */
static __always_inline __u32 lb_backend_in(const struct lb_service *service, __u32 number)
{
	__u32 slot, index;
	struct lb_row *row;

	if (!service->slots)
		return 0;
	slot = service->first + number % service->slots;
	index = slot >> LB_ROW_BITS;
	row = bpf_map_lookup_elem(&lb_slots, &index);
	return row ? row->backend[slot & (LB_ROW - 1)] : 0;
}

#endif
