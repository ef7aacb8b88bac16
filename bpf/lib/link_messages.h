/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The messages by which a link works, for programs that nothing else answers them for. */
#ifndef PCL_LINK_MESSAGES_H
#define PCL_LINK_MESSAGES_H

#include "path.h"

#define DHCP_SERVER 67
#define DHCP_CLIENT 68

#define LISTENER_QUERY 130
#define LISTENER_REPORT 131
#define LISTENER_DONE 132
#define ROUTER_SOLICITATION 133
#define ROUTER_ADVERTISEMENT 134
#define NEIGHBOUR_SOLICITATION 135
#define NEIGHBOUR_ADVERTISEMENT 136
#define LISTENER_REPORT_V2 143

/*
 * Neighbours (RFC 4861) and multicast listeners (RFC 2710, 3810): the link must work whatever the
 * policy, and nothing answers for the neighbours here. The subject may look for routers and hear
 * them; to be one, or to send others elsewhere (a redirect), is for policy to allow, as are other
 * types above 129, which can be routed. IPv4 has IGMP for its listeners (RFC 3376), and DHCP instead
 * of routers that tell of themselves (RFC 2131).
 */
static __always_inline bool keeps_link(const struct packet *packet, enum hook hook)
{
	if (!packet->ipv6 && packet->fragment == FRAGMENT_NONE) {
		if (packet->proto == IPPROTO_IGMP)
			return addr_is_group(&packet->dst);
		return packet->proto == IPPROTO_UDP && hook == TO_ENDPOINT &&
		       packet->sport == bpf_htons(DHCP_SERVER) &&
		       packet->dport == bpf_htons(DHCP_CLIENT);
	}
	if (!is_link_icmpv6(packet))
		return false;
	switch (packet->icmp_type) {
	case ROUTER_SOLICITATION:
		return hook == FROM_ENDPOINT;
	case ROUTER_ADVERTISEMENT:
		return hook == TO_ENDPOINT;
	case LISTENER_QUERY:
	case LISTENER_REPORT:
	case LISTENER_DONE:
	case LISTENER_REPORT_V2:
	case NEIGHBOUR_SOLICITATION:
	case NEIGHBOUR_ADVERTISEMENT:
		return true;
	default:
		return false;
	}
}

#endif
