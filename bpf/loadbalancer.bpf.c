// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* A load balancer on one device, in XDP. */

#include "lib/lb_path.h"

SEC("xdp")
int loadbalancer(struct xdp_md *ctx)
{
	return lb_balance(ctx);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
