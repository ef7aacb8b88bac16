/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The port of the node that a translated flow gets: its client's, or one by chance.
 *
 * A port is the flow's from the moment that its entry is in `lb_nat_pending`, where only one can be
 * the first. One that has expired does not count in `lb_nat`, and is removed from `lb_nat_pending`.
 */
#ifndef PCL_LB_NAT_PORT_H
#define PCL_LB_NAT_PORT_H

#include "lb_work.h"
#include "metrics.h"

#define LB_NAT_TRIES 32

/* The socket of the node itself that the answer would be for. */
static __always_inline bool lb_nat_meets_socket(CTX *ctx, const struct lb_nat_key *key)
{
	bool ipv4 = addr_is_v4(&key->backend);
	struct bpf_sock_tuple tuple = {};
	struct bpf_sock *sk;
	struct addr own;
	__u32 size;

	lb_own_address(&own, ipv4);
	if (ipv4) {
		tuple.ipv4.saddr = key->backend.words[3];
		tuple.ipv4.daddr = own.words[3];
		tuple.ipv4.sport = key->backend_port;
		tuple.ipv4.dport = key->nat_port;
		size = sizeof(tuple.ipv4);
	} else {
		__builtin_memcpy(tuple.ipv6.saddr, &key->backend, 16);
		__builtin_memcpy(tuple.ipv6.daddr, &own, 16);
		tuple.ipv6.sport = key->backend_port;
		tuple.ipv6.dport = key->nat_port;
		size = sizeof(tuple.ipv6);
	}
	if (key->proto == IPPROTO_TCP)
		sk = bpf_skc_lookup_tcp(ctx, &tuple, size, BPF_F_CURRENT_NETNS, 0);
	else if (key->proto == IPPROTO_UDP)
		sk = bpf_sk_lookup_udp(ctx, &tuple, size, BPF_F_CURRENT_NETNS, 0);
	else
		return false;
	if (!sk)
		return false;
	bpf_sk_release(sk);
	return true;
}

/* Whether what comes to this port is for the node: a service at its address, or a socket. */
static __always_inline bool lb_nat_is_nodes(CTX *ctx, const struct lb_nat_key *key)
{
	struct addr own;

	lb_own_address(&own, addr_is_v4(&key->backend));
	return lb_filter_has(&own, lb_filter_port(key->nat_port, key->proto)) ||
	       lb_nat_meets_socket(ctx, key);
}

enum lb_nat_claim {
	LB_NAT_TAKEN = 0,
	LB_NAT_FREED = 1,	/* by us: it had expired, and is to be had from now on */
	LB_NAT_OURS = 2,
};

static __always_inline int lb_nat_if_same(struct lb_nat *there, const struct lb_nat *nat)
{
	if (!lb_flow_key_equal(&there->key, &nat->key))
		return LB_NAT_TAKEN;
	there->flow = nat->flow;
	return LB_NAT_OURS;
}

/* Asks for the port, of which `at` is the number among those of the node. */
__noinline int lb_nat_claim(CTX *ctx, __u32 at)
{
	struct lb_work *work = lb_work_here();
	struct lb_nat *there;

	if (!work)
		return LB_NAT_TAKEN;
	work->key.nat_port = bpf_htons(nat_first + at);
	work->nat.flow.nat_port = work->key.nat_port;
	there = bpf_map_lookup_elem(&lb_nat, &work->key);
	if (lb_nat_lives(there))
		return lb_nat_if_same(there, &work->nat);
	if (lb_nat_is_nodes(ctx, &work->key))
		return LB_NAT_TAKEN;
	if (!bpf_map_update_elem(&lb_nat_pending, &work->key, &work->nat, BPF_NOEXIST)) {
		/* Whose it was may have become known since we looked. */
		if (!lb_nat_lives(bpf_map_lookup_elem(&lb_nat, &work->key)))
			return LB_NAT_OURS;
		bpf_map_delete_elem(&lb_nat_pending, &work->key);
		return LB_NAT_TAKEN;
	}
	there = bpf_map_lookup_elem(&lb_nat_pending, &work->key);
	if (!there)
		return LB_NAT_TAKEN;
	if (lb_nat_lives(there))
		return lb_nat_if_same(there, &work->nat);
	/*
	 * Not ours at once: another CPU that saw the same may be about to delete, too, and would
	 * delete ours.
	 */
	bpf_map_delete_elem(&lb_nat_pending, &work->key);
	return LB_NAT_FREED;
}

/* Tries the port at `at`, one by chance and those after it, and at last one that was freed. */
__noinline int lb_nat_find_port(CTX *ctx, __u32 at)
{
	int claim = LB_NAT_TAKEN;
	__u32 freed = -1;

	for (int i = 0; i < LB_NAT_TRIES && claim != LB_NAT_OURS; i++) {
		claim = lb_nat_claim(ctx, at);
		if (claim == LB_NAT_FREED)
			freed = at;
		at = (i ? at + 1 : bpf_get_prandom_u32()) % nat_ports;
	}
	if (claim != LB_NAT_OURS && freed != -1)
		claim = lb_nat_claim(ctx, freed);
	return claim == LB_NAT_OURS ? 0 : DROP_NAT_NO_MAPPING;
}

/* The way back to the client until the kernel tells one: that by which its packet came. */
static __always_inline void lb_nat_hop_back(CTX *ctx, struct lb_hop *hop)
{
	struct ethhdr *eth = (void *)(long)ctx->data;

	if ((void *)(eth + 1) > (void *)(long)ctx->data_end)
		return;
	__builtin_memcpy(hop->ethernet, eth->h_source, 6);
	__builtin_memcpy(hop->ethernet + 6, eth->h_dest, 6);
	hop->ifindex = ctx_device(ctx);
	hop->resolved = (__u32)bpf_jiffies64() - jiffies_per_second;
}

/*
 * Sees to it that the flow has a port and an entry for answers: those that it had, if they are there
 * or can be had again, else its client's port if that can be had. 0 or a drop reason.
 */
static __always_inline int lb_nat_bind(CTX *ctx, const struct lb_flow_key *key,
				       struct lb_flow *flow)
{
	struct lb_backend *backend = bpf_map_lookup_elem(&lb_backends, &flow->backend);
	__u32 at = bpf_ntohs(flow->nat_port ?: key->client_port) - nat_first;
	struct lb_work *work = lb_work_here();
	int reason;

	if (!backend || !work)
		return DROP_NO_SERVICE_BACKEND;
	lb_nat_key_of(backend, 0, key->proto, &work->key);
	work->nat.key = *key;
	work->nat.flow = *flow;
	lb_nat_hop_back(ctx, &work->nat.hop);
	reason = lb_nat_find_port(ctx, at < nat_ports ? at : bpf_get_prandom_u32() % nat_ports);
	if (reason)
		return reason;
	flow->nat_port = work->key.nat_port;
	lb_nat_use(&work->key);
	return 0;
}

#endif
