/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Takes the option out by which a balancer tells of the service. */
#ifndef PCL_DSR_OPTION_H
#define PCL_DSR_OPTION_H

#include "checksum.h"
#include "dsr.h"
#include "dsr_serve.h"
#include "room.h"

/* Who sent such a packet cannot be known, since it has the client's address: of no director. */
static __always_inline int dsr_may_take(const struct dsr_told *told)
{
	if (!dsr_serves(&told->service))
		return DSR_PASS;
	return check_directors ? DROP_INVALID_SOURCE : 0;
}

static __always_inline int dsr_take_ipv4(CTX *ctx, struct dsr_told *told)
{
	struct iphdr *ip = (void *)(long)ctx->data + ETHER_LEN;
	struct dsr_ipv4 *at = (void *)(ip + 1), option;
	__u32 was, is;
	__u64 sum;
	int reason;

	if ((void *)(at + 1) > (void *)(long)ctx->data_end || ip->ihl < 7)
		return DSR_PASS;
	option = *at;
	if (option.type != DSR_IPV4_OPTION || option.length != sizeof(option))
		return DSR_PASS;
	addr_from_v4(&told->service, __builtin_bswap32(option.addr));
	told->port = __builtin_bswap16(option.port);
	reason = dsr_may_take(told);
	if (reason)
		return reason;
	if (!room_take(ctx, sizeof(option), false))
		return DROP_WRITE_ERROR;
	ip = (void *)(long)ctx->data + ETHER_LEN;
	if ((void *)(ip + 1) > (void *)(long)ctx->data_end)
		return DROP_WRITE_ERROR;
	was = *(packet_half *)ip;
	ip->ihl -= sizeof(option) / 4;
	ip->tot_len = bpf_htons(bpf_ntohs(ip->tot_len) - sizeof(option));
	is = *(packet_half *)ip;
	sum = checksum_sum(&option, sizeof(option));
	ip->check = checksum_follow(ip->check, checksum_exchange(&was, &is, sizeof(was)) +
						       (__u16)~checksum_fold(sum));
	ctx_sum_add(ctx, sum);
	told->told = true;
	return 0;
}

static __always_inline int dsr_take_ipv6(CTX *ctx, struct dsr_told *told)
{
	struct ipv6hdr *ip = (void *)(long)ctx->data + ETHER_LEN;
	struct dsr_ipv6 *at = (void *)(ip + 1), option;
	__u32 was, is;
	int reason;

	if ((void *)(at + 1) > (void *)(long)ctx->data_end || ip->nexthdr != IPPROTO_DSTOPTS)
		return DSR_PASS;
	option = *at;
	if (option.words != sizeof(option) / 8 - 1 || option.type != DSR_IPV6_OPTION ||
	    option.length != sizeof(option) - 4)
		return DSR_PASS;
	__builtin_memcpy(&told->service, option.addr, sizeof(option.addr));
	told->port = option.port;
	if (addr_is_v4(&told->service))
		return DSR_PASS;
	reason = dsr_may_take(told);
	if (reason)
		return reason;
	if (!room_take(ctx, sizeof(option), true))
		return DROP_WRITE_ERROR;
	ip = (void *)(long)ctx->data + ETHER_LEN;
	if ((void *)(ip + 1) > (void *)(long)ctx->data_end)
		return DROP_WRITE_ERROR;
	was = *((packet_half *)ip + 1);
	ip->payload_len = bpf_htons(bpf_ntohs(ip->payload_len) - sizeof(option));
	ip->nexthdr = option.next;
	is = *((packet_half *)ip + 1);
	ctx_sum_add(ctx, checksum_exchange(&was, &is, sizeof(was)));
	told->told = true;
	return 0;
}

/* 0, a drop reason, or DSR_PASS where there is no such option. */
static __always_inline int dsr_take_option(CTX *ctx, bool ipv6, struct dsr_told *told)
{
	return ipv6 ? dsr_take_ipv6(ctx, told) : dsr_take_ipv4(ctx, told);
}

#endif
