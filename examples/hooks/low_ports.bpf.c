// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* A hook before policy with a rule of its own: TCP ports below 1024 are closed to all but 22. */

#include <lib/hooks.h>

const volatile __u16 open_port = 22;

SEC("tc")
int close_low_ports(struct __sk_buff *skb)
{
	const struct hook_args *packet = hook_packet();

	if (!packet || packet->proto != IPPROTO_TCP)
		return TC_ACT_UNSPEC;
	/* Replies come from a low port and go to a high one. */
	if (bpf_ntohs(packet->dport) >= 1024 || bpf_ntohs(packet->dport) == open_port)
		return TC_ACT_UNSPEC;
	return TC_ACT_SHOT;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
