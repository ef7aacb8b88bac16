/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* From an address to the identity behind it, and the cells that tell when that has changed. */
#ifndef PCL_IPCACHE_H
#define PCL_IPCACHE_H

#include "addr.h"
#include "config.h"

enum reserved_identity {
	IDENTITY_UNKNOWN = 0,
	IDENTITY_HOST = 1,
	IDENTITY_WORLD = 2,
	IDENTITY_WORLD_IPV4 = 9,
	IDENTITY_WORLD_IPV6 = 10,
};

/* Packed: a trie compares what follows the length, and would compare padding too. */
struct ipcache_key {
	__u32 prefixlen;	/* bits of `addr`; IPv4 /n is 96 + n */
	struct addr addr;
} __attribute__((packed, aligned(4)));

struct ipcache_entry {
	__u32 identity;
	__u32 flags;		/* none yet */
};

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 512000);
	__type(key, struct ipcache_key);
	__type(value, struct ipcache_entry);
} ipcache SEC(".maps");

/*
 * Cell 1 counts changes of prefixes, the further ones those of the addresses that share a hash.
 * Cell 0 counts them all: it is bumped after the others.
 */
#define IPCACHE_REV_ANY 0
#define IPCACHE_REV_PREFIX 1
#define IPCACHE_REV_ADDRESS 2

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1024);
	__type(key, __u32);
	__type(value, __u64);
} ipcache_rev SEC(".maps");

static __always_inline __u32 ipcache_cell(const struct addr *addr)
{
	return IPCACHE_REV_ADDRESS + addr_hash(addr) % (ipcache_cells - IPCACHE_REV_ADDRESS);
}

static __always_inline __u64 ipcache_revision(__u32 cell)
{
	__u64 *revision = bpf_map_lookup_elem(&ipcache_rev, &cell);

	return revision ? READ_ONCE(*revision) : 0;
}

/* Whoever is outside of everything that was said to be in the cluster. */
static __always_inline __u32 world_identity(const struct addr *addr)
{
	if (!dual_stack)
		return IDENTITY_WORLD;
	return addr_is_v4(addr) ? IDENTITY_WORLD_IPV4 : IDENTITY_WORLD_IPV6;
}

static __always_inline __u32 ipcache_identity(const struct addr *addr)
{
	struct ipcache_key key = { .prefixlen = 128, .addr = *addr };
	struct ipcache_entry *entry = bpf_map_lookup_elem(&ipcache, &key);

	return entry ? entry->identity : world_identity(addr);
}

#endif
