/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Policy: for each endpoint a hash from the identity of the other end to two tries, that identity's
 * own and that of any identity, which lead from protocol and port to an entry: the verdict.
 *
 * A lookup costs one probe and at most six steps in each trie, whatever the number of identities,
 * rules and ranges of ports. Nodes and entries are rows of two arrays which all endpoints share; a
 * row in use never changes. Nor does a row of an identity: it comes and goes by itself, and to have
 * other tries its endpoint gets another hash. (A hash puts an element's successor at the head of the
 * bucket and then takes the element out: who is between the two finds neither, and would go by row 0.)
 *
 * `policies` has two halves; slot `generation * max_endpoints + endpoint` is the endpoint's hash of
 * that generation. A decision reads the generation once and uses it for both ends of a flow, so a
 * change of policy is atomic over all endpoints (docs/design.md, "Policy generations").
 */
#ifndef PCL_POLICY_H
#define PCL_POLICY_H

#include "config.h"
#include "drop.h"

enum policy_flags {
	POLICY_DENY = 1,
	POLICY_AUDIT = 2,	/* what the entry keeps out passes, and is told of */
};

struct policy_entry {
	__be16 proxy_port;	/* 0 = no redirect, 65535 = redirect, but no proxy is attached */
	__u8 flags;		/* enum policy_flags */
	__u8 lpm_bits;		/* protocol and port bits that it fixes: 0, 8 (any port) .. 24 */
	__u32 precedence;	/* inverted priority << 8 | 255 deny, 2..254 redirect, 1 allow */
	__u32 rule;		/* cookie of the rules behind the entry, 0 = none */
	__u8 auth_type;		/* how the ends prove who they are, and AUTH_EXPLICIT */
	__u8 pad[3];
};

/* A rule of this very entry says how; without it the mode is that of a wider entry. */
#define AUTH_EXPLICIT 0x80
#define AUTH_MODE 0x7f

#define POLICY_NODE_BITS 4
#define POLICY_CELL_NODE 0x80000000

/*
 * A step of four bits, of the protocol's eight and then of the port's sixteen. A cell leads to
 * another node (POLICY_CELL_NODE and its row), or is the row of the entry that decides, 0 if none.
 */
struct policy_node {
	__u32 cell[1 << POLICY_NODE_BITS];
};

/*
 * By direction (enum direction): cells that the tries begin with. `identity` is the key once more and
 * comes first, since the kernel may use an element again at once (policy_row).
 */
struct policy_roots {
	__u32 identity;
	__u32 own[2];		/* of what is said of this identity */
	__u32 any[2];		/* of any identity; the same in all rows of an endpoint */
};

/*
 * By the identity of the other end; 0 stands for those that have no row. Not preallocated: it would
 * have to be as large as the largest policy.
 */
struct policy_identities {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 64);
	__type(key, __u32);
	__type(value, struct policy_roots);
};

/* What each endpoint's hash looks like; user space makes them after this one. */
struct policy_identities policy_template SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 512);
	__type(key, __u32);
	__array(values, struct policy_identities);
} policies SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 16384);
	__type(key, __u32);
	__type(value, struct policy_node);
} policy_nodes SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 16384);
	__type(key, __u32);
	__type(value, struct policy_entry);
} policy_entries SEC(".maps");

/* One cell: which half of `policies` decides. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} policy_generation SEC(".maps");

/*
 * By endpoint id: counts changes of its policy. Monotonic, also when an id is used again. Cell 0,
 * no endpoint's, counts them all: it is bumped after the others.
 */
#define POLICY_REV_ANY 0

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 256);
	__type(key, __u32);
	__type(value, __u64);
} policy_rev SEC(".maps");

static __always_inline __u64 policy_revision(__u32 endpoint)
{
	__u64 *cell = bpf_map_lookup_elem(&policy_rev, &endpoint);

	return cell ? READ_ONCE(*cell) : 0;
}

static __always_inline __u32 policy_current_generation(void)
{
	__u32 zero = 0;
	__u64 *cell = bpf_map_lookup_elem(&policy_generation, &zero);

	return cell ? READ_ONCE(*cell) & 1 : 0;
}

/* The entry that decides between the identity's own (`own`) and the wildcard's (`any`), or NULL. */
static __always_inline const struct policy_entry *
policy_choose(const struct policy_entry *own, const struct policy_entry *any)
{
	if (!own)
		return any;
	if (!any)
		return own;
	if (own->precedence != any->precedence)
		return own->precedence > any->precedence ? own : any;
	return any->lpm_bits > own->lpm_bits ? any : own;
}

/* Whether the ends must be authenticated: what the entry that decides says, or, where it says
 * nothing itself, the other one of the same precedence. */
