/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Later fragments carry no ports: the first one's are remembered for them. */
#ifndef PCL_FRAGMENT_H
#define PCL_FRAGMENT_H

#include "packet.h"

struct fragment_key {
	struct addr src;
	struct addr dst;
	__u32 id;
	__u32 ifindex;		/* a forger on another device has entries of its own */
	__u8 proto;
	__u8 pad[7];
};

struct fragment_ports {
	__be16 sport;
	__be16 dport;
	__u8 icmp_type;
	__u8 icmp_class;
	__u8 pad[2];
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 8192);
	__type(key, struct fragment_key);
	__type(value, struct fragment_ports);
} fragments SEC(".maps");

/* Remembers the first fragment's ports, or gives them to a later one. 0 or a drop reason. */
static __always_inline int fragment_resolve(struct __sk_buff *skb, struct packet *packet)
{
	struct fragment_key key = {
		.src = packet->src,
		.dst = packet->dst,
		.id = packet->fragment_id,
		.ifindex = skb->ifindex,
		.proto = packet->proto,
	};
	struct fragment_ports *known, ports = {
		.sport = packet->sport,
		.dport = packet->dport,
		.icmp_type = packet->icmp_type,
		.icmp_class = packet->icmp_class,
	};

	if (packet->fragment == FRAGMENT_FIRST) {
		if (bpf_map_update_elem(&fragments, &key, &ports, BPF_ANY))
			return DROP(packet, FILE_FRAGMENT, DROP_FRAGMENT_NOT_FOUND);
		return 0;
	}
	known = bpf_map_lookup_elem(&fragments, &key);
	if (!known)
		return DROP(packet, FILE_FRAGMENT, DROP_FRAGMENT_NOT_FOUND);
	packet->sport = known->sport;
	packet->dport = known->dport;
	packet->icmp_type = known->icmp_type;
	packet->icmp_class = known->icmp_class;
	return 0;
}

#endif
