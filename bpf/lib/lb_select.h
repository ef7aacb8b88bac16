/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The choice of a backend: who the client met before, the Maglev table, or chance. */
#ifndef PCL_LB_SELECT_H
#define PCL_LB_SELECT_H

#include "lb_affinity.h"
#include "lb_flow.h"

static __always_inline __u32 rotate(__u32 word, __u32 bits)
{
	return word << bits | word >> (32 - bits);
}

/* jhash's last step (Bob Jenkins, lookup3, 2006). */
static __always_inline __u32 jhash_final(__u32 a, __u32 b, __u32 c)
{
	c = (c ^ b) - rotate(b, 14);
	a = (a ^ c) - rotate(c, 11);
	b = (b ^ a) - rotate(a, 25);
	c = (c ^ b) - rotate(b, 16);
	a = (a ^ c) - rotate(c, 4);
	b = (b ^ a) - rotate(a, 14);
	return (c ^ b) - rotate(b, 24);
}

#define JHASH_MIX(a, b, c) do { \
	a -= c; a ^= rotate(c, 4); c += b; \
	b -= a; b ^= rotate(a, 6); a += c; \
	c -= b; c ^= rotate(b, 8); b += a; \
	a -= c; a ^= rotate(c, 16); c += b; \
	b -= a; b ^= rotate(a, 19); a += c; \
	c -= b; c ^= rotate(b, 4); b += a; \
} while (0)

/* Cilium's hash of a flow, without the service's address (loadbalancer/flow_hash.py). */
static __always_inline __u32 lb_flow_hash(const struct lb_flow_key *key, __be16 client_port)
{
	const __u32 *words = key->client.words;
	__u32 ports = (__u32)key->service_port << 16 | client_port;
	__u32 a, b, c;

	if (addr_is_v4(&key->client)) {
		a = flow_seed_ipv4 + 0xdeadbeef + (3 << 2);
		return jhash_final(words[3] + a, ports + a, key->proto + a);
	}
	a = words[0], b = words[1], c = words[2];
	JHASH_MIX(a, b, c);
	a += words[3], b += ports, c += key->proto;
	JHASH_MIX(a, b, c);
	return jhash_final(a + flow_seed_ipv6, b, c);
}

/* Whether the service's source ranges let the client in. */
static __always_inline bool lb_admits(const struct lb_service *service, const struct addr *client)
{
	struct lb_range_key key = { .prefixlen = 32 + 128, .ranges = service->ranges, .addr = *client };
	__u32 *inside;

	if (!service->ranges)
		return true;
	inside = bpf_map_lookup_elem(&lb_ranges, &key);
	return (inside && *inside) == !(service->flags & LB_DENY_RANGES);
}

static __always_inline struct lb_affinity_key lb_client(const struct lb_flow_key *key,
							 __u32 service)
{
	struct lb_affinity_key client = { .client = key->client, .service = service };

	return client;
}

/* The backend of a new flow; 0 if there is none. */
static __always_inline __u32 lb_choose(const struct lb_service *service,
				       const struct lb_flow_key *key)
{
	struct lb_affinity_key client = lb_client(key, service->id);
	__u32 backend;

	if (service->affinity) {
		backend = lb_remembered(service, &client, LB_EXTERNAL);
		if (backend)
			return backend;
	}
	if (service->flags & LB_MAGLEV)
		return lb_backend_in(service, lb_flow_hash(key, service->affinity ? 0 : key->client_port));
	return lb_backend_in(service, bpf_get_prandom_u32());
}

static __always_inline void lb_remember_client(const struct lb_flow_key *key,
					       const struct lb_flow *flow)
{
	struct lb_affinity_key client = lb_client(key, flow->service);

	lb_remember(&client, flow->backend);
}

#endif
