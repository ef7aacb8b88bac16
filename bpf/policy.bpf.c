// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * One policy on one device, alone: no endpoints, no forwarding (pyciliumlib.PolicyMap).
 *
 * The subject is whatever sits at the device. Its policy is that of endpoint 1, and who the other
 * ends are, the ipcache knows.
 */

#include "lib/link_messages.h"
#include "lib/untranslated.h"

#define SUBJECT 1

CONFIG(__u32, subject_identity, "identity of the subject, shown in events") = 0;

static __always_inline void resolve_ends(struct __sk_buff *skb, const struct flow_key *key,
					 struct flow *flow, __u32 from, enum hook hook)
{
	__u32 subject = hook == FROM_ENDPOINT ? from : !from;

	flow->endpoint[END(subject)] = SUBJECT;
	flow->identity[END(subject)] = subject_identity;
	flow->identity[END(!subject)] = ipcache_identity(subject & 1 ? &key->low : &key->high);
}

/* The subject's packets leave through the one hook, the others' arrive at the other. */
static __always_inline bool arrives_right(struct __sk_buff *skb, const struct flow *flow,
					  __u64 from, enum hook hook)
{
	return (flow->endpoint[END(from)] == SUBJECT) == (hook == FROM_ENDPOINT);
}

static __always_inline bool speaker_right(struct __sk_buff *skb, const struct packet *packet,
					  enum hook hook)
{
	return true;
}

static __always_inline __u16 subject_of(struct __sk_buff *skb)
{
	return SUBJECT;
}

static __always_inline __u32 identity_of(const struct addr *addr, __u32 came_by)
{
	return ipcache_identity(addr);
}

static __always_inline enum trace_point trace_point(const struct flow *flow, bool delivered)
{
	return delivered ? TRACE_TO_ENDPOINT : TRACE_TO_STACK;
}

static __always_inline int enforce(struct __sk_buff *skb, enum hook hook)
{
	struct work *work;
	int reason;

	if (established_passes(skb, hook))
		return TC_ACT_OK;
	work = work_get();
	if (!work)
		return TC_ACT_SHOT;
	if (skb->protocol == bpf_htons(ETH_P_ARP) && !skb->vlan_present)
		return TC_ACT_OK;
	reason = packet_parse(skb);
	work->packet.direction = hook;
	if (!reason && keeps_link(&work->packet, hook))
		return TC_ACT_OK;
	if (!reason)
		reason = slow_path(skb, hook);
	if (reason)
		return report_drop(skb, reason);
	metrics_count(hook, FORWARDED, skb->len);
	return TC_ACT_OK;
}

SEC("tc")
int policy_from_subject(struct __sk_buff *skb)
{
	return enforce(skb, FROM_ENDPOINT);
}

SEC("tc")
int policy_to_subject(struct __sk_buff *skb)
{
	return enforce(skb, TO_ENDPOINT);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
