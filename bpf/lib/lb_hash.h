/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The hash by which a flow finds its slot of a Maglev table, bit for bit Cilium's. */
#ifndef PCL_LB_HASH_H
#define PCL_LB_HASH_H

#include "addr.h"
#include "lb_config.h"

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

/*
 * Cilium's hash of a flow, without the service's address (loadbalancer/flow_hash.py). Where clients
 * are remembered, `client_port` is 0.
 */
static __always_inline __u32 lb_flow_hash(const struct addr *client, __be16 client_port,
					  __be16 service_port, __u8 proto)
{
	const __u32 *words = client->words;
	__u32 ports = (__u32)service_port << 16 | client_port;
	__u32 a, b, c;

	if (addr_is_v4(client)) {
		a = flow_seed_ipv4 + 0xdeadbeef + (3 << 2);
		return jhash_final(words[3] + a, ports + a, proto + a);
	}
	a = words[0], b = words[1], c = words[2];
	JHASH_MIX(a, b, c);
	a += words[3], b += ports, c += proto;
	JHASH_MIX(a, b, c);
	return jhash_final(a + flow_seed_ipv6, b, c);
}

#endif
