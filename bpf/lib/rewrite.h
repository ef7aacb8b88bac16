/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * One end of a packet gets another address and port, in XDP or at tc, and all checksums follow.
 *
 * In XDP they are in the packet. At tc that of a transport may be left to a device or the receiver,
 * so there the kernel changes it, by what of it is there already.
 *
 * The headers must be readable directly. What returns false may have written something: drop the
 * packet. What was read of it before is to be read again.
 */
#ifndef PCL_REWRITE_H
#define PCL_REWRITE_H

#include "addr.h"
#include "checksum.h"
#include "ctx.h"
#include "packet.h"

/* Transport headers begin before this byte of the frame, a power of two less 1. */
#define REWRITE_REACH 0x1ff

enum end_kind {
	SOURCE = 0,
	DESTINATION = 1,
};

/* Where the headers are, and which; `l4_off` is 0 if the packet has none, as a later fragment. */
struct headers {
	__u32 l4_off;
	__u8 proto;
	__u8 ipv6;
	__u8 skip;		/* of a quoted packet: bytes of options, between IP and transport */
};

/* Where a transport header has its checksum, 0: nowhere, or one that cannot follow (SCTP's). */
static __always_inline __u32 checksum_at(__u8 proto)
{
	switch (proto) {
	case IPPROTO_TCP:
		return 16;
	case IPPROTO_UDP:
		return 6;
	case IPPROTO_ICMP:
	case PROTO_ICMPV6:
		return 2;
	}
	return 0;
}

/* Where it has the end's port; an ICMP echo has an identifier for both. */
static __always_inline __u32 port_at(__u8 proto, enum end_kind end)
{
	if (proto == IPPROTO_ICMP || proto == PROTO_ICMPV6)
		return 4;
	return end == SOURCE ? 0 : 2;
}

/* ICMP's checksum is the one that covers no addresses. */
static __always_inline bool covers_addresses(__u8 proto)
{
	return proto != IPPROTO_ICMP;
}

/* A checksum in the packet follows; of UDP 0 says that there is none (RFC 768). */
static __always_inline void rewrite_follow(__u16 *check, __u8 proto, __u64 grown)
{
	if (proto == IPPROTO_UDP && !*check)
		return;
	*check = checksum_follow(*check, grown);
	if (proto == IPPROTO_UDP && !*check)
		*check = 0xffff;
}

static __always_inline bool rewrite_ipv4(struct iphdr *ip, void *end_of_data, enum end_kind end,
					 const struct addr *to, __u64 *grown)
{
	__be32 *address = end == SOURCE ? &ip->saddr : &ip->daddr;

	/* A place that depends on `end` is checked by itself, for the verifier. */
	if ((void *)(ip + 1) > end_of_data || (void *)(address + 1) > end_of_data)
		return false;
	*grown = checksum_exchange(address, &to->words[3], 4);
	*address = to->words[3];
	ip->check = checksum_follow(ip->check, *grown);
	return true;
}

static __always_inline bool rewrite_ipv6(struct ipv6hdr *ip, void *end_of_data, enum end_kind end,
					 const struct addr *to, __u64 *grown)
{
	struct in6_addr *address = end == SOURCE ? &ip->saddr : &ip->daddr;

	if ((void *)(address + 1) > end_of_data)
		return false;
	*grown = checksum_exchange(address, to, 16);
	__builtin_memcpy(address, to, 16);
	return true;
}

/* Writes an address into an IP header; `*grown` is by what a sum over it grew. */
static __always_inline bool rewrite_ip(void *ip, void *end_of_data, bool ipv6, enum end_kind end,
				       const struct addr *to, __u64 *grown)
{
	return ipv6 ? rewrite_ipv6(ip, end_of_data, end, to, grown) :
		      rewrite_ipv4(ip, end_of_data, end, to, grown);
}

#ifdef PCL_TC

/*
 * The checksum at `at` follows the addresses of its pseudo-header, and words that it covers. With
 * the former the kernel takes it away from the device's sum again, as IPv4's own checksum has it.
 */
static __always_inline bool rewrite_check(CTX *ctx, __u32 at, __u8 proto, __u64 addresses,
					  __u64 words)
{
	__u16 *check = (void *)(long)ctx->data + at;
	__u64 flags = proto == IPPROTO_UDP ? BPF_F_MARK_MANGLED_0 : 0;

	if ((void *)(check + 1) > (void *)(long)ctx->data_end)
		return false;
	if (proto == IPPROTO_UDP && !*check) {
		ctx_sum_add(ctx, words);
		return true;
	}
	if (addresses && bpf_l4_csum_replace(ctx, at, 0, checksum_fold(addresses),
					     flags | BPF_F_PSEUDO_HDR))
		return false;
	return !words || !bpf_l4_csum_replace(ctx, at, 0, checksum_fold(words), flags);
}

