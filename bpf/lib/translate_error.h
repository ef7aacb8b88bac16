/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* ICMP errors about translated flows: the message, and the packet that it quotes. */
#ifndef PCL_TRANSLATE_ERROR_H
#define PCL_TRANSLATE_ERROR_H

#ifndef PCL_TC
#error "for programs at tc: define PCL_TC before the first include"
#endif

#include "translate_change.h"
#include "work.h"

/* One end of an ICMP error, and of the packet that it quotes, which went the other way. */
__noinline int translate_error_end(struct __sk_buff *skb, __u32 answer, __u32 self)
{
	struct work *work = work_get();
	struct new_end change = {};
	struct headers headers;
	struct packet *packet;

	if (!work)
		return false;
	packet = &work->packet;
	headers = (struct headers){ packet->l4_off, work->key.proto, packet->ipv6 };
	change.port = flow_port(&work->key, work->flow.opener);
	if (!translate_change(&change, work->flow.frontend, work->flow.backend, answer, self))
		return false;
	if (!rewrite_quoted(skb, &headers, !change.end, &change.to, change.port))
		return false;
	/* A router on the way speaks as itself. */
	if (change.end == SOURCE && !addr_equal(&change.from, &packet->src))
		return true;
	headers.proto = packet->proto;
	/* Or the compiler keeps a pointer into the context, which the verifier does not follow. */
	barrier_var(skb);
	return rewrite_address(skb, &headers, change.end, &change.to);
}

/* An ICMP error about a translated flow goes the way of its packets; 0 or a drop reason. */
__noinline int service_error(struct __sk_buff *skb)
{
	struct work *work = work_get();
	struct packet *packet;
	__u8 head;
	bool answer;

	if (!work)
		return DROP_NO_SERVICE_BACKEND;
	packet = &work->packet;
	answer = work->flow.state & FLOW_BACKEND;
	ctx_pull(skb);
	/* What follows options would be looked for at the wrong place. */
	if (bpf_skb_load_bytes(skb, packet->l4_off + 8, &head, sizeof(head)) ||
	    (!packet->ipv6 && head != 0x45))
		return DROP(packet, FILE_TRANSLATE, DROP_INVALID_PACKET);
	if (!translate_error_end(skb, answer, false))
		return DROP(packet, FILE_TRANSLATE, DROP_WRITE_ERROR);
	if (work->flow.state & FLOW_HAIRPIN && !translate_error_end(skb, answer, true))
		return DROP(packet, FILE_TRANSLATE, DROP_WRITE_ERROR);
	return 0;
}

#endif
