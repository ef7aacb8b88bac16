// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* The producer of tests/bench/ring.py: one 64-byte event each run. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 16 * 1024 * 1024);
} events SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} lost SEC(".maps");

struct event {
	__u64 number;
	__u64 rest[7];
};

/* Puts the struct into the BTF, where user space finds the layout. */
const struct event *unused __attribute__((unused));
__u64 number;

SEC("tc")
int produce(struct __sk_buff *skb)
{
	struct event *event = bpf_ringbuf_reserve(&events, sizeof(*event), 0);
	__u32 zero = 0;
	__u64 *count;

	if (!event) {
		count = bpf_map_lookup_elem(&lost, &zero);
		if (count)
			(*count)++;
		return 0;
	}
	event->number = number++;
	for (int i = 0; i < 7; i++)
		event->rest[i] = i;
	bpf_ringbuf_submit(event, 0);
	return 0;
}

char _license[] SEC("license") = "Dual BSD/GPL";