#else

static __always_inline bool rewrite_check(CTX *ctx, __u32 at, __u8 proto, __u64 addresses,
					  __u64 words)
{
	__u16 *check = (void *)(long)ctx->data + at;

	if ((void *)(check + 1) > (void *)(long)ctx->data_end)
		return false;
	rewrite_follow(check, proto, addresses + words);
	return true;
}

#endif

static __always_inline bool rewrite_parts(CTX *ctx, const struct headers *headers,
					  enum end_kind end, const struct addr *to,
					  const __be16 *port)
{
	void *ip = (void *)(long)ctx->data + sizeof(struct ethhdr);
	void *end_of_data = (void *)(long)ctx->data_end;
	__u32 l4 = headers->l4_off & REWRITE_REACH, check = checksum_at(headers->proto);
	__u64 addresses, words = 0;

	if (!rewrite_ip(ip, end_of_data, headers->ipv6, end, to, &addresses))
		return false;
	if (headers->ipv6)	/* whose header has no checksum */
		ctx_sum_add(ctx, addresses);
	if (!l4)
		return true;
	if (port) {
		__be16 *place = (void *)(long)ctx->data + l4 + port_at(headers->proto, end);

		if ((void *)(place + 1) > end_of_data || (!check && *place != *port))
			return false;
		if (*place != *port)
			words = checksum_exchange16(*place, *port);
		*place = *port;
	}
	if (!covers_addresses(headers->proto))
		addresses = 0;
	return !check || rewrite_check(ctx, l4 + check, headers->proto, addresses, words);
}

/* Gives one end of the packet another address. */
static __always_inline bool rewrite_address(CTX *ctx, const struct headers *headers,
					    enum end_kind end, const struct addr *to)
{
	return rewrite_parts(ctx, headers, end, to, NULL);
}

/*
 * Another address and port, or an ICMP echo's identifier. A later fragment gets the address alone;
 * SCTP cannot get another port, since its checksum would have to be made from all of its bytes.
 */
static __always_inline bool rewrite_end(CTX *ctx, const struct headers *headers, enum end_kind end,
					const struct addr *to, __be16 port)
{
	return rewrite_parts(ctx, headers, end, to, &port);
}

/*
 * Another address and port in the packet that an ICMP error quotes, of which `quoted` tells; but its
 * `l4_off` is where the error begins. The quote may end before the transport's checksum.
 */
static __always_inline bool rewrite_quoted(CTX *ctx, const struct headers *quoted,
					   enum end_kind end, const struct addr *to, __be16 port)
{
	__u32 begin = quoted->l4_off & REWRITE_REACH, at = checksum_at(quoted->proto);
	void *error = (void *)(long)ctx->data + begin, *end_of_data = (void *)(long)ctx->data_end;
	__u32 header = (quoted->ipv6 ? sizeof(struct ipv6hdr) : sizeof(struct iphdr)) + quoted->skip;
	void *l4 = error + 8 + header;
	__u16 *ip_check = error + 8 + offsetof(struct iphdr, check), *check = l4 + at, was;
	__be16 *place = l4 + port_at(quoted->proto, end);
	__u64 addresses, inside, grown;

	if ((void *)(ip_check + 1) > end_of_data || (void *)(place + 1) > end_of_data)
		return false;
	was = *ip_check;
	if (!rewrite_ip(error + 8, end_of_data, quoted->ipv6, end, to, &addresses))
		return false;
	grown = addresses;
	if (!quoted->ipv6)
		grown += checksum_exchange16(was, *ip_check);
	inside = checksum_exchange16(*place, port);
	grown += inside;
	*place = port;
	if (at && (void *)(check + 1) <= end_of_data) {
		was = *check;
		if (covers_addresses(quoted->proto))
			inside += addresses;
		rewrite_follow(check, quoted->proto, inside);
		grown += checksum_exchange16(was, *check);
	}
#ifdef PCL_TC
	return !bpf_l4_csum_replace(ctx, begin + 2, 0, checksum_fold(grown), 0);
#else
	check = error + 2;
	*check = checksum_follow(*check, grown);
	return true;
#endif
}

#endif
