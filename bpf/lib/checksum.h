/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The Internet checksum (RFC 1071), and how it follows a change of what it covers (RFC 1624).
 *
 * Sums are kept in 64 bits and folded once, at the end.
 */
#ifndef PCL_CHECKSUM_H
#define PCL_CHECKSUM_H

#include <linux/ip.h>

#include "common.h"

static __always_inline __u16 checksum_fold(__u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return sum;
}

/* The sum of 32-bit words; `bytes` is a constant, a multiple of 4. */
static __always_inline __u64 checksum_sum(const void *data, __u32 bytes)
{
	const __u32 *words = data;
	__u64 sum = 0;

#pragma unroll
	for (__u32 i = 0; i < bytes / 4; i++)
		sum += words[i];
	return sum;
}

/* What a sum grows by where words are replaced by others. */
static __always_inline __u64 checksum_exchange(const void *from, const void *to, __u32 bytes)
{
	const __u32 *old = from, *new = to;
	__u64 sum = 0;

#pragma unroll
	for (__u32 i = 0; i < bytes / 4; i++)
		sum += (__u64)(__u32)~old[i] + new[i];
	return sum;
}

static __always_inline __u64 checksum_exchange16(__u16 from, __u16 to)
{
	return (__u64)(__u16)~from + to;
}

/* The checksum that was `check` before the sum of what it covers grew. */
static __always_inline __u16 checksum_follow(__u16 check, __u64 grown)
{
	return ~checksum_fold((__u64)(__u16)~check + grown);
}

/* Of a header without options, whose own field is 0. */
static __always_inline __u16 checksum_ipv4(const struct iphdr *ip)
{
	const __u16 *words = (const __u16 *)ip;
	__u32 sum = 0;

#pragma unroll
	for (int i = 0; i < 10; i++)
		sum += words[i];
	return ~checksum_fold(sum);
}

#endif
