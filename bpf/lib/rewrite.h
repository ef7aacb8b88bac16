/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * One end of a packet gets another address and port, and all checksums follow.
 *
 * In XDP they are in the packet. At tc that of the transport header may be left to the device, so
 * there the kernel changes it: what is to be done depends on what of it is there already.
 */
#ifndef PCL_REWRITE_H
#define PCL_REWRITE_H

#include "addr.h"
#include "checksum.h"
#include "ctx.h"
#include "packet.h"

/* Transport headers lie nearer to the frame's begin than this. */
#define REWRITE_REACH 0x1ff

struct rewrite {
	struct addr from;	/* both of one family, the packet's */
	struct addr to;
	__be16 from_port;	/* or an ICMP echo's identifier */
	__be16 to_port;
	__u16 l4;		/* where in the frame the transport header begins, 0: a later fragment */
	__u8 proto;
	__u8 source;		/* it is the packet's source, not its destination */
};

/* Where the transport header has its checksum, 0: nowhere, or one that cannot follow (SCTP). */
static __always_inline __u32 rewrite_check_at(__u8 proto)
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

static __always_inline __u32 rewrite_port_at(const struct rewrite *change)
{
	if (change->proto == IPPROTO_ICMP || change->proto == PROTO_ICMPV6)
		return 4;
	return change->source ? 0 : 2;
}

static __always_inline __u64 rewrite_addresses_grow(const struct rewrite *change)
{
	if (addr_is_v4(&change->to))
		return checksum_exchange(&change->from.words[3], &change->to.words[3], 4);
	return checksum_exchange(&change->from, &change->to, 16);
}

/*
 * Writes the address into an IP header, and follows with its checksum; false if the packet ends
 * before. What is at a place that depends on `change` is checked by itself, for the verifier.
 */
static __always_inline bool rewrite_address(void *header, void *end, const struct rewrite *change)
{
	if (addr_is_v4(&change->to)) {
		struct iphdr *ip = header;
		__be32 *address = change->source ? &ip->saddr : &ip->daddr;

		if ((void *)(ip + 1) > end || (void *)(address + 1) > end)
			return false;
		*address = change->to.words[3];
		ip->check = checksum_follow(ip->check, rewrite_addresses_grow(change));
	} else {
		struct ipv6hdr *ip = header;
		struct in6_addr *address = change->source ? &ip->saddr : &ip->daddr;

		if ((void *)(address + 1) > end)
			return false;
		__builtin_memcpy(address, &change->to, 16);
	}
	return true;
}

/* A transport checksum in the packet follows; of UDP 0 says that there is none (RFC 768). */
static __always_inline void rewrite_follow(__u16 *check, __u8 proto, __u64 grown)
{
	if (proto == IPPROTO_UDP && !*check)
		return;
	*check = checksum_follow(*check, grown);
	if (proto == IPPROTO_UDP && !*check)
		*check = 0xffff;
}

#ifdef PCL_TC

/* BPF_F_IPV6, Linux 6.16: keeps a card's sum over the whole packet right. Refused before. */
#define REWRITE_IPV6 (1ULL << 7)

/* The checksum at `at` follows the addresses of its pseudo-header, and words that it covers. */
static __always_inline bool rewrite_check(CTX *ctx, __u32 at, const struct rewrite *change,
					  __u64 pseudo, __u64 words)
{
	__u64 flags = change->proto == IPPROTO_UDP ? BPF_F_MARK_MANGLED_0 : 0;
	bool ipv6 = !addr_is_v4(&change->to);

	pseudo = checksum_fold(pseudo);
	if (ipv6 && pseudo &&
	    !bpf_l4_csum_replace(ctx, at, 0, pseudo, flags | BPF_F_PSEUDO_HDR | REWRITE_IPV6))
		pseudo = 0;
	if (pseudo && bpf_l4_csum_replace(ctx, at, 0, pseudo, flags | BPF_F_PSEUDO_HDR))
		return false;
	return !words || !bpf_l4_csum_replace(ctx, at, 0, checksum_fold(words), flags);
}

#else

static __always_inline bool rewrite_check(CTX *ctx, __u32 at, const struct rewrite *change,
					  __u64 pseudo, __u64 words)
{
	__u16 *check = (void *)(long)ctx->data + at;

	if ((void *)(check + 1) > (void *)(long)ctx->data_end)
		return false;
	rewrite_follow(check, change->proto, pseudo + words);
	return true;
}

#endif

/*
 * Rewrites an end of the packet, whose headers can be read directly. False if that cannot be done:
 * the packet is to be dropped then, since some of it may be written.
 */
static __always_inline bool rewrite(CTX *ctx, const struct rewrite *change)
{
	void *ip = (void *)(long)ctx->data + sizeof(struct ethhdr);
	void *end = (void *)(long)ctx->data_end;
	__u32 l4 = change->l4 & REWRITE_REACH, check = rewrite_check_at(change->proto);
	__u64 pseudo = 0, words = 0;

	if (!rewrite_address(ip, end, change))
		return false;
	if (!l4)
		return true;
	if (change->from_port != change->to_port) {
		__be16 *port = (void *)(long)ctx->data + l4 + rewrite_port_at(change);

		if (!check || (void *)(port + 1) > end)
			return false;
		*port = change->to_port;
		words = checksum_exchange16(change->from_port, change->to_port);
	}
	if (change->proto != IPPROTO_ICMP)
		pseudo = rewrite_addresses_grow(change);
	return !check || rewrite_check(ctx, l4 + check, change, pseudo, words);
}

/*
 * The same for a packet that an ICMP error quotes: `change->l4` is where the error begins, and
 * `change->proto` that of the quoted packet, whose IP header has no options. The quote may end
 * before its transport checksum.
 */
static __always_inline bool rewrite_quoted(CTX *ctx, const struct rewrite *change)
{
	bool ipv4 = addr_is_v4(&change->to);
	__u32 begin = change->l4 & REWRITE_REACH, at = rewrite_check_at(change->proto);
	void *error = (void *)(long)ctx->data + begin, *end = (void *)(long)ctx->data_end;
	void *l4 = error + 8 + (ipv4 ? sizeof(struct iphdr) : sizeof(struct ipv6hdr));
	__be16 *port = l4 + rewrite_port_at(change);
	__u16 *check = l4 + at, *ip_check = error + 8 + offsetof(struct iphdr, check), was;
	__u64 addresses = rewrite_addresses_grow(change), grown, inside;

	if ((void *)(ip_check + 1) > end || (void *)(port + 1) > end)
		return false;
	inside = checksum_exchange16(change->from_port, change->to_port);
	grown = addresses + inside;
	*port = change->to_port;
	if (at && (void *)(check + 1) <= end) {
		was = *check;
		if (change->proto != IPPROTO_ICMP)
			inside += addresses;
		rewrite_follow(check, change->proto, inside);
		grown += checksum_exchange16(was, *check);
	}
	was = *ip_check;
	if (!rewrite_address(error + 8, end, change))
		return false;
	if (ipv4)
		grown += checksum_exchange16(was, *ip_check);
#ifdef PCL_TC
	return !bpf_l4_csum_replace(ctx, begin + 2, 0, checksum_fold(grown), 0);
#else
	check = error + 2;
	*check = checksum_follow(*check, grown);
	return true;
#endif
}

#endif
