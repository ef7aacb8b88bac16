/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Later fragments carry no ports: the first one's are remembered for them. */
#ifndef PCL_LB_FRAGMENT_H
#define PCL_LB_FRAGMENT_H

#include "lb_filter.h"
#include "lb_packet.h"

struct lb_fragment_key {
	struct addr client;
	struct addr service;
	__u32 id;
	__u8 proto;
	__u8 pad[3];
};

struct lb_fragment_ports {
	__be16 client_port;
	__be16 service_port;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 8192);
	__type(key, struct lb_fragment_key);
	__type(value, struct lb_fragment_ports);
} lb_fragments SEC(".maps");

/*
 * Remembers the first fragment's ports, or gives them to a later one. 0, a drop reason, or -1 for
 * a fragment of something else, since an address of the node has more than services. Not inline:
 * what it needs of the stack would be every packet's.
 */
static __noinline int lb_fragment_resolve(struct lb_packet *packet)
{
	struct lb_flow_key *key = &packet->key;
	struct lb_fragment_key whole = {
		.client = key->client,
		.service = key->service,
		.id = packet->fragment_id,
		.proto = key->proto,
	};
	struct lb_fragment_ports *known, ports = { key->client_port, key->service_port };
	struct lb_service_key any_port = { .addr = key->service };

	if (packet->fragment == FRAGMENT_FIRST) {
		if (bpf_map_update_elem(&lb_fragments, &whole, &ports, BPF_ANY))
			return DROP_FRAGMENT_NOT_FOUND;
		return 0;
	}
	known = bpf_map_lookup_elem(&lb_fragments, &whole);
	if (known) {
		key->client_port = known->client_port;
		key->service_port = known->service_port;
		return 0;
	}
	/* Not by the filter alone, which may mean another address. */
	return bpf_map_lookup_elem(&lb_services, &any_port) ? DROP_FRAGMENT_NOT_FOUND : -1;
}

#endif
