/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* One address type for both families: IPv4 is held v4-mapped (RFC 4291, 2.5.5.2). */
#ifndef PCL_ADDR_H
#define PCL_ADDR_H

#include "common.h"

struct addr {
	union {
		__u8 bytes[16];
		__u32 words[4];
		__u64 halves[2];
	};
};

/* The third word of every v4-mapped address, in network order. */
#define ADDR_V4_MARK bpf_htonl(0x0000ffff)

/* The second half of a v4-mapped address; the first is 0. */
static __always_inline __u64 addr_v4_half(__be32 v4)
{
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
	return (__u64)v4 << 32 | ADDR_V4_MARK;
#else
	return (__u64)ADDR_V4_MARK << 32 | v4;
#endif
}

static __always_inline void addr_from_v4(struct addr *addr, __be32 v4)
{
	addr->halves[0] = 0;
	addr->halves[1] = addr_v4_half(v4);
}

static __always_inline bool addr_is_v4(const struct addr *addr)
{
	return addr->halves[0] == 0 && addr->words[2] == ADDR_V4_MARK;
}

static __always_inline bool addr_equal(const struct addr *a, const struct addr *b)
{
	return a->halves[0] == b->halves[0] && a->halves[1] == b->halves[1];
}

/* An address by which a host speaks to itself: of no packet on a wire (RFC 1122, RFC 4291). */
static __always_inline bool addr_is_loopback(const struct addr *addr)
{
	if (addr_is_v4(addr))
		return addr->bytes[12] == 127;
	return addr->halves[0] == 0 && addr->words[2] == 0 && addr->words[3] == bpf_htonl(1);
}

/* None: what a host has as its own while it asks for one. */
static __always_inline bool addr_is_unspecified(const struct addr *addr)
{
	return addr->halves[0] == 0 && addr->words[3] == 0 &&
	       (addr->words[2] == 0 || addr->words[2] == ADDR_V4_MARK);
}

/* Multicast, or broadcast to whoever is on the link. */
static __always_inline bool addr_is_group(const struct addr *addr)
{
	return addr_is_v4(addr) ? addr->bytes[12] >= 224 : addr->bytes[0] == 0xff;
}

/* A total order, the same on both sides of a flow; not the numeric one. */
static __always_inline bool addr_less(const struct addr *a, const struct addr *b)
{
	if (a->halves[1] != b->halves[1])
		return a->halves[1] < b->halves[1];
	return a->halves[0] < b->halves[0];
}

/* Spreads addresses over the cells of `ipcache_rev`; user space computes the same (identity/ipcache). */
static __always_inline __u32 addr_hash(const struct addr *addr)
{
	__u64 mixed = addr->halves[0] * 0x9e3779b97f4a7c15ULL ^ addr->halves[1];

	mixed *= 0xff51afd7ed558ccdULL;
	return mixed >> 32;
}

#endif
