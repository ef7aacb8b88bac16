/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Which backend each flow has, by what its client sends. Of a flow that is translated the answers
 * come by here too, and have entries of their own (lb_nat.h).
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
	LB_FLOW_CLOSING = 1,	/* it has ended: see lb_flow_end */
	LB_FLOW_AFFINITY = 2,	/* its client is remembered */
	LB_FLOW_FIN_CLIENT = 4,	/* the client sends no more */
	LB_FLOW_FIN_BACKEND = 8,
	LB_FLOW_SNAT = 16,	/* its backend sees the node's address, and `nat_port` */
	LB_FLOW_OPTION = LB_OPTION,
	LB_FLOW_GENEVE = LB_GENEVE,
};

/* What a flow keeps as long as it has its backend, whatever becomes of its service. */
#define LB_FLOW_WAY (LB_FLOW_SNAT | LB_FLOW_OPTION | LB_FLOW_GENEVE)
#define LB_FLOW_KEPT (LB_FLOW_CLOSING | LB_FLOW_FIN_CLIENT | LB_FLOW_FIN_BACKEND | LB_FLOW_WAY)

struct lb_flow {
	__u32 backend;
	__u32 backend_rev;
	__u32 service;
	__u32 service_rev;
	__u32 expires;		/* jiffies, low word */
	__u16 flags;		/* enum lb_flow_flags */
	__be16 nat_port;
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
 * Notes a FIN or RST of one side, `fin` being its flag; true if that is news. With DSR one side is
 * all that is seen, so its FIN has to do. A flow that is translated ends when both have sent theirs.
 */
static __always_inline bool lb_flow_end(const struct lb_packet *packet, struct lb_flow *flow,
					__u16 fin)
{
	__u16 both = LB_FLOW_FIN_CLIENT | LB_FLOW_FIN_BACKEND, flags = flow->flags | fin;

	if (packet->tcp_flags & TCP_RST || !(flags & LB_FLOW_SNAT) || (flags & both) == both)
		flags |= LB_FLOW_CLOSING;
	if (flags == flow->flags)
		return false;
	flow->flags = flags;
	return true;
}

/*
 * Notes the packet in its flow; true about once a second, for what need not be done each time, and
 * when the flow ends. The entry's cache line is left alone meanwhile, which is why lives are late
 * by a second. Nothing but its end makes a life shorter: anybody can send a SYN.
 */
static __always_inline bool lb_flow_touch(const struct lb_packet *packet, struct lb_flow *flow,
					  __u16 fin)
{
	bool ends = false;
	__u32 expires;

	if (packet->quoted)
		return false;
	if (packet->tcp_flags & (TCP_FIN | TCP_RST))
		ends = lb_flow_end(packet, flow, fin);
	expires = (__u32)bpf_jiffies64() + lb_flow_life(packet, flow);
	if (!ends && (__s32)(expires - flow->expires) < (__s32)jiffies_per_second)
		return false;
	flow->expires = expires;
	return true;
}

static __always_inline bool lb_flow_expired(const struct lb_flow *flow)
{
	return (__s32)(flow->expires - (__u32)bpf_jiffies64()) < 0;
}

#endif
