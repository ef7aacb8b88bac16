/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Policy: for each endpoint a trie from (identity, direction, protocol, port prefix) to a verdict.
 *
 * `policies` has two halves; slot `generation * max_endpoints + endpoint` is the endpoint's trie of
 * that generation. A decision reads the generation once and uses it for both ends of a flow, so a
 * change of policy is atomic over all endpoints (docs/design.md, "Policy generations").
 */
#ifndef PCL_POLICY_H
#define PCL_POLICY_H

#include "config.h"
#include "drop.h"

struct policy_key {
	__u32 prefixlen;	/* 40 identity alone, 48 with the protocol, 49..64 with port bits */
	__u32 identity;		/* of the remote end, 0 = any */
	__u8 direction;		/* enum direction */
	__u8 proto;		/* IPPROTO_*, 0 = any, and then any port */
	__be16 port;		/* destination port or ICMP type */
};

enum policy_flags {
	POLICY_DENY = 1,
	POLICY_AUDIT = 2,	/* what the entry keeps out passes, and is told of */
};

struct policy_entry {
	__be16 proxy_port;	/* 0 = no redirect, 65535 = redirect, but no proxy is attached */
	__u8 flags;		/* enum policy_flags */
	__u8 lpm_bits;		/* protocol and port bits that the key fixes, 0..24 */
	__u32 precedence;	/* inverted priority << 8 | 255 deny, 2..254 redirect, 1 allow */
	__u32 rule;		/* cookie of the rules behind the entry, 0 = none */
	__u8 auth_type;		/* how the ends prove who they are, and AUTH_EXPLICIT */
	__u8 pad[3];
};

/* A rule of this very entry says how; without it the mode is that of a wider entry. */
#define AUTH_EXPLICIT 0x80
#define AUTH_MODE 0x7f

#define POLICY_FULL_PREFIX 64

struct policy_trie {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 16384);
	__type(key, struct policy_key);
	__type(value, struct policy_entry);
};

/* What each endpoint's trie looks like; user space makes them after this one. */
struct policy_trie policy_template SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 512);
	__type(key, __u32);
	__array(values, struct policy_trie);
} policies SEC(".maps");

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

/* Asks one endpoint's policy. 0 or a drop reason; `*rule` is the cookie of the entry that decided. */
static __always_inline int policy_decide(struct policy_query *query, __u32 *rule)
{
	struct policy_key key = {
		.prefixlen = POLICY_FULL_PREFIX,
		.identity = query->identity,
		.direction = query->direction,
		.proto = query->proto,
		.port = query->port,
	};
	__u32 slot = query->generation * max_endpoints + query->endpoint;
	const struct policy_entry *own, *any, *entry;
	void *trie;
	int denial;

	*rule = 0;
	query->audited = false;
	trie = bpf_map_lookup_elem(&policies, &slot);
	if (!trie)
		return DROP_ENDPOINT_NOT_READY;
	own = bpf_map_lookup_elem(trie, &key);
	key.identity = 0;
	any = bpf_map_lookup_elem(trie, &key);
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
