/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Flows that are translated (source NAT): their backend sees the node's address and one of its
 * ports, and answers there.
 *
 * Such a flow has two entries: one in `lb_flows` for what its client sends, one in `lb_nat` for the
 * answers, so that either takes one lookup. Each holds what is needed to make the other again,
 * which is looked for about once a second. As `lb_pending` is beside `lb_flows`, there is
 * `lb_nat_pending` for flows whose client has sent one packet.
 */
#ifndef PCL_LB_NAT_H
#define PCL_LB_NAT_H

#include "lb.h"
#include "lb_filter.h"
#include "lb_flow.h"
#include "lb_hop.h"

/* An answer, as it comes. */
struct lb_nat_key {
	struct addr backend;
	__be16 backend_port;
	__be16 nat_port;
	__u8 proto;
	__u8 pad[3];
};

struct lb_nat {
	struct lb_flow_key key;	/* of the flow in `lb_flows`, and its entry */
	struct lb_flow flow;
	struct lb_hop hop;	/* towards the client */
	__u32 pad;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, struct lb_nat_key);
	__type(value, struct lb_nat);
} lb_nat SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, struct lb_nat_key);
	__type(value, struct lb_nat);
} lb_nat_pending SEC(".maps");

/* When a port of the node was last used for a flow, and for which backend. */
struct lb_nat_port {
	__u32 used;		/* jiffies, low word, 0: never */
	__u32 backend;		/* hash of address, port and protocol */
};

/*
 * By port. Nearly all that is sent to the node itself ends here, without a lookup in a hash. Only
 * programs write, by plain stores of what is true whoever comes last; nobody has to clean up.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 65536);
	__type(key, __u32);
	__type(value, struct lb_nat_port);
} lb_nat_used SEC(".maps");

/*
 * Until when (jiffies, low word; 0: it does not) user space deletes what has expired of `lb_flows` and
 * `lb_nat`. No key is put into these meanwhile, lest it be deleted as that of an entry before; what
 * would be waits with the pending ones. A time, so that whoever dies at it does no harm.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} lb_collecting SEC(".maps");

static __always_inline bool lb_is_collecting(void)
{
	__u32 zero = 0, *cell = bpf_map_lookup_elem(&lb_collecting, &zero), until;

	if (!cell)
		return true;
	until = READ_ONCE(*cell);
	return until && (__s32)(until - (__u32)bpf_jiffies64()) > 0;
}

static __always_inline bool lb_is_own(const struct addr *addr)
{
	struct addr own;

	lb_own_address(&own, addr_is_v4(addr));
	return addr_equal(addr, &own);
}

static __always_inline __u32 lb_nat_backend_hash(const struct lb_nat_key *key)
{
	return lb_filter_hash(&key->backend, lb_filter_port(key->backend_port, key->proto));
}

static __always_inline void lb_nat_use(const struct lb_nat_key *key)
{
	__u32 index = bpf_ntohs(key->nat_port);
	struct lb_nat_port *port = bpf_map_lookup_elem(&lb_nat_used, &index);

	if (port) {
		port->used = (__u32)bpf_jiffies64() ?: 1;
		port->backend = lb_nat_backend_hash(key);
	}
}

/* The port's use, NULL if there was none for as long as any flow may idle. */
static __always_inline struct lb_nat_port *lb_nat_port_of(__be16 nat_port)
{
	__u32 index = bpf_ntohs(nat_port), used, longest;
	struct lb_nat_port *port;

	if (index - nat_first >= nat_ports)
		return NULL;
	port = bpf_map_lookup_elem(&lb_nat_used, &index);
	if (!port)
		return NULL;
	used = READ_ONCE(port->used);
	longest = timeout_tcp > timeout_any ? timeout_tcp : timeout_any;
	/* Lives are late by a second, and so are uses. */
	if (!used || (__u32)bpf_jiffies64() - used > (longest + 2) * jiffies_per_second)
		return NULL;
	return port;
}

/* Whether the packet, as it came, may be an answer to a translated flow. */
static __always_inline bool lb_nat_may_answer(const struct lb_packet *packet)
{
	if (packet->fragment != FRAGMENT_LATER && !lb_nat_port_of(packet->key.service_port))
		return false;
	return lb_is_own(&packet->key.service);
}

/* The key of what the flow's backend answers. */
static __always_inline void lb_nat_key_of(const struct lb_backend *backend, __be16 nat_port,
					  __u8 proto, struct lb_nat_key *key)
{
	key->backend = backend->addr;
	key->backend_port = backend->port;
	key->nat_port = nat_port;
	key->proto = proto;
}

static __always_inline bool lb_flow_key_equal(const struct lb_flow_key *a,
					      const struct lb_flow_key *b)
{
	return addr_equal(&a->client, &b->client) && addr_equal(&a->service, &b->service) &&
	       a->client_port == b->client_port && a->service_port == b->service_port &&
	       a->proto == b->proto;
}

static __always_inline bool lb_nat_lives(const struct lb_nat *nat)
{
	return nat && !lb_flow_expired(&nat->flow);
}

#endif
