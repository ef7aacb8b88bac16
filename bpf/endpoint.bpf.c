// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* The programs of an endpoint's host-side device: what the endpoint sends, and what it is sent. */

#include "lib/endpoint.h"
#include "lib/forward.h"
#include "lib/hook_call.h"
#include "lib/neighbour.h"
#include "lib/path.h"

/* Fills in one end of a flow: an endpoint of this node, or whom the ipcache knows. */
static __always_inline void resolve_side(const struct addr *addr, struct flow_side *side)
{
	struct endpoint *endpoint;

	side->ipcache_cell = ipcache_cell(addr);
	side->ipcache_rev = ipcache_revision(side->ipcache_cell);
	endpoint = endpoint_lookup(addr);
	if (!endpoint) {
		side->identity = ipcache_identity(addr);
		return;
	}
	side->identity = endpoint->identity;
	side->ifindex = endpoint->ifindex;
	side->endpoint = endpoint->id;
	__builtin_memcpy(side->ethernet, endpoint->mac, 6);
	__builtin_memcpy(side->ethernet + 6, endpoint->node_mac, 6);
}

static __always_inline void resolve_ends(const struct packet *packet, struct flow *flow,
					 bool reversed, enum hook hook)
{
	resolve_side(reversed ? &packet->dst : &packet->src, &flow->side[0]);
	resolve_side(reversed ? &packet->src : &packet->dst, &flow->side[1]);
}

/* An endpoint's packets come from its own device, those of all others from none of ours. */
static __always_inline bool arrives_right(struct __sk_buff *skb, const struct flow *flow,
					  __u32 sender, enum hook hook)
{
	const struct flow_side *from = FLOW_SIDE(flow, sender);
	const struct flow_side *to = FLOW_SIDE(flow, !sender);

	if (hook == FROM_ENDPOINT)
		return from->ifindex == skb->ifindex;
	return from->ifindex == 0 && to->ifindex == skb->ifindex;
}

/* A router on the way may speak for the stack's side, an endpoint only for itself. */
static __always_inline bool speaker_right(struct __sk_buff *skb, const struct packet *packet,
					  enum hook hook)
{
	if (hook == FROM_ENDPOINT)
		return endpoint_owns(skb->ifindex, &packet->src);
	return !endpoint_lookup(&packet->src);
}

static __always_inline __u16 subject_of(struct __sk_buff *skb)
{
	struct device *device = device_lookup(skb->ifindex);

	return device ? device->endpoint : 0;
}

static __always_inline __u32 identity_of(const struct addr *addr)
{
	struct endpoint *endpoint = endpoint_lookup(addr);

	return endpoint ? endpoint->identity : ipcache_identity(addr);
}

/* Sends an admitted packet on its way and counts it; a tc action or a drop reason. */
static __always_inline int send_on(struct __sk_buff *skb, const struct flow_side *to, bool ipv6,
				   enum hook hook)
{
	__u32 bytes = skb->len;
	int result = TC_ACT_OK;

	if (hook == FROM_ENDPOINT && to->ifindex) {
		result = forward_local(skb, to, ipv6);
		if (is_drop(result))
			return result;
		metrics_count(DIRECTION_INGRESS, FORWARDED, bytes);
	}
	metrics_count((enum direction)hook, FORWARDED, bytes);
	return result;
}

/* The end of the slow path: the user's program has a look, then the packet goes on. */
static __always_inline int finish(struct __sk_buff *skb, struct work *work, enum hook hook)
{
	struct packet *packet = &work->packet;
	const struct flow_side *from = FLOW_SIDE(&work->flow, packet->sender);
	const struct flow_side *to = FLOW_SIDE(&work->flow, !packet->sender);
	int result = hook_call(skb, packet, HOOK_AFTER_POLICY, hook, from->identity, to->identity);

	if (is_drop(result))
		return result;
	result = send_on(skb, to, packet->ipv6, hook);
	return is_drop(result) ? DROP(packet, FILE_FORWARD, result) : result;
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
	return result ? result : finish(skb, work, hook);
}

static __always_inline int handle(struct __sk_buff *skb, enum hook hook)
{
	struct work *work;
	struct flow *flow;
	__u32 sender;
	bool ipv6;
	int result;

	/* The user's programs see every packet, so with them none is short-cut. */
	flow = hooks_enabled ? NULL : established(skb, hook, &sender, &ipv6);
	if (flow) {
		result = send_on(skb, FLOW_SIDE(flow, !sender), ipv6, hook);
		return is_drop(result) ? TC_ACT_SHOT : result;
	}
	work = work_get();
	if (!work)
		return TC_ACT_SHOT;
	if (skb->protocol == bpf_htons(ETH_P_ARP) && !skb->vlan_present)
		result = hook == FROM_ENDPOINT ? neighbour_arp(skb) : TC_ACT_OK;
	else
		result = handle_ip(skb, work, hook);
	return is_drop(result) ? report_drop(skb, result) : result;
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
