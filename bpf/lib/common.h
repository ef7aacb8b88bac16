/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What every other header needs: kernel types, libbpf's helpers, and a few constants of the wire. */
#ifndef PCL_COMMON_H
#define PCL_COMMON_H

#include <stdbool.h>
#include <stddef.h>
#include <linux/bpf.h>
#include <linux/types.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

/* Text that reaches user space through BTF (clang 14 on; older kernels accept and ignore it). */
#define DOC(text) __attribute__((btf_decl_tag("doc:" text)))

#define READ_ONCE(x) (*(volatile typeof(x) *)&(x))

#ifndef ETH_P_IP
#define ETH_P_IP 0x0800
#define ETH_P_ARP 0x0806
#define ETH_P_IPV6 0x86DD
#define ETH_P_8021Q 0x8100
#define ETH_P_8021AD 0x88A8
#endif

enum direction {
	DIRECTION_INGRESS = 0,
	DIRECTION_EGRESS = 1,
};

#endif
