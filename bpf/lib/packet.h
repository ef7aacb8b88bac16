/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What the programs know of a packet. */
#ifndef PCL_PACKET_H
#define PCL_PACKET_H

#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>

#include "addr.h"
#include "drop.h"

/* A header that some systems' <linux/in.h> lacks the number of. */
#define PROTO_ICMPV6 58
#define PROTO_VRRP 112
#define PROTO_SCTP 132

#define TCP_FIN 0x01
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_ACK 0x10

enum fragment {
	FRAGMENT_NONE = 0,
	FRAGMENT_FIRST = 1,
	FRAGMENT_LATER = 2,
};

enum icmp_class {
	ICMP_CLASS_NONE = 0,	/* not ICMP */
	ICMP_CLASS_ECHO = 1,	/* request or reply */
	ICMP_CLASS_ERROR = 2,	/* about another packet, which it quotes */
	ICMP_CLASS_OTHER = 3,
};

struct packet {
	struct addr src;
	struct addr dst;
	__be16 sport;		/* of ICMP: see packet_icmp */
	__be16 dport;
	__u8 proto;
	__u8 tcp_flags;
	__u8 icmp_type;
	__u8 icmp_class;	/* enum icmp_class */
	__u8 fragment;		/* enum fragment */
	__u8 ipv6;
	__u8 direction;		/* enum direction: of the policy that decides, or of the hook */
	__u8 file;		/* where the drop reason was set: enum source_file and line */
	__u16 line;
	__u16 l4_off;		/* from the start of the frame */
	__u32 fragment_id;
	__u32 from;		/* the end of its flow that sent it */
};

/* Whether the packet asks for a new connection, whatever is known of its ports. */
static __always_inline bool packet_opens(const struct packet *packet)
{
	return packet->proto == IPPROTO_TCP && (packet->tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_SYN;
}

/* `return DROP(packet, FILE_X, reason)`: remembers where a packet's fate was decided. */
#define DROP(packet, file_id, reason) \
	({ (packet)->file = (file_id); (packet)->line = __LINE__; (reason); })

#define ETHER_LEN ((__u32)sizeof(struct ethhdr))

/* Words of a packet, where headers lie at even addresses: x86 and arm64 load them all the same. */
typedef __u64 __attribute__((may_alias)) packet_word;
typedef __u32 __attribute__((may_alias)) packet_half;

/*
 * Gives a header, or what is kept of one, destination and source. Of a pointer to bytes clang knows
 * that it may be odd, and would copy them one by one.
 */
static __always_inline void packet_ethernet(void *eth, const void *addresses)
{
	*(packet_word *)eth = *(const packet_word *)addresses;
	*((packet_half *)eth + 2) = *((const packet_half *)addresses + 2);
}

/*
 * Fills in the last word of a key: two ports as they lie in memory, the protocol, and padding. By one
 * store: the kernel hashes and compares whole words, and a CPU that must gather one from several
 * stores just made waits until they are done.
 */
static __always_inline void key_transport(void *key_word, __u32 ports, __u8 proto)
{
	__u64 word;

#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
	word = ports | (__u64)proto << 32;
#else
	word = (__u64)ports << 32 | (__u64)proto << 24;
#endif
	__builtin_memcpy(key_word, &word, sizeof(word));
}

static __always_inline void packet_addr(struct addr *addr, const struct in6_addr *wire)
{
	const packet_word *words = (const void *)wire;

	addr->halves[0] = words[0];
	addr->halves[1] = words[1];
}

static __always_inline __u8 icmp_class_of(const struct packet *packet, __u8 type)
{
	if (packet->proto == IPPROTO_ICMP) {
		if (type == 8 || type == 0)
			return ICMP_CLASS_ECHO;
		if (type == 3 || type == 11 || type == 12)
			return ICMP_CLASS_ERROR;
		return ICMP_CLASS_OTHER;
	}
	if (type == 128 || type == 129)
		return ICMP_CLASS_ECHO;
	return type < 128 ? ICMP_CLASS_ERROR : ICMP_CLASS_OTHER;
}

static __always_inline bool icmp_is_echo_reply(const struct packet *packet)
{
	return packet->icmp_class == ICMP_CLASS_ECHO &&
	       (packet->icmp_type == 0 || packet->icmp_type == 129);
}

/*
 * Gives an ICMP message the ports of its flow's key. An echo has its identifier on the requester's
 * side and 0 on the other, so that a request the other way is another flow; the identifier 0
 * counts as 65535, or the sides would look alike. Any other message is a flow of its own direction
 * and type; its numbers are no echo's, of which one is 0.
 */
static __always_inline void packet_icmp(struct packet *packet, __u8 type, __be16 echo_id)
{
	packet->icmp_type = type;
	packet->icmp_class = icmp_class_of(packet, type);
	if (packet->icmp_class == ICMP_CLASS_ECHO) {
		bool reply = icmp_is_echo_reply(packet);

		echo_id = echo_id ?: 0xffff;
		packet->sport = reply ? 0 : echo_id;
		packet->dport = reply ? echo_id : 0;
	} else {
		packet->sport = bpf_htons(0x100 | type);
		packet->dport = bpf_htons(0x200 | type);
	}
}

#endif
