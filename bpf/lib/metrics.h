/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Packets and bytes by reason and direction, counted per CPU. */
#ifndef PCL_METRICS_H
#define PCL_METRICS_H

#include "common.h"
#include "drop.h"

struct counter {
	__u64 packets;
	__u64 bytes;
};

/* A packet between two endpoints of this node, which counts in both directions. */
#define DIRECTION_BOTH 2

/* Index: direction << 8 | reason, where reason 0 is "forwarded". */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 768);
	__type(key, __u32);
	__type(value, struct counter);
} metrics SEC(".maps");

static __always_inline void metrics_count(__u32 direction, __u8 reason, __u32 bytes)
{
	__u32 index = direction << 8 | reason;
	struct counter *counter = bpf_map_lookup_elem(&metrics, &index);

	if (counter) {
		counter->packets++;
		counter->bytes += bytes;
	}
}

#endif
