/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Why a packet was dropped: one numbered list. A number is never used again for something else. */
#ifndef PCL_DROP_H
#define PCL_DROP_H

/* Cilium's numbers where the reason is Cilium's; ours from 220 up. English: pyciliumlib/flow/reasons.py. */
enum drop_reason {
	FORWARDED = 0,
	DROP_INVALID_SOURCE = 132,
	DROP_POLICY = 133,
	DROP_INVALID_PACKET = 134,
	DROP_FRAG_NEEDED = 136,
	DROP_UNSUPPORTED_L3 = 139,
	DROP_WRITE_ERROR = 141,
	DROP_UNKNOWN_L4 = 142,
	DROP_UNKNOWN_TARGET = 150,
	DROP_FLOW_INSERT = 155,
	DROP_IPV6_EXTENSION = 156,
	DROP_NO_SERVICE_BACKEND = 158,
	DROP_NAT_NO_MAPPING = 167,
	DROP_FIB = 169,
	DROP_IS_CLUSTER_IP = 174,
	DROP_FRAGMENT_NOT_FOUND = 175,
	DROP_FORBIDDEN_ICMPV6 = 176,
	DROP_LB_SOURCE_RANGE = 177,
	DROP_POLICY_DENY = 181,
	DROP_VLAN = 182,
	DROP_POLICY_AUTH_REQUIRED = 189,
	DROP_DSR_UNSUPPORTED = 193,
	DROP_TTL_EXCEEDED = 196,
	DROP_ENDPOINT_NOT_READY = 203,
	DROP_NO_PROXY = 220,
	DROP_V4_MAPPED = 221,
	DROP_HOOK = 222,
};

/* Which source file a drop came from; the line goes beside it. */
enum source_file {
	FILE_NONE = 0,
	FILE_ENDPOINT = 1,
	FILE_POLICY_DEVICE = 2,
	FILE_PACKET = 3,
	FILE_ADMIT = 4,
	FILE_FORWARD = 5,
	FILE_NEIGHBOUR = 6,
	FILE_FRAGMENT = 7,
	FILE_PATH = 8,
	FILE_TRANSLATE = 9,
};

#endif
