/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Which backend each flow has. With DSR the balancer sees what clients send, and nothing else.
 *
 * A flow's first packet puts it into the small `lb_pending`, the next one into `lb_flows`, so that
 * a flood of first packets cannot evict flows that are known.
 */
#ifndef PCL_LB_FLOW_H
#define PCL_LB_FLOW_H

#include "lb.h"
#include "lb_config.h"
#include "lb_packet.h"

enum lb_flow_flags {
	LB_FLOW_CLOSING = 1,	/* FIN or RST was seen */
	LB_FLOW_AFFINITY = 2,	/* its client is remembered */
	LB_FLOW_OPTION = LB_OPTION,
	LB_FLOW_GENEVE = LB_GENEVE,
};

struct lb_flow {
	__u32 backend;
	__u32 backend_rev;
	__u32 service;
	__u32 service_rev;
	__u32 expires;		/* jiffies, low word */
	__u32 flags;		/* enum lb_flow_flags */
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, struct lb_flow_key);
	__type(value, struct lb_flow);
} lb_flows SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, struct lb_flow_key);
	__type(value, struct lb_flow);
} lb_pending SEC(".maps");

/* Jiffies that the flow may idle after this packet. */
static __always_inline __u32 lb_flow_life(const struct lb_packet *packet, const struct lb_flow *flow)
{
	__u32 seconds = timeout_any;

	if (packet->key.proto == IPPROTO_TCP) {
		seconds = lb_is_opening(packet) ? timeout_tcp_syn : timeout_tcp;
		if (flow->flags & LB_FLOW_CLOSING)
			seconds = timeout_tcp_fin;
	}
	return seconds * jiffies_per_second;
}

/*
 * Notes the packet in its flow; true about once a second, for what need not be done each time.
 * The entry's cache line is left alone meanwhile, which is why lives are late by a second.
 */
static __always_inline bool lb_flow_touch(const struct lb_packet *packet, struct lb_flow *flow)
{
	__u32 expires;

	if (packet->quoted)
		return false;
	if (packet->tcp_flags & (TCP_FIN | TCP_RST))
		flow->flags |= LB_FLOW_CLOSING;
	expires = (__u32)bpf_jiffies64() + lb_flow_life(packet, flow);
	if (expires - flow->expires < jiffies_per_second)
		return false;
	flow->expires = expires;
	return true;
}

static __always_inline bool lb_flow_expired(const struct lb_flow *flow)
{
	return (__s32)(flow->expires - (__u32)bpf_jiffies64()) < 0;
}

#endif
