// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* The programs of an endpoint's host-side device: what the endpoint sends, and what it is sent. */

#define PCL_TC

#include "lib/ends.h"
#include "lib/forward.h"
#include "lib/hook_call.h"
#include "lib/neighbour.h"
#include "lib/reject.h"
#include "lib/translate.h"

/* The same for a flow of an endpoint with itself, of which one end is the service loopback address. */
static __always_inline void resolve_itself(struct __sk_buff *skb, const struct flow_key *key,
					   struct flow *flow)
{
	__u32 end = !flow->opener;

	resolve_end(skb, flow_addr(key, end), flow, END(end), false);
	flow->identity[END(!end)] = flow->identity[END(end)];
	flow->ifindex[END(!end)] = flow->ifindex[END(end)];
	flow->endpoint[END(!end)] = flow->endpoint[END(end)];
}

static __always_inline void resolve_ends(struct __sk_buff *skb, const struct flow_key *key,
					 struct flow *flow, __u32 from, enum hook hook)
{
	__u32 stack = hook == FROM_ENDPOINT ? !from : from;

	if (flow->state & FLOW_HAIRPIN) {
		resolve_itself(skb, key, flow);
		return;
	}
	resolve_end(skb, &key->low, flow, 0, stack == 0);
	resolve_end(skb, &key->high, flow, 1, stack == 1);
}

/* An endpoint's packets come from its own device, those of all others from none of ours. */
static __always_inline bool arrives_right(struct __sk_buff *skb, const struct flow *flow,
					  __u64 from, enum hook hook)
{
	__u32 device = flow->ifindex[END(from)];

	if (hook == FROM_ENDPOINT)
		return device == skb->ifindex;
	return device == 0 && flow->ifindex[END(!from)] == skb->ifindex;
}

/* A router on the way, as the node is, may speak for the stack's side, an endpoint only for itself. */
static __always_inline bool speaker_right(struct __sk_buff *skb, const struct packet *packet,
					  enum hook hook)
{
	struct endpoint *endpoint = endpoint_lookup(&packet->src);

	if (hook == FROM_ENDPOINT)
		return endpoint && endpoint->ifindex == skb->ifindex;
	return !endpoint || endpoint->flags & ENDPOINT_HOST;
}

static __always_inline enum trace_point trace_point(const struct flow *flow, bool delivered)
{
	if (delivered)
		return TRACE_TO_ENDPOINT;
	return flow->state & FLOW_OUTSIDE ? TRACE_TO_NETWORK : TRACE_TO_STACK;
}

/* What a pod sends may be for services. */
static __always_inline bool translates(const struct work *work, enum hook hook)
{
	return hook == FROM_ENDPOINT;
}

/* The device that an admitted packet goes to from here; 0 = it goes by the stack. */
static __always_inline __u32 device_of(const struct flow *flow, __u64 to, enum hook hook)
{
	return hook == FROM_ENDPOINT ? flow->ifindex[END(to)] : 0;
}

static __always_inline int send_to_stack(struct __sk_buff *skb, enum hook hook)
{
	metrics_count(hook, FORWARDED, skb->len);
	return TC_ACT_OK;
}

static __always_inline int send_to_endpoint(struct __sk_buff *skb, const struct flow *flow,
					    __u64 to, __u32 device, struct ethhdr *eth, bool ipv6)
{
	__u32 endpoint = flow->endpoint[END(to)];

	metrics_count(DIRECTION_BOTH, FORWARDED, skb->len);
	return forward_local(skb, eth, ipv6, endpoint, device);
}

/* By a device: an answer to a client outside leaves by the one that the client came by. */
static __always_inline int send_by(struct __sk_buff *skb, const struct flow *flow, __u64 to,
				   __u32 device, struct ethhdr *eth, bool ipv6)
{
	if (!(flow->state & FLOW_OUTSIDE))
		return send_to_endpoint(skb, flow, to, device, eth, ipv6);
	metrics_count(FROM_ENDPOINT, FORWARDED, skb->len);
	return forward_out(skb, eth, ipv6, device);
}

/* The end of the slow path: the user's program has a look, then the packet goes on. */
static __always_inline int finish(struct __sk_buff *skb, struct work *work, enum hook hook)
{
	struct packet *packet = &work->packet;
	struct flow *flow = &work->flow;
	__u32 to = !packet->from, device;
	struct ethhdr *eth;
	int result = hook_call(skb, packet, HOOK_AFTER_POLICY, hook, flow->identity[END(!to)],
			       flow->identity[END(to)]);

	if (is_drop(result))
		return result;
	device = device_of(flow, to, hook);
	if (!device)
		return send_to_stack(skb, hook);
	eth = forward_check(skb, packet->ipv6, &result);
	if (!eth)
		return DROP(packet, FILE_FORWARD, result);
	return send_by(skb, flow, to, device, eth, packet->ipv6);
}

