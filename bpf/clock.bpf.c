// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Both clocks at one moment, for user space to learn the kernel's HZ (pyciliumlib/conntrack). */

#include "lib/common.h"

struct clock_sample {
	__u64 jiffies;
	__u64 monotonic_ns;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct clock_sample);
} clock_samples SEC(".maps");

SEC("tc")
int clock_sample(struct __sk_buff *skb)
{
	__u32 zero = 0;
	struct clock_sample *sample = bpf_map_lookup_elem(&clock_samples, &zero);

	if (!sample)
		return 1;
	sample->monotonic_ns = bpf_ktime_get_ns();
	sample->jiffies = bpf_jiffies64();
	return 0;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
