/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The flow table: one entry serves both directions, and one lookup serves an established packet.
 *
 * An entry says from which interface each end must send (the anti-spoof check), under which
 * revisions it was decided, and how to deliver. A packet that finds it under other revisions is
 * decided again. Unreplied flows live in `pending`, so that a flood of them cannot evict `flows`.
 */
#ifndef PCL_FLOW_H
#define PCL_FLOW_H

#include "ipcache.h"
#include "packet.h"
#include "policy.h"

/* Both ends in one order (the smaller address first, then the smaller port), whoever sends. */
struct flow_key {
	struct addr low;
	struct addr high;
	__be16 low_port;
	__be16 high_port;
	__u8 proto;
	__u8 pad[3];
};

struct flow_side {
	__u32 ifindex;		/* its host-side device, 0 = it is reached through the stack */
	__u32 identity;
	__u32 policy_rev;	/* decided under these revisions */
	__u32 ipcache_rev;
	__u16 ipcache_cell;
	__u16 endpoint;		/* id, 0 = not an endpoint of this node */
	__u8 ethernet[12];	/* destination and source MAC for delivery to it */
	__u64 packets;		/* that it sent */
	__u64 bytes;
};

/*
 * One end of a flow by a number that is not a constant. The mask stands right before its use, since
 * the verifier of Linux 5.10 forgets the bounds of a number that was spilled to the stack.
 */
#define FLOW_SIDE(flow, number) \
	({ __u32 side_number = (number); barrier_var(side_number); &(flow)->side[side_number & 1]; })

enum flow_state {
	FLOW_CLOSING_ORIGIN = 1,	/* FIN or RST seen from the side that opened */
	FLOW_CLOSING_REPLY = 2,
	FLOW_CLOSING = 3,
	FLOW_CONFIRMED = 4,		/* TCP: a packet without SYN has been seen */
};

struct flow {
	struct flow_side side[2];	/* who opened, who replies */
	__u32 expires;			/* jiffies, low word */
	__u32 reported;			/* jiffies of the last trace event */
	__u32 epoch;			/* of `ipcache_rev[0]` */
	__u32 rule;			/* cookie of the last entry that allowed it */
	__u8 origin_low;		/* the opener is the key's low end */
	__u8 state;			/* enum flow_state */
	__u8 pad[6];
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, struct flow_key);
	__type(value, struct flow);
} flows SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 8192);
	__type(key, struct flow_key);
	__type(value, struct flow);
} pending SEC(".maps");

/* Fills in the key; returns whether the packet's source is the low end. */
static __always_inline bool flow_key_of(const struct packet *packet, struct flow_key *key)
{
	bool low = addr_equal(&packet->src, &packet->dst) ?
		bpf_ntohs(packet->sport) <= bpf_ntohs(packet->dport) :
		addr_less(&packet->src, &packet->dst);

	key->low = low ? packet->src : packet->dst;
	key->high = low ? packet->dst : packet->src;
	key->low_port = low ? packet->sport : packet->dport;
	key->high_port = low ? packet->dport : packet->sport;
	key->proto = packet->proto;
	key->pad[0] = 0;
	key->pad[1] = 0;
	key->pad[2] = 0;
	return low;
}

static __always_inline __u32 flow_now(void)
{
	return bpf_jiffies64();
}

static __always_inline bool flow_expired(const struct flow *flow, __u32 now)
{
	return (__s32)(flow->expires - now) <= 0;
}

/* Whether nothing that the flow's verdict rests on has changed since. */
static __always_inline bool flow_current(const struct flow *flow)
{
	const struct flow_side *origin = &flow->side[0], *reply = &flow->side[1];

	return flow->epoch == ipcache_revision(0) &&
	       origin->policy_rev == policy_revision(origin->endpoint) &&
	       reply->policy_rev == policy_revision(reply->endpoint) &&
	       origin->ipcache_rev == ipcache_revision(origin->ipcache_cell) &&
	       reply->ipcache_rev == ipcache_revision(reply->ipcache_cell);
}

/* Which side sent this packet: 0 the opener, 1 the other. */
static __always_inline __u32 flow_sender(const struct flow *flow, bool source_is_low)
{
	return (source_is_low ^ flow->origin_low) & 1;
}

static __always_inline __u32 flow_timeout(const struct flow *flow, __u8 proto)
{
	__u32 seconds = timeout_any;

	if (proto == IPPROTO_TCP) {
		if ((flow->state & FLOW_CLOSING) == FLOW_CLOSING)
			seconds = timeout_tcp_fin;
		else
			seconds = flow->state & FLOW_CONFIRMED ? timeout_tcp : timeout_tcp_syn;
	}
	return seconds * jiffies_per_second;
}

/* Lengthens the flow's life, at most once a second so that the cache line is seldom written. */
static __always_inline void flow_refresh(struct flow *flow, __u8 proto, __u32 now)
{
	__u32 expires;

	if ((flow->state & FLOW_CLOSING) == FLOW_CLOSING)
		return;
	expires = now + flow_timeout(flow, proto);
	if ((__s32)(expires - flow->expires) >= (__s32)jiffies_per_second)
		flow->expires = expires;
}

static __always_inline void flow_count(struct flow_side *side, __u32 bytes)
{
	__sync_fetch_and_add(&side->packets, 1);
	__sync_fetch_and_add(&side->bytes, bytes);
}

/* Follows a TCP flow's handshake and end by one packet's flags. */
static __always_inline void flow_track_tcp(struct flow *flow, __u8 tcp_flags, __u32 sender, __u32 now)
{
	__u8 state = flow->state;

	if (tcp_flags & TCP_RST)
		state |= FLOW_CLOSING;
	else if (tcp_flags & TCP_FIN)
		state |= sender ? FLOW_CLOSING_REPLY : FLOW_CLOSING_ORIGIN;
	if (!(tcp_flags & TCP_SYN))
		state |= FLOW_CONFIRMED;
	if (state == flow->state)
		return;
	flow->state = state;
	flow->expires = now + flow_timeout(flow, IPPROTO_TCP);
}

#endif