static __always_inline bool policy_authenticates(const struct policy_entry *entry,
						 const struct policy_entry *other)
{
	if (entry->auth_type & AUTH_EXPLICIT || !other || other->precedence != entry->precedence)
		return entry->auth_type & AUTH_MODE;
	return (entry->auth_type | other->auth_type) & AUTH_MODE;
}

struct policy_query {
	__u32 generation;
	__u32 endpoint;		/* whose policy */
	__u32 identity;		/* of the other end */
	__be16 port;
	__u8 direction;
	__u8 proto;
	__u32 tell;		/* an event also if it is allowed */
	__u32 audited;		/* set by policy_decide: it was denied, and passes all the same */
};

/* Why `entry` keeps a packet out, or 0; `other` is the one that it was chosen from. */
static __always_inline int policy_denial(const struct policy_entry *entry,
					 const struct policy_entry *other)
{
	if (entry->flags & POLICY_DENY)
		return DROP_POLICY_DENY;
	if ((entry->precedence & 0xff) == 0)
		return DROP_POLICY;
	return policy_authenticates(entry, other) ? DROP_POLICY_AUTH_REQUIRED : FORWARDED;
}

/* The narrowest entry of the trie which begins with `cell`, or NULL. */
static __always_inline const struct policy_entry *policy_walk(__u32 cell,
							      const struct policy_query *query)
{
	__u32 path = query->proto << 16 | bpf_ntohs(query->port), at;
	struct policy_node *node;
	int shift;

#pragma unroll
	for (shift = 24 - POLICY_NODE_BITS; shift >= 0; shift -= POLICY_NODE_BITS) {
		if (!(cell & POLICY_CELL_NODE))
			break;
		cell &= ~POLICY_CELL_NODE;
		node = bpf_map_lookup_elem(&policy_nodes, &cell);
		if (!node)
			return NULL;
		at = path >> shift;
		barrier_var(at);	/* or clang leaves out the mask, and 5.10 has no bounds */
		cell = node->cell[at & ((1 << POLICY_NODE_BITS) - 1)];
	}
	return cell ? bpf_map_lookup_elem(&policy_entries, &cell) : NULL;
}

/* The cells of one direction: of an identity's own trie, and of any identity's. */
struct policy_cells {
	__u32 own;
	__u32 any;
};

/*
 * Reads a row; DROP_POLICY if there is none. Since Linux 6.1 a hash gives the memory of an element that
 * is deleted to the next one at once, so what is read may be that of another identity. Then its name,
 * which is written first and read last, is another: DROP_ENDPOINT_NOT_READY.
 */
static __always_inline int policy_row(void *identities, __u32 identity, __u8 direction,
				      struct policy_cells *cells)
{
	struct policy_roots *roots = bpf_map_lookup_elem(identities, &identity);

	if (!roots)
		return DROP_POLICY;
	cells->own = READ_ONCE(roots->own[direction & 1]);
	cells->any = READ_ONCE(roots->any[direction & 1]);
	barrier();
	return READ_ONCE(roots->identity) == identity ? FORWARDED : DROP_ENDPOINT_NOT_READY;
}

/* The same, but once more where it went meanwhile: what it is by then is told by the second look. */
static __always_inline int policy_row_again(void *identities, __u32 identity, __u8 direction,
					    struct policy_cells *cells)
{
	int reason = policy_row(identities, identity, direction, cells);

	if (reason == DROP_ENDPOINT_NOT_READY)
		reason = policy_row(identities, identity, direction, cells);
	return reason;
}

/* Asks one endpoint's policy. 0 or a drop reason; `*rule` is the cookie of the entry that decided. */
static __always_inline int policy_decide(struct policy_query *query, __u32 *rule)
{
	__u32 key = query->generation * max_endpoints + query->endpoint;
	const struct policy_entry *own, *any, *entry;
	struct policy_cells cells;
	void *identities;
	int denial;

	*rule = 0;
	query->audited = false;
	identities = bpf_map_lookup_elem(&policies, &key);
	if (!identities)
		return DROP_ENDPOINT_NOT_READY;
	denial = policy_row_again(identities, query->identity, query->direction, &cells);
	if (denial == DROP_POLICY)
		denial = policy_row_again(identities, 0, query->direction, &cells);
	if (denial)
		return denial;
	own = policy_walk(cells.own, query);
	any = policy_walk(cells.any, query);
	entry = policy_choose(own, any);
	if (!entry)
		return DROP_POLICY;
	*rule = entry->rule;
	denial = policy_denial(entry, entry == own ? any : own);
	if (denial && !(entry->flags & POLICY_AUDIT))
		return denial;
	query->audited = denial != FORWARDED;
	return entry->proxy_port ? DROP_NO_PROXY : FORWARDED;
}

#endif
