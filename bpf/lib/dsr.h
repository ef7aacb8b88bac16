/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * What tells a backend, beside the packet, which service it is for, as Cilium's nodes write it: an
 * IPv4 option, an IPv6 destination option, or an option of Geneve (RFC 8926).
 */
#ifndef PCL_DSR_H
#define PCL_DSR_H

#include "addr.h"
#include "config.h"

CONFIG(__be16, geneve_port, "UDP port of Geneve") = bpf_htons(6081);

/* Copied into fragments, of the reserved class, number 26. */
#define DSR_IPV4_OPTION 0x9a

/* Right behind the IPv4 header's 20 bytes. Address and port have their bytes the other way round. */
struct dsr_ipv4 {
	__u8 type;
	__u8 length;
	__u16 port;
	__u32 addr;
};

/* To be passed over by those who do not know it. */
#define DSR_IPV6_OPTION 0x1b

/* A destination options header of its own, right behind the IPv6 header. */
struct dsr_ipv6 {
	__u8 next;
	__u8 words;		/* eight bytes each, beside the first */
	__u8 type;
	__u8 length;
	__be32 addr[4];
	__be16 port;
	__u16 pad;
};

#define GENEVE_CRITICAL 0x40
#define GENEVE_ETHERNET 0x6558
/* Cilium's identity of whatever is outside of the cluster: the clients are. */
#define GENEVE_WORLD 2
#define GENEVE_DSR_CLASS 0x014b
#define GENEVE_DSR_TYPE 0x81

struct geneve {
	__u8 words;		/* of options, four bytes each; version 0 */
	__u8 flags;
	__be16 proto;
	__be32 vni;		/* in the upper 24 bits */
};

struct geneve_option {
	__be16 class;
	__u8 type;
	__u8 words;		/* four bytes each, beside these */
};

struct geneve_dsr_ipv4 {
	struct geneve_option head;
	__be32 addr;
	__be16 port;
	__u16 pad;
};

struct geneve_dsr_ipv6 {
	struct geneve_option head;
	__be32 addr[4];
	__be16 port;
	__u16 pad;
};

static __always_inline struct dsr_ipv4 dsr_ipv4(const struct addr *service, __be16 port)
{
	return (struct dsr_ipv4){
		.type = DSR_IPV4_OPTION,
		.length = sizeof(struct dsr_ipv4),
		.port = __builtin_bswap16(port),
		.addr = __builtin_bswap32(service->words[3]),
	};
}

static __always_inline struct dsr_ipv6 dsr_ipv6(const struct addr *service, __be16 port, __u8 next)
{
	struct dsr_ipv6 option = {
		.next = next,
		.words = sizeof(option) / 8 - 1,
		.type = DSR_IPV6_OPTION,
		.length = sizeof(option) - 4,
		.port = port,
	};

	__builtin_memcpy(option.addr, service, sizeof(option.addr));
	return option;
}

static __always_inline struct geneve_option geneve_option(__u32 bytes)
{
	return (struct geneve_option){
		.class = bpf_htons(GENEVE_DSR_CLASS),
		.type = GENEVE_DSR_TYPE,
		.words = bytes / 4 - 1,
	};
}

static __always_inline struct geneve_dsr_ipv4 geneve_dsr_ipv4(const struct addr *service,
							      __be16 port)
{
	return (struct geneve_dsr_ipv4){
		.head = geneve_option(sizeof(struct geneve_dsr_ipv4)),
		.addr = service->words[3],
		.port = port,
	};
}

static __always_inline struct geneve_dsr_ipv6 geneve_dsr_ipv6(const struct addr *service,
							      __be16 port)
{
	struct geneve_dsr_ipv6 option = { .head = geneve_option(sizeof(option)), .port = port };

	__builtin_memcpy(option.addr, service, sizeof(option.addr));
	return option;
}

#endif
