/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What user space is told: one ring buffer, one event struct of one size. */
#ifndef PCL_EVENT_H
#define PCL_EVENT_H

#include "work.h"

/* Cilium's monitor numbers. */
enum event_type {
	EVENT_DROP = 1,
	EVENT_TRACE = 4,
	EVENT_VERDICT = 5,
};

/* Cilium's observation points. */
enum trace_point {
	TRACE_TO_ENDPOINT = 0,
	TRACE_TO_HOST = 2,
	TRACE_TO_STACK = 3,
	TRACE_FROM_ENDPOINT = 5,
	TRACE_FROM_STACK = 8,
	TRACE_TO_NETWORK = 11,
};

enum event_flags {
	EVENT_IPV6 = 1,
	EVENT_REPLY = 2,	/* the packet goes against the direction in which the flow was opened */
	EVENT_NEW = 4,		/* the first packet of a flow */
	EVENT_RELATED = 8,	/* an ICMP error about the flow */
	EVENT_AUDITED = 16,	/* policy denies it, and lets it pass for the audit */
};

struct event {
	__u64 time_ns;		/* CLOCK_MONOTONIC */
	struct addr src;
	struct addr dst;
	__u32 src_identity;
	__u32 dst_identity;
	__u32 ifindex;
	__u32 rule;		/* the policy entry's cookie, 0 = none */
	__u32 length;		/* bytes of the frame */
	__u16 endpoint;		/* whose policy or device spoke, 0 = none known */
	__be16 sport;
	__be16 dport;
	__u16 line;		/* of `file`, for a drop */
	__u8 type;		/* enum event_type */
	__u8 reason;		/* drop and verdict: enum drop_reason; trace: enum trace_point */
	__u8 direction;		/* enum direction */
	__u8 proto;
	__u8 tcp_flags;
	__u8 icmp_type;
	__u8 flags;		/* enum event_flags */
	__u8 file;		/* enum source_file */
	__u32 frontend;		/* number of the one by which the opener came, 0 = none (lb_frontend.h) */
};

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 256 * 1024);
} events SEC(".maps");

/* Events that found the ring full. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} events_lost SEC(".maps");

/* A function of its own, so that its argument brings `struct event` into the object's BTF. */
static __noinline int event_fill(struct event *event, struct __sk_buff *skb,
				 const struct packet *packet, const struct event_context *context)
{
	event->time_ns = bpf_ktime_get_ns();
	event->src = packet->src;
	event->dst = packet->dst;
	event->src_identity = context->src_identity;
	event->dst_identity = context->dst_identity;
	event->ifindex = skb->ifindex;
	event->rule = context->rule;
	event->length = skb->len;
	event->endpoint = context->endpoint;
	event->sport = packet->sport;
	event->dport = packet->dport;
	event->line = packet->line;
	event->type = context->type;
	event->reason = context->reason;
	event->direction = context->direction;
	event->proto = packet->proto;
	event->tcp_flags = packet->tcp_flags;
	event->icmp_type = packet->icmp_type;
	event->flags = context->flags | (packet->ipv6 ? EVENT_IPV6 : 0);
	event->file = packet->file;
	event->frontend = context->frontend;
	return 0;
}

/* Tells user space of `work->packet` as `work->event` says. Always 0. */
__noinline int event_send(struct __sk_buff *skb)
{
	struct work *work = work_get();
	struct event *event;
	__u32 zero = 0;
	__u64 *lost;

	if (!work)
		return 0;
	event = bpf_ringbuf_reserve(&events, sizeof(*event), 0);
	if (!event) {
		lost = bpf_map_lookup_elem(&events_lost, &zero);
		if (lost)
			(*lost)++;
		return 0;
	}
	if (work->event.type == EVENT_VERDICT && work->query.audited)
		work->event.flags |= EVENT_AUDITED;
	event_fill(event, skb, &work->packet, &work->event);
	bpf_ringbuf_submit(event, 0);
	return 0;
}

#endif
