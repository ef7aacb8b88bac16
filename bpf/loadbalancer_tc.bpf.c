// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* A load balancer on one device whose driver has no XDP: the same path at its tc ingress. */

#define PCL_TC
#include "lib/lb_path.h"

SEC("tc")
int loadbalancer_tc(struct __sk_buff *skb)
{
	return lb_balance(skb);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
