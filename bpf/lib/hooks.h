/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Slots for the user's own programs in the packet's path.
 *
 * A slot's program is an ordinary SEC("tc") program. It is called, not jumped to: what it returns
 * is what the slot says. TC_ACT_SHOT drops the packet with DROP_HOOK, anything else goes on.
 * It finds what is known of the packet in `hook_args` and may use every map of this library.
 */
#ifndef PCL_HOOKS_H
#define PCL_HOOKS_H

#include <linux/in.h>

#include "addr.h"
#include "result.h"

enum hook_slot {
	HOOK_BEFORE_POLICY = 0,	/* every packet, identities not known yet */
	HOOK_AFTER_POLICY = 1,	/* every packet that policy allows, translated for its service */
	HOOK_SLOTS = 2,
};

/* After policy, the ends are those that it saw: of a service's packets the client and the backend. */
struct hook_args {
	struct addr src;
	struct addr dst;
	__be16 sport;
	__be16 dport;
	__u8 proto;
	__u8 direction;		/* enum direction of the device's hook */
	__u8 slot;		/* enum hook_slot */
	__u8 pad;
	__u32 src_identity;	/* 0 before policy */
	__u32 dst_identity;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct hook_args);
} hook_args SEC(".maps");

/* For the user's program: what is known of the packet at hand, or NULL. */
static __always_inline const struct hook_args *hook_packet(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&hook_args, &zero);
}

#endif
