/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * What a backend knows of the flows that balancers sent it: for which service each is.
 *
 * A flow's first packet puts it into the small `dsr_pending`, the next one into `dsr_flows`, so that
 * a flood of first packets cannot evict flows that are known.
 */
#ifndef PCL_DSR_FLOW_H
#define PCL_DSR_FLOW_H

#include "config.h"
#include "lb_packet.h"

enum dsr_flow_flags {
	DSR_CLIENT_CLOSED = 1,	/* FIN of the client, or RST of either */
	DSR_BACKEND_CLOSED = 2,
};

#define DSR_CLOSED (DSR_CLIENT_CLOSED | DSR_BACKEND_CLOSED)

struct dsr_flow {
	struct addr service;
	__be16 port;
	__u8 flags;		/* enum dsr_flow_flags */
	__u8 pad;
	__u32 expires;		/* jiffies, low word */
};

/* In the key, what is the service's is the backend's own: its address and port. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, struct lb_flow_key);
	__type(value, struct dsr_flow);
} dsr_flows SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, struct lb_flow_key);
	__type(value, struct dsr_flow);
} dsr_pending SEC(".maps");

#define DSR_PORTS_IN_ROW 64

struct dsr_ports {
	__u8 used[DSR_PORTS_IN_ROW];
};

/* The backend's ports that ever had such a flow, so that all other traffic costs no lookup. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 65536 / DSR_PORTS_IN_ROW);
	__type(key, __u32);
	__type(value, struct dsr_ports);
} dsr_ports SEC(".maps");

static __always_inline __u8 *dsr_port(__be16 port)
{
	__u32 number = bpf_ntohs(port), row = number / DSR_PORTS_IN_ROW;
	struct dsr_ports *ports = bpf_map_lookup_elem(&dsr_ports, &row);

	return ports ? &ports->used[number % DSR_PORTS_IN_ROW] : NULL;
}

static __always_inline bool dsr_port_used(__be16 port)
{
	__u8 *used = dsr_port(port);

	return used && *used;
}

/* Jiffies that the flow may idle after this packet; as Cilium's connections. */
static __always_inline __u32 dsr_flow_life(const struct lb_packet *packet,
					   const struct dsr_flow *flow)
{
	__u32 seconds = timeout_tcp;

	if (packet->key.proto != IPPROTO_TCP)
		seconds = timeout_any;
	else if (packet->tcp_flags & TCP_SYN)
		seconds = timeout_tcp_syn;
	else if ((flow->flags & DSR_CLOSED) == DSR_CLOSED)
		seconds = timeout_tcp_fin;
	return seconds * jiffies_per_second;
}

/* Notes the packet in its flow, whose life is late by a second, so as to write it seldom. */
static __always_inline void dsr_flow_touch(const struct lb_packet *packet, struct dsr_flow *flow,
					   enum direction direction)
{
	__u32 expires;

	if (packet->quoted)
		return;
	if (packet->tcp_flags & TCP_RST)
		flow->flags |= DSR_CLOSED;
	else if (packet->tcp_flags & TCP_FIN)
		flow->flags |= direction == DIRECTION_INGRESS ? DSR_CLIENT_CLOSED :
								DSR_BACKEND_CLOSED;
	expires = (__u32)bpf_jiffies64() + dsr_flow_life(packet, flow);
	if (expires - flow->expires >= jiffies_per_second)
		flow->expires = expires;
}

static __always_inline bool dsr_flow_expired(const struct dsr_flow *flow)
{
	return (__s32)(flow->expires - (__u32)bpf_jiffies64()) < 0;
}

/*
 * Finds and notes a packet's flow, which is copied to `found`, since it may move. A flow is known
 * from the second packet on: of TCP that of either end, else the client's, which `dsr_flow_learn`
 * sees, since backends answer every datagram, a forged one too.
 */
static __always_inline bool dsr_flow_find(const struct lb_packet *packet,
					  const struct lb_flow_key *key, enum direction direction,
					  struct dsr_flow *found)
{
	struct dsr_flow *flow = bpf_map_lookup_elem(&dsr_flows, key);
	bool known = flow;

	if (!flow)
		flow = bpf_map_lookup_elem(&dsr_pending, key);
	if (!flow || dsr_flow_expired(flow))
		return false;
	dsr_flow_touch(packet, flow, direction);
	*found = *flow;
	if (known || packet->quoted || packet->key.proto != IPPROTO_TCP ||
	    packet->tcp_flags & (TCP_SYN | TCP_RST))
		return true;
	if (!bpf_map_update_elem(&dsr_flows, key, found, BPF_ANY))
		bpf_map_delete_elem(&dsr_pending, key);
	return true;
}

/* The client's packet told its service; 0 or a drop reason. */
static __always_inline int dsr_flow_learn(const struct lb_packet *packet,
					  const struct addr *service, __be16 port)
{
	const struct lb_flow_key *key = &packet->key;
	struct dsr_flow *known = bpf_map_lookup_elem(&dsr_flows, key), *pending = NULL;
	struct dsr_flow flow = { .service = *service, .port = port };
	__u8 *used = dsr_port(key->service_port);
	long err;

	if (!used)
		return DROP_FLOW_INSERT;
	*used = 1;
	if (known && known->port == port && addr_equal(&known->service, service)) {
		if (lb_is_opening(packet))
			known->flags = 0;
		dsr_flow_touch(packet, known, DIRECTION_INGRESS);
		return 0;
	}
	if (!known)
		pending = bpf_map_lookup_elem(&dsr_pending, key);
	flow.expires = bpf_jiffies64();
	dsr_flow_touch(packet, &flow, DIRECTION_INGRESS);
	if (!known && (!pending || lb_is_opening(packet)))
		err = bpf_map_update_elem(&dsr_pending, key, &flow, BPF_ANY);
	else
		err = bpf_map_update_elem(&dsr_flows, key, &flow, BPF_ANY);
	if (!err && pending && !lb_is_opening(packet))
		bpf_map_delete_elem(&dsr_pending, key);
	return err ? DROP_FLOW_INSERT : 0;
}

/* The client's packet did not tell: of UDP, and opening, it is for the backend itself. */
static __always_inline void dsr_flow_note(const struct lb_packet *packet)
{
	const struct lb_flow_key *key = &packet->key;
	struct dsr_flow found;

	if (packet->quoted || packet->fragment == FRAGMENT_LATER ||
	    !dsr_port_used(key->service_port))
		return;
	if (key->proto == IPPROTO_TCP && !lb_is_opening(packet)) {
		dsr_flow_find(packet, key, DIRECTION_INGRESS, &found);
		return;
	}
	bpf_map_delete_elem(&dsr_flows, key);
	bpf_map_delete_elem(&dsr_pending, key);
}

#endif