#define NOT_ESTABLISHED -1

/* An established packet of a translated flow. Not inline: the others do not pay for it. */
static __noinline int handle_translated(struct __sk_buff *skb, struct flow *flow,
					const struct flow_key *key, __u32 from, enum hook hook)
{
	bool ipv6 = !addr_is_v4(&key->low);
	struct ethhdr *eth;
	__u32 device;
	int reason;

	if (!translate_stands(flow, key, from))
		return NOT_ESTABLISHED;
	flow_count(flow, from, skb->len);
	if (!translate_established(skb, flow, key)) {
		packet_parse(skb);	/* for what is told of it */
		return report_drop(skb, DROP_WRITE_ERROR);
	}
	device = device_of(flow, !from, hook);
	if (!device)
		return send_to_stack(skb, hook);
	eth = forward_check(skb, ipv6, &reason);
	return eth ? send_by(skb, flow, !from, device, eth, ipv6) : TC_ACT_SHOT;
}

static __always_inline int handle_ip(struct __sk_buff *skb, struct work *work, enum hook hook)
{
	struct packet *packet = &work->packet;
	int result = packet_parse(skb);

	packet->direction = hook;
	if (result)
		return result;
	if (is_link_icmpv6(packet)) {
		if (hook == FROM_ENDPOINT)
			return neighbour_icmpv6(skb);
		if (packet->icmp_type == ND_SOLICITATION || packet->icmp_type == ND_ADVERTISEMENT)
			return TC_ACT_OK;
		return DROP(packet, FILE_ENDPOINT, DROP_FORBIDDEN_ICMPV6);
	}
	result = hook_call(skb, packet, HOOK_BEFORE_POLICY, hook, 0, 0);
	if (is_drop(result))
		return result;
	result = slow_path(skb, hook);
	if (!result)
		result = translate_packet(skb, work);
	return result ? result : finish(skb, work, hook);
}

/* The short way of an established packet: a tc action, or NOT_ESTABLISHED. */
static __always_inline int shortcut(struct __sk_buff *skb, enum hook hook)
{
	struct flow_key key;
	struct plain plain;
	struct flow *flow = established(skb, hook, &key, &plain);
	__u32 device;
	int action;

	if (!flow)
		return NOT_ESTABLISHED;
	if (flow->state & FLOW_TRANSLATED)
		return handle_translated(skb, flow, &key, plain.high & 1, hook);
	if (!established_stands(flow, &key))
		return NOT_ESTABLISHED;
	device = device_of(flow, ~plain.high, hook);
	if (device)
		action = send_to_endpoint(skb, flow, ~plain.high, device, plain.eth, plain.ipv6);
	else
		action = send_to_stack(skb, hook);
	/* Last: the processor begins no load before an atomic addition is done. */
	flow_count(flow, plain.high, skb->len);
	return action;
}

static __always_inline int handle(struct __sk_buff *skb, enum hook hook)
{
	struct work *work;
	int result;

	/* The user's programs see every packet, so with them none is short-cut. */
	if (!hooks_enabled) {
		result = shortcut(skb, hook);
		if (result != NOT_ESTABLISHED)
			return result;
	}
	work = work_get();
	if (!work)
		return TC_ACT_SHOT;
	__builtin_memset(&work->translation, 0, sizeof(work->translation));
	if (skb->protocol == bpf_htons(ETH_P_ARP) && !skb->vlan_present)
		result = hook == FROM_ENDPOINT ? neighbour_arp(skb) : TC_ACT_OK;
	else
		result = handle_ip(skb, work, hook);
	if (!is_drop(result))
		return result;
	report_drop(skb, result);
	return work->translation.reject ? reject(skb, true) : TC_ACT_SHOT;
}

SEC("tc")
int from_endpoint(struct __sk_buff *skb)
{
	return handle(skb, FROM_ENDPOINT);
}

SEC("tc")
int to_endpoint(struct __sk_buff *skb)
{
	/* Without bpf_redirect_peer the sender's program has decided and sends through here. */
	if (!redirect_peer && (skb->mark & MARK_MASK) == MARK_DECIDED) {
		skb->mark &= ~MARK_MASK;
		return TC_ACT_OK;
	}
	return handle(skb, TO_ENDPOINT);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
