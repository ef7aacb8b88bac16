// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* A hook after policy: bytes by the identity that sent them. */

#include <lib/hooks.h>

struct {
	__uint(type, BPF_MAP_TYPE_LRU_PERCPU_HASH);
	__uint(max_entries, 4096);
	__type(key, __u32);
	__type(value, __u64);
} bytes_by_identity SEC(".maps");

SEC("tc")
int count_bytes(struct __sk_buff *skb)
{
	const struct hook_args *packet = hook_packet();
	__u64 first = skb->len, *bytes;
	__u32 identity;

	if (!packet)
		return TC_ACT_UNSPEC;
	identity = packet->src_identity;
	bytes = bpf_map_lookup_elem(&bytes_by_identity, &identity);
	if (bytes)
		*bytes += skb->len;
	else
		bpf_map_update_elem(&bytes_by_identity, &identity, &first, BPF_ANY);
	return TC_ACT_UNSPEC;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
