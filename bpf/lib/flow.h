/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The flow table: one entry serves both directions, and one lookup serves an established packet.
 *
 * An entry says from which interface each end must send (the anti-spoof check), under which
 * revisions it was decided, and where to deliver. A packet that finds it under other revisions is
 * decided again. Unreplied flows live in `pending`, so that a flood of them cannot evict `flows`.
 *
 * Ends are numbered as in the key: 0 is the low one, 1 the high one.
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

/*
 * The number of an end, to index with. The mask stands right before its use, since the verifier of
 * Linux 5.10 forgets the bounds of a number that was spilled to the stack.
 */
#define END(number) \
	({ __u64 end_number = (number); barrier_var(end_number); end_number & 1; })

enum flow_state {
	FLOW_CLOSING_LOW = 1,	/* FIN or RST seen from the low end */
	FLOW_CLOSING_HIGH = 2,
	FLOW_CLOSING = 3,
	FLOW_CONFIRMED = 4,	/* TCP: a packet without SYN has been seen */
	FLOW_SERVICE = 8,	/* the key has a service's address: see translate.h */
	FLOW_BACKEND = 16,	/* the key has its backend's */
	FLOW_HAIRPIN = 32,	/* the backend is the opener itself */
	FLOW_OUTSIDE = 128,	/* the opener came to a service by a device of the node: outside.h */
};

/* Who is at the opener's end, where that has an address of the node. */
enum flow_origin {
	ORIGIN_OTHER = 0,	/* it has none */
	ORIGIN_NODE = 1,	/* the node itself */
	ORIGIN_FORWARDED = 2,	/* whom the node gave its address, as by masquerade, or a forger */
};

#define FLOW_TRANSLATED (FLOW_SERVICE | FLOW_BACKEND)

/*
 * The first 40 bytes are all that an established packet reads and writes. The kernel keeps an entry
 * as 48 bytes of its own, the key and this, so those 40 share a cache line with the key's end, and
 * the whole takes three lines and never touches a fourth (struct htab_elem, kernel/bpf/hashtab.c).
 */
struct flow {
	__u64 sent[2];		/* by each end: see flow_count */
	__u32 ifindex[2];	/* its host-side device, 0 = it is reached through the stack; of an
				 * opener outside the device by which it came and is answered */
	__u16 endpoint[2];	/* its id, 0 = not an endpoint of this node */
	__u32 due;		/* jiffies, low word: from then on the slow path looks after it; never
				 * further ahead than FLOW_AHEAD */
	__u32 changes;		/* of all revisions, when they were last compared */
	__u8 opener;		/* the end that sent the first packet */
	__u8 state;		/* enum flow_state */
	__u8 origin;		/* enum flow_origin */
	__u8 expires_high;	/* what is above `expires`: see flow_expired */

