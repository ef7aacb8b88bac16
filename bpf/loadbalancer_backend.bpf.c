// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * The backend's side of DSR by IP in IP: takes the outer header off what is for a service's
 * address. The stack, which has that address, does the rest, and answers the client itself.
 *
 * IP in IP for anything else is the host's own business and passes untouched.
 */

#include "lib/addr.h"
#include "lib/config.h"
#include "lib/lb_cursor.h"
#include "lib/metrics.h"

CONFIG(bool, check_directors, "take packets from the addresses in `lb_directors` alone") = false;

/* The services' addresses that this node has. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, struct addr);
	__type(value, __u32);
} lb_addresses SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, struct addr);
	__type(value, __u32);
} lb_directors SEC(".maps");

struct tunnelled {
	struct addr director;
	struct addr to;
	__u32 outer;		/* length of the outer header */
	__u32 bytes;		/* of the inner packet */
};

static __always_inline bool parse_ipv4(struct cursor *at, struct tunnelled *packet)
{
	struct iphdr *outer = TAKE(at, sizeof(*outer)), *inner;

	if (!outer || outer->ihl != 5 || outer->protocol != PROTO_IPIP ||
	    outer->frag_off & bpf_htons(0x3fff))
		return false;
	inner = TAKE(at, sizeof(*inner));
	if (!inner || inner->version != 4)
		return false;
	addr_from_v4(&packet->director, outer->saddr);
	addr_from_v4(&packet->to, inner->daddr);
	packet->outer = sizeof(*outer);
	packet->bytes = bpf_ntohs(inner->tot_len);
	return true;
}

static __always_inline bool parse_ipv6(struct cursor *at, struct tunnelled *packet)
{
	struct ipv6hdr *outer = TAKE(at, sizeof(*outer)), *inner;

	if (!outer || outer->nexthdr != PROTO_IPV6)
		return false;
	inner = TAKE(at, sizeof(*inner));
	if (!inner || inner->version != 6)
		return false;
	__builtin_memcpy(&packet->director, &outer->saddr, 16);
	__builtin_memcpy(&packet->to, &inner->daddr, 16);
	packet->outer = sizeof(*outer);
	packet->bytes = bpf_ntohs(inner->payload_len) + sizeof(*inner);
	return true;
}

/* Fills in `packet`; false if it is not IP in IP. */
static __always_inline bool parse(struct xdp_md *ctx, struct tunnelled *packet)
{
	struct cursor at = { (void *)(long)ctx->data, (void *)(long)ctx->data_end };
	struct ethhdr *eth = TAKE(&at, sizeof(*eth));

	if (!eth)
		return false;
	if (eth->h_proto == bpf_htons(ETH_P_IP))
		return parse_ipv4(&at, packet);
	return eth->h_proto == bpf_htons(ETH_P_IPV6) && parse_ipv6(&at, packet);
}

/* Moves the Ethernet header over the outer IP header. */
static __always_inline bool take_off(struct xdp_md *ctx, __u32 outer)
{
	struct ethhdr *eth = (void *)(long)ctx->data, kept;

	if ((void *)(eth + 1) > (void *)(long)ctx->data_end)
		return false;
	kept = *eth;
	if (bpf_xdp_adjust_head(ctx, outer))
		return false;
	eth = (void *)(long)ctx->data;
	if ((void *)(eth + 1) > (void *)(long)ctx->data_end)
		return false;
	*eth = kept;
	return true;
}

SEC("xdp")
int loadbalancer_backend(struct xdp_md *ctx)
{
	struct tunnelled packet = {};
	__u32 reason = FORWARDED;

	if (!parse(ctx, &packet) || !bpf_map_lookup_elem(&lb_addresses, &packet.to))
		return XDP_PASS;
	if (check_directors && !bpf_map_lookup_elem(&lb_directors, &packet.director))
		reason = DROP_INVALID_SOURCE;
	else if (!take_off(ctx, packet.outer))
		reason = DROP_WRITE_ERROR;
	metrics_count(DIRECTION_INGRESS, reason, packet.bytes);
	return reason == FORWARDED ? XDP_PASS : XDP_DROP;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
