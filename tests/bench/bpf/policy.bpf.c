// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * What a decision by policy costs, beside two lookups in a longest-prefix trie of the same entries,
 * and what it costs to choose what is asked (`ask`, in all of them).
 */

#include <lib/policy.h>

CONFIG(__u32, identities, "how many there are, from `first_identity` on") = 1;
CONFIG(__u32, first_identity, "") = 1000;
CONFIG(__u32, ports, "how many are asked for, from `first_port` on") = 1;
CONFIG(__u32, first_port, "") = 8000;

struct prefix {
	__u32 prefixlen;	/* 40 identity and direction, 48 with the protocol, .. 64 with the port */
	__u32 identity;
	__u8 direction;
	__u8 proto;
	__be16 port;
};

struct prefixes {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1 << 18);
	__type(key, struct prefix);
	__type(value, struct policy_entry);
};

struct prefixes lpm SEC(".maps");

/* As tries would be found by generation and endpoint. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 2);
	__type(key, __u32);
	__array(values, struct prefixes);
} lpms SEC(".maps") = { .values = { &lpm } };

static __always_inline void ask(struct policy_query *query)
{
	__u32 number = bpf_get_prandom_u32();

	query->identity = first_identity + (number & 0xffffff) % identities;
	query->port = bpf_htons(first_port + (number >> 24) % ports);
	query->proto = 6;
	query->direction = 0;
	query->generation = 0;
	query->endpoint = 1;
}

SEC("tc")
int nothing(struct __sk_buff *skb)
{
	struct policy_query query;

	ask(&query);
	return (query.identity ^ query.port) == 1;
}

SEC("tc")
int decide(struct __sk_buff *skb)
{
	struct policy_query query;
	__u32 rule;

	ask(&query);
	return policy_decide(&query, &rule) || !rule;
}

SEC("tc")
int decide_by_lpm(struct __sk_buff *skb)
{
	const struct policy_entry *own, *any, *entry;
	struct prefix key = { .prefixlen = 64 };
	struct policy_query query;
	__u32 zero = 0;
	void *trie;

	ask(&query);
	key.identity = query.identity;
	key.direction = query.direction;
	key.proto = query.proto;
	key.port = query.port;
	trie = bpf_map_lookup_elem(&lpms, &zero);
	if (!trie)
		return 1;
	own = bpf_map_lookup_elem(trie, &key);
	key.identity = 0;
	any = bpf_map_lookup_elem(trie, &key);
	entry = policy_choose(own, any);
	return !entry || policy_denial(entry, entry == own ? any : own) || !entry->rule;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