	__u32 expires;		/* jiffies, low word */
	__u32 rule;		/* cookie of the last entry that allowed it */
	__u64 revision;		/* it was decided under: see flow_revision */
	__u32 identity[2];
	__u64 packets[2];	/* that each end had sent when `due` was set */
	__u64 bytes[2];
	__u32 backend;		/* of a translated flow: its numbers in `lb_backends` */
	__u32 frontend;		/* and in `lb_frontends`, else 0 */
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

/* Fills in the key's ports, the low end's first, and protocol. */
static __always_inline void flow_key_transport(struct flow_key *key, __u32 ports, __u8 proto)
{
	key_transport(&key->low_port, ports, proto);
}

static __always_inline __u32 flow_ports(__be16 low, __be16 high)
{
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
	return low | (__u32)high << 16;
#else
	return (__u32)low << 16 | high;
#endif
}

/* Fills in the key; returns the end that the source is. */
static __always_inline __u32 flow_key_make(struct flow_key *key, const struct addr *src,
					   __be16 sport, const struct addr *dst, __be16 dport,
					   __u8 proto)
{
	bool low = addr_equal(src, dst) ? bpf_ntohs(sport) <= bpf_ntohs(dport) :
					  addr_less(src, dst);

	key->low = low ? *src : *dst;
	key->high = low ? *dst : *src;
	flow_key_transport(key, low ? flow_ports(sport, dport) : flow_ports(dport, sport), proto);
	return !low;
}

static __always_inline __u32 flow_key_of(const struct packet *packet, struct flow_key *key)
{
	return flow_key_make(key, &packet->src, packet->sport, &packet->dst, packet->dport,
			     packet->proto);
}

static __always_inline const struct addr *flow_addr(const struct flow_key *key, __u32 end)
{
	return end & 1 ? &key->high : &key->low;
}

static __always_inline __be16 flow_port(const struct flow_key *key, __u32 end)
{
	return end & 1 ? key->high_port : key->low_port;
}

static __always_inline __u64 flow_now(void)
{
	return bpf_jiffies64();
}

/*
 * Of jiffies 40 bits: nobody has to delete what has expired, and it must not live again when a word
 * has wrapped, which takes 50 days at 1000 Hz. This takes 34 years.
 */
static __always_inline bool flow_expired(const struct flow *flow, __u64 now)
{
	__u64 left = ((__u64)flow->expires_high << 32 | flow->expires) - now;

	return (__s64)(left << 24) <= 0;
}

static __always_inline void flow_expire_at(struct flow *flow, __u64 when)
{
	flow->expires = when;
	flow->expires_high = when >> 32;
}

/*
 * Whether a packet is from whom its flow was decided for: what the node sends itself came by no
 * device. The two may use the same ports, and have not the same rights.
 */
static __always_inline bool flow_is_from(const struct flow *flow, __u64 from, __u32 came_by)
{
	return !flow->origin || END(from) != flow->opener ||
	       (flow->origin == ORIGIN_NODE) == !came_by;
}

/* How often anything has changed that some flow's verdict rests on. */
static __always_inline __u32 flow_changes(void)
{
	return policy_revision(POLICY_REV_ANY) + ipcache_revision(IPCACHE_REV_ANY);
}

/* Whether none has since the flow's revision was compared; for every established packet. */
static __always_inline bool flow_unchanged(const struct flow *flow)
{
	__u32 policy_any = POLICY_REV_ANY, ipcache_any = IPCACHE_REV_ANY;
	__u64 *policy = bpf_map_lookup_elem(&policy_rev, &policy_any);
	__u64 *ipcache = bpf_map_lookup_elem(&ipcache_rev, &ipcache_any);

	return policy && ipcache &&
	       flow->changes == (__u32)(READ_ONCE(*policy) + READ_ONCE(*ipcache));
}

/*
 * The revision of what a flow's verdict rests on is the sum of its two ends' cells, of policy and of
 * addresses, and of a translated flow of its backend's and frontend's. Cells only ever grow, so the
 * sum is the same only if each of them is.
 */
static __always_inline __u64 flow_address_revision(const struct addr *one, const struct addr *other)
{
	return ipcache_revision(ipcache_cell(one)) + ipcache_revision(ipcache_cell(other)) +
	       ipcache_revision(IPCACHE_REV_PREFIX);
}

static __always_inline __u64 flow_policy_revision(const struct flow *flow)
{
	return policy_revision(flow->endpoint[0]) + policy_revision(flow->endpoint[1]);
}

/*
 * Whether a packet lengthens its flow's life. To whom an answer goes that is for the node's address
 * is known to the kernel's conntrack alone: once that has forgotten, it is for the node itself. So
 * such a flow is to be forgotten first, and what others send, which conntrack may have its doubts
 * about, does not keep it. A TCP connection that is unknown to the node is refused anyway.
 */
static __always_inline bool flow_lengthens(const struct flow *flow, __u32 from)
{
	return flow->origin != ORIGIN_FORWARDED || END(from) == flow->opener;
}

static __always_inline __u32 flow_timeout(const struct flow *flow, __u8 proto)
{
	__u32 seconds = timeout_any;

	if (proto == IPPROTO_TCP) {
		if ((flow->state & FLOW_CLOSING) == FLOW_CLOSING)
			seconds = timeout_tcp_fin;
		else
			seconds = flow->state & FLOW_CONFIRMED ? timeout_tcp : timeout_tcp_syn;
	} else if (flow->origin == ORIGIN_FORWARDED && seconds > timeout_masqueraded) {
		seconds = timeout_masqueraded;
	}
	return seconds * jiffies_per_second;
}

#define FLOW_BYTES_BITS 38
#define FLOW_BYTES_MASK ((1ULL << FLOW_BYTES_BITS) - 1)

/*
 * Counts a packet by one atomic addition: `sent` is packets << 38 plus bytes, modulo 2^64. What was
 * added since `packets` and `bytes` were set is known from the difference, as long as it is less
 * than 2^25 packets and 2^38 bytes; flow_review, at least every five seconds, sees to that.
 */
static __always_inline void flow_count(struct flow *flow, __u64 from, __u32 bytes)
{
	__sync_fetch_and_add(&flow->sent[END(from)], (1ULL << FLOW_BYTES_BITS) + bytes);
}

/* Brings one end's `packets` and `bytes` up to date with `sent`. */
static __always_inline void flow_add_up(struct flow *flow, __u32 end)
{
	__u64 packets = READ_ONCE(flow->packets[end]), bytes = READ_ONCE(flow->bytes[end]);
	__s64 since = READ_ONCE(flow->sent[end]) - (packets << FLOW_BYTES_BITS) - bytes;

	/* Less than nothing: another CPU was here in between. */
	if (since <= 0)
		return;
	flow->packets[end] = packets + (since >> FLOW_BYTES_BITS);
	flow->bytes[end] = bytes + (since & FLOW_BYTES_MASK);
}

#define FLOW_REVIEW 5 /* seconds, at most, between two looks of the slow path at a flow that goes on */

/*
 * Lengthens the flow's life and says when to look again. The packets between two looks do not
 * lengthen it, so that time, at most an eighth of the timeout, is added: a flow may always idle as
 * long as its timeout says.
 */
static __always_inline void flow_review(struct flow *flow, __u8 proto, __u64 now)
{
	__u32 timeout = flow_timeout(flow, proto), pause = FLOW_REVIEW * jiffies_per_second;

	if (pause > timeout / 8)
		pause = timeout / 8;
	if ((flow->state & FLOW_CLOSING) != FLOW_CLOSING)
		flow_expire_at(flow, now + timeout + pause);
	flow->due = now + pause;
	if ((__s32)(flow->expires - flow->due) < 0)
		flow->due = flow->expires;
	flow_add_up(flow, 0);
	flow_add_up(flow, 1);
}

/* Jiffies, more than FLOW_REVIEW at any HZ. */
#define FLOW_AHEAD (1 << 13)

/*
 * Whether the slow path must look: a report is due, or the flow has expired. Also if `due` is far
 * ahead, as it seems to be when the entry has lain there for so long that jiffies have wrapped.
 */
static __always_inline bool flow_due(const struct flow *flow, __u32 now)
{
	return now - flow->due < (__u32)-FLOW_AHEAD;
}

/* Follows a TCP flow's handshake and end by one packet's flags; flow_review is to follow. */
static __always_inline void flow_track_tcp(struct flow *flow, __u8 tcp_flags, __u32 from, __u64 now)
{
	__u8 state = flow->state;

	if (tcp_flags & TCP_RST)
		state |= FLOW_CLOSING;
	else if (tcp_flags & TCP_FIN)
		state |= from ? FLOW_CLOSING_HIGH : FLOW_CLOSING_LOW;
	if (!(tcp_flags & TCP_SYN))
		state |= FLOW_CONFIRMED;
	if (state == flow->state)
		return;
	flow->state = state;
	if ((state & FLOW_CLOSING) == FLOW_CLOSING)
		flow_expire_at(flow, now + flow_timeout(flow, IPPROTO_TCP));
}

#endif
